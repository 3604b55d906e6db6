#include "kernels/api/probe.h"

#include <algorithm>
#include <vector>

#include "base/timer.h"
#include "kernels/cpu/probe.h"
#include "kernels/dispatch.h"

namespace degu {
namespace {

constexpr int64_t kLine = 64;

const ProbeKernels& kernels(const Context& context) {
  return kernels_for<ProbeKernels>(context, "probe");
}

double median(std::vector<double> values) {
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

// Keeps what threads add up away from each other's cache lines.
struct alignas(64) Sink {
  float value = 0.0f;
};

}  // namespace

double probe_peak_flops(Context& context, DType type) {
  if (type != DType::kF32 && type != DType::kBF16 && type != DType::kI8) {
    throw ShapeError("probe_peak_flops: type is {}, must be fp32, bf16 or int8", dtype_name(type));
  }
  std::vector<Sink> sinks(static_cast<size_t>(context.threads()));
  std::vector<double> done(sinks.size());
  const auto round = [&](int64_t rounds) {
    const Timer timer;
    context.parallel_for(context.threads(), [&](int64_t task, int) {
      const auto i = static_cast<size_t>(task);
      done[i] = kernels(context).arithmetic(type, rounds, &sinks[i].value);
    });
    double total = 0;
    for (double each : done) total += each;
    return total / timer.seconds();
  };
  // The first rounds wake the clock and the wide units; their rate sets the length of the others.
  constexpr double kSeconds = 0.02;
  int64_t rounds = 1000;
  for (int i = 0; i < 3; ++i) {
    const Timer timer;
    round(rounds);
    rounds = std::max<int64_t>(1000, static_cast<int64_t>(static_cast<double>(rounds) * kSeconds /
                                                          std::max(timer.seconds(), 1e-6)));
  }
  std::vector<double> rates(7);
  for (double& rate : rates) rate = round(rounds);
  return median(rates);
}

int64_t moved_bytes(std::span<const ProbeStream> streams) {
  int64_t bytes = 0;
  for (const ProbeStream& s : streams)
    bytes += s.kind == StreamKind::kUpdate ? 2 * s.bytes : s.bytes;
  return bytes;
}

BandwidthProbe::BandwidthProbe(Context& context, std::span<const ProbeStream> streams)
    : context_(context), mark_(context.scratch().mark()) {
  if (streams.empty() || streams.size() > kMostStreams) {
    throw ShapeError("BandwidthProbe: {} streams, must be 1 to {}", streams.size(), kMostStreams);
  }
  for (const ProbeStream& stream : streams) {
    const auto i = static_cast<size_t>(count_++);
    streams_[i] = {stream.kind, std::max<int64_t>(kLine, stream.bytes / kLine * kLine)};
    memory_[i] = static_cast<std::byte*>(
        context.scratch().take_bytes(static_cast<size_t>(streams_[i].bytes)));
  }
  // Touch first, each thread what it will use.
  for (int i = 0; i < count_; ++i) {
    const auto at = static_cast<size_t>(i);
    const ProbeStream whole = streams_[at];
    streams_[at].kind = StreamKind::kWrite;
    pass(1024, false);
    streams_[at] = whole;
  }
  double best = 0;
  for (int64_t lines : {int64_t{16}, int64_t{64}, int64_t{1024}}) {
    for (bool non_temporal : {false, true}) {
      pass(lines, non_temporal);
      const double rate =
          median({pass(lines, non_temporal), pass(lines, non_temporal), pass(lines, non_temporal)});
      if (rate <= best) continue;
      best = rate;
      block_lines_ = lines;
      non_temporal_ = non_temporal;
    }
  }
}

BandwidthProbe::~BandwidthProbe() {
  context_.scratch().release(mark_);
}

double BandwidthProbe::run() {
  return pass(block_lines_, non_temporal_);
}

// Streams advance together: in each step the largest one moves `block_lines`, the others their
// share.
double BandwidthProbe::pass(int64_t block_lines, bool non_temporal) {
  int64_t most = 0;
  for (int i = 0; i < count_; ++i) most = std::max(most, streams_[i].bytes);
  const int64_t steps = std::max<int64_t>(1, most / (block_lines * kLine));
  const auto move = kernels(context_).move;
  std::vector<Sink> sinks(static_cast<size_t>(context_.threads()));
  const Timer timer;
  context_.parallel_for(context_.threads(), [&](int64_t task, int) {
    const int64_t threads = context_.threads();
    Sink sink;
    for (int64_t s = steps * task / threads; s < steps * (task + 1) / threads; ++s) {
      for (int i = 0; i < count_; ++i) {
        const int64_t lines = streams_[i].bytes / kLine;
        const int64_t begin = lines * s / steps;
        const int64_t end = lines * (s + 1) / steps;
        if (begin == end) continue;
        move(streams_[i].kind, non_temporal, memory_[i] + begin * kLine, (end - begin) * kLine,
             &sink.value);
      }
    }
    sinks[static_cast<size_t>(task)] = sink;
  });
  return static_cast<double>(moved_bytes({streams_, static_cast<size_t>(count_)})) /
         timer.seconds();
}

}  // namespace degu
