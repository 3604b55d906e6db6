// What a machine can do, as `degu bench kernels --out HW.yaml` measured it. Rates are per second
// over all threads, `_1thread` over one; operations count a multiply-add as two.
#pragma once

#include <string>

#include "config/fields.h"

namespace degu {

struct HardwareProfile {
  std::string cpu;  // model name
  std::string isa;  // instruction set that was measured
  int threads = 0;
  std::string date;  // YYYY-MM-DD, UTC
  double fp32_flops = 0;
  double bf16_flops = 0;
  double int8_ops = 0;
  double read_bandwidth = 0;  // bytes, from memory outside the caches
  double fp32_flops_1thread = 0;
  double bf16_flops_1thread = 0;
  double int8_ops_1thread = 0;
  double read_bandwidth_1thread = 0;

  void fields(Fields& f) {
    f("cpu", cpu, "model name of the processor");
    f("isa", isa, "instruction set that was measured");
    f("threads", threads, "threads behind the rates without a suffix");
    f("date", date, "day of the measurement, UTC");
    f("fp32_flops", fp32_flops, "fp32 operations per second, all threads");
    f("bf16_flops", bf16_flops, "bf16 operations per second, all threads");
    f("int8_ops", int8_ops, "int8 operations per second, all threads");
    f("read_bandwidth", read_bandwidth, "bytes read from memory per second, all threads");
    f("fp32_flops_1thread", fp32_flops_1thread, "fp32 operations per second, one thread");
    f("bf16_flops_1thread", bf16_flops_1thread, "bf16 operations per second, one thread");
    f("int8_ops_1thread", int8_ops_1thread, "int8 operations per second, one thread");
    f("read_bandwidth_1thread", read_bandwidth_1thread,
      "bytes read from memory per second, one thread");
  }
  // ConfigError when a rate is not above 0.
  void check() const;
};

// IoError when the file cannot be read; ConfigError (with file:line) when it is not such a profile.
HardwareProfile load_hardware(const std::string& path);

}  // namespace degu
