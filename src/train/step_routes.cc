#include "train/step_routes.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>

#include "base/error.h"
#include "tensor/device.h"

namespace degu {
namespace {

// Where line number `lines` begins, or the size of the file and how many lines it has.
struct LineStart {
  uintmax_t byte = 0;
  int64_t lines = 0;
};
LineStart find_line(const std::string& path, int64_t lines) {
  std::ifstream file(path, std::ios::binary);
  LineStart at;
  std::vector<char> block(size_t{1} << 20);
  while (at.lines < lines && file) {
    file.read(block.data(), static_cast<std::streamsize>(block.size()));
    const auto count = static_cast<size_t>(file.gcount());
    for (size_t i = 0; i < count && at.lines < lines; ++i, ++at.byte) at.lines += block[i] == '\n';
  }
  return at;
}

}  // namespace

StepRoutes::StepRoutes(const ModelShape& shape, const StepPlan& plan)
    : sequences_(plan.batch_sequences),
      length_(plan.sequence_length),
      layers_(moe_layers(shape)),
      top_k_(shape.moe.top_k),
      rows_(static_cast<size_t>(sequences_ * length_ * row_width())) {}

void StepRoutes::begin() {
  std::fill(rows_.begin(), rows_.end(), 0);
}

void StepRoutes::record(Context& context, int64_t first, const SequenceBatch& batch,
                        const Activations& activations) {
  int32_t* const rows = rows_.data() + first * length_ * row_width();
  for (int64_t t = 0; t < batch.tokens(); ++t) {
    rows[t * row_width()] = 1 + batch.tokens_T[static_cast<size_t>(t)];
  }
  int64_t column = 1;
  for (const BlockActivations& block : activations.blocks) {
    if (!block.moe.router.expert_TK) continue;
    const OnHost chosen(context, block.moe.router.expert_TK.rows(0, batch.tokens()));
    for (int64_t t = 0; t < batch.tokens(); ++t) {
      std::copy_n(chosen.as<const int32_t>().row(t), top_k_, rows + t * row_width() + column);
    }
    column += top_k_;
  }
}

void StepRoutes::share(Context& context, Communicator& world) {
  // Each place has one contribution that is not zero.
  world.all_reduce(context, View<int32_t>(rows_.data(), {static_cast<int64_t>(rows_.size())}),
                   Reduce::kSum, Order::kAny);
}

std::string StepRoutes::lines(int64_t step) const {
  std::string text;
  RouteLine line;
  const int32_t* row = rows_.data();
  for (int64_t s = 0; s < sequences_; ++s) {
    for (int64_t t = 0; t < length_; ++t, row += row_width()) {
      line.text = step * sequences_ + s;
      line.position = t;
      line.token = row[0] - 1;
      line.experts_LK.assign(row + 1, row + row_width());
      text += to_text(line, static_cast<int>(top_k_));
    }
  }
  return text;
}

RouteLog::RouteLog(const std::string& path, int64_t lines) : path_(path) {
  const LineStart kept = find_line(path, lines);
  if (kept.lines < lines) {
    throw DataError(
        "{}: holds the routes of {} tokens, but the run goes on after {}; set "
        "train.record_routes: false, or record from the start",
        path, kept.lines, lines);
  }
  if (std::filesystem::exists(path)) std::filesystem::resize_file(path, kept.byte);
  file_.reset(std::fopen(path.c_str(), "a"));
  if (!file_) throw IoError("{}: cannot be opened for writing: {}", path, std::strerror(errno));
}

void RouteLog::write(const std::string& lines) {
  if (std::fwrite(lines.data(), 1, lines.size(), file_.get()) != lines.size() ||
      std::fflush(file_.get()) != 0) {
    throw IoError("{}: cannot be written: {}", path_, std::strerror(errno));
  }
}

RouteReplay::RouteReplay(std::string path, const ModelShape& shape, const StepPlan& plan)
    : path_(std::move(path)),
      shape_(shape),
      sequences_(plan.batch_sequences),
      length_(plan.sequence_length),
      reader_(std::make_unique<RouteReader>(path_, shape_)) {}

void RouteReplay::too_short(int64_t number) const {
  throw DataError(
      "{}: ends after {} lines, before the end of sequence {} of the run; train.replay_routes "
      "wants {} lines for each sequence up to the last step's",
      path_, reader_->lines_read(), number, length_);
}

void RouteReplay::read(int64_t step, std::span<const SequenceBatch> batches,
                       std::span<const int64_t> firsts) {
  const int64_t first = step * sequences_;
  if (reader_->lines_read() > first * length_) {  // an earlier checkpoint was loaded
    reader_ = std::make_unique<RouteReader>(path_, shape_);
  }
  if (!reader_->skip(first * length_ - reader_->lines_read())) too_short(first);
  routes_.resize(batches.size());
  for (size_t m = 0; m < batches.size(); ++m) {
    routes_[m].tokens_T = batches[m].tokens_T;
    routes_[m].experts_LTK.resize(
        static_cast<size_t>(moe_layers(shape_) * batches[m].tokens() * shape_.moe.top_k));
  }
  for (int64_t s = 0; s < sequences_; ++s) {
    size_t m = 0;
    while (m < batches.size() && (s < firsts[m] || s >= firsts[m] + batches[m].sequences)) ++m;
    if (m < batches.size()) {
      read_sequence(first + s, batches[m], s - firsts[m], routes_[m]);
    } else if (!reader_->skip(length_)) {
      too_short(first + s);
    }
  }
}

void RouteReplay::read_sequence(int64_t number, const SequenceBatch& batch, int64_t place,
                                RecordedRoutes& out) {
  const int64_t k = shape_.moe.top_k;
  for (int64_t t = 0; t < length_; ++t) {
    if (!reader_->next(line_)) too_short(number);
    const int64_t at = place * length_ + t;
    const int32_t token = batch.tokens_T[static_cast<size_t>(at)];
    if (line_.text != number || line_.position != t || line_.token != token) {
      reader_->fail(fmt::format(
          "token {} at position {} of sequence {}, where this run has token {} at position {} of "
          "sequence {}; the routes must be of the same data, order and batch (train.record_routes)",
          line_.token, line_.position, line_.text, token, t, number));
    }
    if (line_.experts_LK.empty()) {
      reader_->fail("nobody recorded this token's experts; training replays all or none");
    }
    for (int64_t l = 0; l < moe_layers(shape_); ++l) {
      std::copy_n(line_.experts_LK.begin() + l * k, k,
                  out.experts_LTK.begin() + (l * batch.tokens() + at) * k);
    }
  }
}

}  // namespace degu
