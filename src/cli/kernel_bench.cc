#include "cli/kernel_bench.h"

#include <algorithm>
#include <cmath>
#include <ctime>
#include <fstream>

#include "base/random.h"
#include "base/timer.h"
#include "tensor/device.h"

namespace degu {
namespace {

// Outside the last-level cache of any processor this is likely to meet; many times a GPU's.
constexpr int64_t kReadBytes = int64_t{256} << 20;
constexpr int64_t kDeviceReadBytes = int64_t{1} << 30;

void wait(Context& context) {
  if (context.device_state() != nullptr) context.device_state()->synchronize();
}

double median(std::vector<double> values) {
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

std::string processor_name() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);) {
    if (line.starts_with("model name")) return line.substr(line.find(':') + 2);
  }
  return "unknown";
}

std::string today() {
  const std::time_t now = std::time(nullptr);
  std::tm utc{};
  gmtime_r(&now, &utc);
  char text[16];
  std::strftime(text, sizeof text, "%Y-%m-%d", &utc);
  return text;
}

double read_bandwidth(Context& context, int64_t bytes = kReadBytes) {
  const ProbeStream stream{StreamKind::kRead, bytes};
  BandwidthProbe probe(context, {&stream, 1});
  std::vector<double> rates(7);
  for (double& rate : rates) rate = probe.run();
  return median(rates);
}

// Calls per timing, so that one lasts at least `seconds`.
int64_t calls_for(Context& context, const KernelCase& kernel, double seconds) {
  kernel.run(context);  // touches its memory, wakes the threads
  wait(context);
  const Timer timer;
  kernel.run(context);
  wait(context);
  return std::max<int64_t>(
      1, static_cast<int64_t>(std::ceil(seconds / std::max(timer.seconds(), 1e-7))));
}

double time_calls(Context& context, const KernelCase& kernel, int64_t calls) {
  const Timer timer;
  for (int64_t i = 0; i < calls; ++i) kernel.run(context);
  wait(context);
  return timer.seconds() / static_cast<double>(calls);
}

}  // namespace

KernelRate measure(Context& context, const KernelCase& kernel, int repetitions) {
  std::unique_ptr<BandwidthProbe> bandwidth;
  const bool memory = kernel.bound == Bound::kMemory;
  if (memory) bandwidth = std::make_unique<BandwidthProbe>(context, kernel.streams);
  const double work = memory ? static_cast<double>(moved_bytes(kernel.streams)) : kernel.work;
  const auto peak = [&] {
    if (!memory) {
      return probe_peak_flops(context, kernel.bound == Bound::kInt8   ? DType::kI8
                                       : kernel.bound == Bound::kBf16 ? DType::kBF16
                                                                      : DType::kF32);
    }
    return median({bandwidth->run(), bandwidth->run(), bandwidth->run()});
  };
  const int64_t calls = calls_for(context, kernel, memory ? 0.02 : 0.06);
  std::vector<double> rates, peaks, ratios;
  peaks.push_back(peak());
  for (int i = 0; i < repetitions; ++i) {
    rates.push_back(work / time_calls(context, kernel, calls));
    peaks.push_back(peak());
    ratios.push_back(rates.back() / (0.5 * (peaks[peaks.size() - 2] + peaks.back())));
  }
  const auto [least, most] = std::minmax_element(peaks.begin(), peaks.end());
  return {median(rates), median(peaks), median(ratios), *most / *least};
}

HardwareProfile measure_hardware(Context& context) {
  HardwareProfile profile;
  profile.cpu = processor_name();
  profile.isa = std::string(isa_name(context.isa()));
  profile.threads = context.threads();
  profile.date = today();
  profile.fp32_flops = probe_peak_flops(context, DType::kF32);
  profile.bf16_flops = probe_peak_flops(context, DType::kBF16);
  profile.int8_ops = probe_peak_flops(context, DType::kI8);
  profile.read_bandwidth = read_bandwidth(context);
  Context one({.threads = 1, .scratch_bytes = 2 * kReadBytes, .isa = context.isa()});
  profile.fp32_flops_1thread = probe_peak_flops(one, DType::kF32);
  profile.bf16_flops_1thread = probe_peak_flops(one, DType::kBF16);
  profile.int8_ops_1thread = probe_peak_flops(one, DType::kI8);
  profile.read_bandwidth_1thread = read_bandwidth(one);
  return profile;
}

DeviceRates measure_device(Context& context) {
  return {.fp32_flops = probe_peak_flops(context, DType::kF32),
          .bf16_flops = probe_peak_flops(context, DType::kBF16),
          .int8_ops = probe_peak_flops(context, DType::kI8),
          .read_bandwidth = read_bandwidth(context, kDeviceReadBytes)};
}

Tensor on_device(Context& context, Tensor host) {
  if (context.device() == DeviceType::kCpu) return host;
  Tensor copied(host.dtype(), host.shape(), context.device());
  copy(context, host, copied);
  return copied;
}

void fill_random(Context& context, AnyView view, uint64_t seed, double scale) {
  constexpr int64_t kPeriod = 4093;
  std::vector<float> values(kPeriod);
  const RandomStream stream(seed, "kernel bench");
  for (size_t i = 0; i < values.size(); ++i)
    values[i] = static_cast<float>(scale * stream.normal(i));
  const OnHost on_host = OnHost::unfilled(context, view);
  const AnyView to = on_host;
  constexpr int64_t kPiece = int64_t{1} << 16;
  const int64_t n = view.elements();
  context.parallel_for((n + kPiece - 1) / kPiece, [&](int64_t task, int) {
    for (int64_t i = task * kPiece; i < std::min(n, (task + 1) * kPiece); ++i) {
      const float value = values[static_cast<size_t>(i % kPeriod)];
      if (to.dtype == DType::kBF16) {
        static_cast<bf16*>(to.data)[i] = bf16(value);
      } else {
        static_cast<float*>(to.data)[i] = value;
      }
    }
  });
  on_host.put_back();
}

}  // namespace degu
