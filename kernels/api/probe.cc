#include "kernels/api/probe.h"

#include <algorithm>
#include <vector>

#include "base/timer.h"
#include "kernels/dispatch.h"
#include "kernels/tables/probe.h"

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

}  // namespace

double probe_peak_flops(Context& context, DType type) {
  if (type != DType::kF32 && type != DType::kBF16 && type != DType::kI8) {
    throw ShapeError("probe_peak_flops: type is {}, must be fp32, bf16 or int8", dtype_name(type));
  }
  const auto round = [&](int64_t rounds) {
    return kernels(context).arithmetic(context, type, rounds);
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
  // Touch first, on the CPU each thread what it will use.
  for (int i = 0; i < count_; ++i) {
    const ProbeStream touch{StreamKind::kWrite, streams_[i].bytes};
    kernels(context).pass(context, {&touch, 1}, memory_ + i, 0);
  }
  double best = 0;
  for (int way = 0; way < kernels(context).ways; ++way) {
    pass(way);
    const double rate = median({pass(way), pass(way), pass(way)});
    if (rate <= best) continue;
    best = rate;
    way_ = way;
  }
}

BandwidthProbe::~BandwidthProbe() {
  context_.scratch().release(mark_);
}

double BandwidthProbe::run() {
  return pass(way_);
}

double BandwidthProbe::pass(int way) {
  return kernels(context_).pass(context_, {streams_, static_cast<size_t>(count_)}, memory_, way);
}

}  // namespace degu
