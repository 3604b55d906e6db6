// Where the time of a step goes: one span per operator call, as a Chrome trace (chrome://tracing,
// Perfetto).
#pragma once

#include <chrono>
#include <string>
#include <vector>

#include "tensor/context.h"
#include "tensor/device.h"

namespace degu {

class Trace {
 public:
  // Spans are kept in memory, `most` of them; later ones are counted and left out.
  explicit Trace(size_t most = size_t{1} << 20);

  void record(const char* name, double begin_us, double end_us);
  double now_us() const;

  // JSON of all spans, under process number `rank`. IoError when it cannot be written.
  std::string json(int rank) const;
  size_t left_out() const { return left_out_; }

 private:
  struct Span {
    const char* name;
    double begin_us;
    double end_us;
  };
  std::chrono::steady_clock::time_point start_;
  std::vector<Span> spans_;
  size_t most_;
  size_t left_out_ = 0;
};

// The enclosing scope: recorded when the context is traced, named to profilers on an accelerator;
// else two comparisons.
class TraceScope {
 public:
  TraceScope(Context& context, const char* name)
      : device_(context.device_state()),
        trace_(context.trace()),
        name_(name),
        begin_us_(trace_ != nullptr ? trace_->now_us() : 0) {
    if (device_ != nullptr) device_->begin_range(name);
  }
  ~TraceScope() {
    if (device_ != nullptr) device_->end_range();
    if (trace_ != nullptr) trace_->record(name_, begin_us_, trace_->now_us());
  }
  TraceScope(const TraceScope&) = delete;
  TraceScope& operator=(const TraceScope&) = delete;

 private:
  DeviceState* device_;
  Trace* trace_;
  const char* name_;
  double begin_us_;
};

}  // namespace degu
