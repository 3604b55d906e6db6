#include "train/background_checkpoint.h"

#include <utility>

#include "tensor/device.h"

namespace degu {

BackgroundCheckpoint::BackgroundCheckpoint(Context& context,
                                           std::unique_ptr<CheckpointWriter> writer,
                                           std::vector<CheckpointPart> parts)
    : writer_(std::move(writer)), parts_(std::move(parts)) {
  for (const CheckpointPart& part : parts_) {
    copies_.emplace_back(part.values.dtype, part.values.shape);
    copy(context, part.values, copies_.back());
  }
  thread_ = std::thread([this] {
    // What goes wrong with the file the writer keeps for commit.
    for (size_t i = 0; i < parts_.size(); ++i) {
      writer_->add(parts_[i].name, parts_[i].region, copies_[i]);
      copies_[i] = {};
    }
    writer_->finish();
    written_ = true;
  });
}

BackgroundCheckpoint::~BackgroundCheckpoint() {
  if (thread_.joinable()) thread_.join();
}

void BackgroundCheckpoint::commit() {
  thread_.join();
  writer_->commit();
}

}  // namespace degu
