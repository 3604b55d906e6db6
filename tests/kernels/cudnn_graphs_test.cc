// cuDNN is asked about a GPU that is described to it: it has kernels for what training asks of
// attention on Hopper.
#include "kernels/cuda/cudnn_graphs.h"

#include <dlfcn.h>
#include <catch2/catch.hpp>

#include "base/error.h"

namespace degu {
namespace {

constexpr const char* kH200 = R"({"cudaDeviceId": 0, "deviceVer": 900, "driverVer": 13000,
"deviceName": "NVIDIA H200", "maxGridSize": [2147483647, 65535, 65535],
"maxBlockSize": [1024, 1024, 64], "regsPerBlock": 65536, "multiProcessorCount": 132,
"smCountOrigin": 0, "warpSize": 32, "maxSharedMemoryPerBlock": 49152,
"maxSharedMemoryPerBlockOptin": 232448, "oversizedSharedMemoryPerBlock": 0,
"reservedSharedMemoryPerBlock": 1024, "maxRegistersPerSM": 65536, "maxCtasPerSM": 32,
"maxThreadsPerBlock": 1024, "maxThreadsPerSM": 2048, "pciDeviceId": 0, "isTccDriver": 0,
"supportCoopLaunch": 1, "smClockRateKHz": 1980000, "memClockRateKHz": 3201000,
"memoryBusWidth": 6144, "l2CacheSize": 62914560, "totalGlobalMem": 150754820096})";

std::unique_ptr<cuda::CudnnLibrary> library() {
  // cuDNN's parts name the driver, which only a machine with a GPU has; the toolkit's stand-in is
  // enough to load them.
  if (::dlopen("libcuda.so.1", RTLD_NOW) == nullptr) {
    ::dlopen(DEGU_CUDA_DRIVER_STUB, RTLD_NOW | RTLD_GLOBAL);
  }
  try {
    return cuda::open_cudnn_for(kH200, 90);
  } catch (const DeviceError& error) {
    WARN("skipped: " << error.what());
    return nullptr;
  }
}

TEST_CASE("cuDNN has kernels for attention over packed sequences on Hopper") {
  const auto cudnn = library();
  if (cudnn == nullptr) return;
  const cuda::PackedShape shapes[] = {
      {.sequences = 64, .longest = 4096, .rows = 16384, .heads = 16, .kv_heads = 16, .width = 128},
      {.sequences = 8, .longest = 4096, .rows = 32768, .heads = 32, .kv_heads = 4, .width = 128},
      {.sequences = 1, .longest = 256, .rows = 256, .heads = 4, .kv_heads = 2, .width = 64}};
  for (const cuda::PackedShape& s : shapes) {
    INFO(s.sequences << " sequences of " << s.longest << ", " << s.heads << " heads");
    CHECK_NOTHROW(cudnn->plan_forward(s));
    CHECK_NOTHROW(cudnn->plan_backward(s));
  }
  const auto plan = cudnn->plan_forward(shapes[2]);
  CHECK_THROWS_AS(plan->run({}, nullptr), DeviceError);
}

TEST_CASE("what cuDNN has no plan for is one line that names the way out") {
  const auto cudnn = library();
  if (cudnn == nullptr) return;
  cuda::PackedShape s{
      .sequences = 2, .longest = 256, .rows = 256, .heads = 4, .kv_heads = 2, .width = 12};
  CHECK_THROWS_WITH(cudnn->plan_forward(s), Catch::Contains("train.attention: own"));
  s.width = 512;  // more than gradients take
  CHECK_THROWS_WITH(cudnn->plan_backward(s), Catch::Contains("train.attention: own"));
}

}  // namespace
}  // namespace degu
