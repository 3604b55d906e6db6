// A checkpoint that a thread of its own writes while training goes on, from copies.
//
// Nothing else uses CheckpointWriter or HDF5 meanwhile: a training run does not.
#pragma once

#include <atomic>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "io/checkpoint.h"
#include "tensor/tensor.h"

namespace degu {

// What a rank adds to a checkpoint: a region of the tensor of that name.
struct CheckpointPart {
  std::string name;
  Region region;
  AnyView values;  // on any device
};

class BackgroundCheckpoint {
 public:
  // Copies the parts' values to the host and begins to write.
  BackgroundCheckpoint(Context& context, std::unique_ptr<CheckpointWriter> writer,
                       std::vector<CheckpointPart> parts);
  // Waits for the thread. Without commit nothing remains.
  ~BackgroundCheckpoint();
  BackgroundCheckpoint(const BackgroundCheckpoint&) = delete;
  BackgroundCheckpoint& operator=(const BackgroundCheckpoint&) = delete;

  // Whether this rank's part is on the disk, or failed: commit will not wait for it.
  bool written() const { return written_; }
  // Waits, then CheckpointWriter::commit. Collective.
  void commit();

 private:
  std::unique_ptr<CheckpointWriter> writer_;
  std::vector<CheckpointPart> parts_;
  std::vector<Tensor> copies_;  // of the parts' values, given back as they are written
  std::atomic<bool> written_ = false;
  std::thread thread_;
};

}  // namespace degu
