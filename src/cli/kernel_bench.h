// How `degu bench kernels` measures: this machine's peaks, and each operator's share of the one
// that bounds it.
//
// The bandwidth of shared memory changes from second to second, so every repetition measures the
// peak, the operator and the peak again, and the ratio is taken within the repetition; medians are
// reported.
#pragma once

#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "kernels/api/probe.h"
#include "shape/hardware.h"
#include "tensor/tensor.h"

namespace degu {

enum class Bound { kFp32, kBf16, kInt8, kMemory };

// One operator at one size. `run` calls it once; `data` owns what it works on.
struct KernelCase {
  std::string name;
  std::string shape;
  Bound bound = Bound::kMemory;
  double work = 0;                   // operations per call; for kMemory the streams say it
  std::vector<ProbeStream> streams;  // kMemory: the bytes that must move
  double bar = 0;                    // the ratio it should reach; 0: none
  std::shared_ptr<void> data;
  std::function<void(Context&)> run;
};

// Builds a case. `scale` multiplies the number of rows: 1 is outside the caches, tests use less.
using MakeCase = KernelCase (*)(Context& context, double scale);
std::span<const MakeCase> compute_cases();  // kernel_cases_compute.cc
std::span<const MakeCase> scheme_cases();   // kernel_cases_schemes.cc
std::span<const MakeCase> memory_cases();   // kernel_cases_memory.cc

struct KernelRate {
  double rate = 0;         // operations or bytes per second
  double peak = 0;         // the same of the probe beside it
  double ratio = 0;        // median over repetitions, each against the mean of its two probes
  double peak_spread = 0;  // largest over smallest probe
};
KernelRate measure(Context& context, const KernelCase& kernel, int repetitions);

// Peaks of the context's threads and of one thread; takes about 3 s. CPU only.
HardwareProfile measure_hardware(Context& context);

// Peaks of the context's device.
struct DeviceRates {
  double fp32_flops = 0;
  double bf16_flops = 0;
  double int8_ops = 0;
  double read_bandwidth = 0;
};
DeviceRates measure_device(Context& context);

// A host tensor, in the context's memory.
Tensor on_device(Context& context, Tensor host);

// Values that look random, cheaply: 4,093 normal numbers repeated.
void fill_random(Context& context, AnyView view, uint64_t seed, double scale = 1.0);

}  // namespace degu
