// Accelerators of a build that has none.
#include "tensor/device.h"

namespace degu {
namespace {

[[noreturn]] void refuse() {
  throw DeviceError(
      "this build has no CUDA backend; configure it with DEGU_CUDA=ON (cmake --preset cuda), or "
      "use "
      "device: cpu");
}

}  // namespace

int device_count(DeviceType device) {
  return device == DeviceType::kCpu ? 1 : 0;
}

std::unique_ptr<DeviceState> open_device(DeviceType, int) {
  refuse();
}

void* allocate_device(DeviceType, size_t) {
  refuse();
}

void free_device(DeviceType, void*) noexcept {}

size_t device_memory_used() {
  return 0;
}

size_t device_memory_peak() {
  return 0;
}

size_t device_memory_free(DeviceType) {
  refuse();
}

}  // namespace degu
