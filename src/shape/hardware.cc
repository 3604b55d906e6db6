#include "shape/hardware.h"

#include "config/yaml.h"

namespace degu {

void HardwareProfile::check() const {
  const auto positive = [](const char* name, double value) {
    if (!(value > 0)) {
      throw ConfigError("{} is {}, must be above 0; measure with `degu bench kernels --out FILE`",
                        name, value);
    }
  };
  if (threads < 1) throw ConfigError("threads is {}, must be 1 or more", threads);
  positive("fp32_flops", fp32_flops);
  positive("bf16_flops", bf16_flops);
  positive("int8_ops", int8_ops);
  positive("read_bandwidth", read_bandwidth);
  positive("fp32_flops_1thread", fp32_flops_1thread);
  positive("bf16_flops_1thread", bf16_flops_1thread);
  positive("int8_ops_1thread", int8_ops_1thread);
  positive("read_bandwidth_1thread", read_bandwidth_1thread);
}

HardwareProfile load_hardware(const std::string& path) {
  return load_config<HardwareProfile>(path);
}

}  // namespace degu
