// A stand-in for the CUDA toolkit: kernels/cuda/*.cu and src/tensor/device_cuda.cc compile against
// it as plain C++ and run on the host, so that their tests run where no GPU is.
//
// What it keeps of a GPU
// - Each thread of a block is a fiber (block.h). Barriers, shuffles and tensor-core products make
//   threads wait for each other as the language says; in between, which thread runs first changes
//   from block to block. Threads that wait for ever are reported.
// - Asynchronous copies into shared memory happen as late as their waits allow, and shared memory
//   that nobody wrote holds NaN.
// - Streams (stream.cc) do what they were given as late as possible: when the host waits. Device
//   memory can be read and written only meanwhile; the host that touches it is killed.
// - A stream that captures keeps its calls for the graph; calls that wait or allocate are refused
//   meanwhile and spoil the capture.
// What it cannot show: races inside what one thread does between two waits, misaligned accesses,
// the order of sums inside a tensor core, and any speed.
//
// Names and meanings are those of the CUDA C++ Programming Guide and the Runtime API; only what
// degu uses is here.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <tuple>
#include <utility>

#include "tests/cuda_emulation/block.h"

#define __host__
#define __device__
#define __global__
#define __shared__ thread_local
#define __launch_bounds__(...)

struct alignas(16) uint4 {
  unsigned x, y, z, w;
};

using emulated::blockDim;
using emulated::blockIdx;
using emulated::dim3;
using emulated::gridDim;
using emulated::threadIdx;

// ---- The language's functions on the device.

inline void __syncthreads() {
  emulated::sync_block();
}
inline void __syncwarp(unsigned mask = 0xffffffffu) {
  emulated::meet_warp(mask, nullptr, nullptr);
}
[[noreturn]] inline void __trap() {
  emulated::trap();
}

namespace emulated {

// source(lane) is the lane whose value a lane gets.
template <class T, class Source>
T shuffle(unsigned mask, T value, Source source) {
  struct Item {
    T value;
    T result;
    int from;
  } item{value, value, source(lane_index())};
  meet_warp(mask, &item, [](void* const* all) {
    for (int lane = 0; lane < 32; ++lane) {
      if (all[lane] == nullptr) continue;
      auto* to = static_cast<Item*>(all[lane]);
      if (all[to->from] == nullptr) fail("a shuffle reads a lane that takes no part");
      to->result = static_cast<const Item*>(all[to->from])->value;
    }
  });
  return item.result;
}

}  // namespace emulated

// Lanes outside the segment of `width` lanes that the caller is in are none.
template <class T>
T __shfl_sync(unsigned mask, T value, int from, int width = 32) {
  return emulated::shuffle(mask, value,
                           [&](int lane) { return lane / width * width + from % width; });
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int with, int width = 32) {
  return emulated::shuffle(mask, value, [&](int lane) {
    return (lane ^ with) / width == lane / width ? lane ^ with : lane;
  });
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned by, int width = 32) {
  return emulated::shuffle(mask, value, [&](int lane) {
    const int from = lane - static_cast<int>(by);
    return from >= lane / width * width ? from : lane;
  });
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned by, int width = 32) {
  return emulated::shuffle(mask, value, [&](int lane) {
    const int from = lane + static_cast<int>(by);
    return from < (lane / width + 1) * width ? from : lane;
  });
}

template <class T>
unsigned __match_any_sync(unsigned mask, T value) {
  struct Item {
    T value;
    unsigned same;
  } item{value, 0};
  emulated::meet_warp(mask, &item, [](void* const* all) {
    for (int lane = 0; lane < 32; ++lane) {
      if (all[lane] == nullptr) continue;
      auto* to = static_cast<Item*>(all[lane]);
      for (int other = 0; other < 32; ++other) {
        const auto* with = static_cast<const Item*>(all[other]);
        if (with != nullptr && with->value == to->value) to->same |= 1u << other;
      }
    }
  });
  return item.same;
}
inline unsigned __ballot_sync(unsigned mask, bool vote) {
  const unsigned same = __match_any_sync(mask, vote);
  return vote ? same : mask & ~same;
}

template <class T, class U>
T atomicAdd(T* at, U by) {
  const T before = *at;
  *at = static_cast<T>(before + static_cast<T>(by));
  return before;
}

inline float __uint_as_float(unsigned bits) {
  return std::bit_cast<float>(bits);
}
inline float __int_as_float(int bits) {
  return std::bit_cast<float>(bits);
}
inline unsigned __float_as_uint(float value) {
  return std::bit_cast<unsigned>(value);
}
inline int __float2int_rn(float value) {
  return static_cast<int>(std::nearbyintf(value));
}
inline float __expf(float x) {
  return std::exp(x);
}
inline float __fdividef(float a, float b) {
  return a / b;
}
inline int __popc(unsigned bits) {
  return std::popcount(bits);
}
inline int __ffs(int bits) {
  return bits == 0 ? 0 : std::countr_zero(static_cast<unsigned>(bits)) + 1;
}
using std::isnan;
template <class T>
constexpr T min(T a, T b) {
  return b < a ? b : a;
}
template <class T>
constexpr T max(T a, T b) {
  return a < b ? b : a;
}

// ---- The runtime's functions on the host.

enum cudaError_t {
  cudaSuccess,
  cudaErrorInvalidValue,
  cudaErrorMemoryAllocation,
  cudaErrorInvalidConfiguration,
  cudaErrorInvalidDevice,
  cudaErrorNotReady,
  cudaErrorNoKernelImageForDevice,
  cudaErrorInvalidDeviceFunction,
  cudaErrorLaunchFailure,
  cudaErrorStreamCaptureUnsupported,
  cudaErrorStreamCaptureInvalidated,
};
enum cudaMemcpyKind { cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost, cudaMemcpyDeviceToDevice };
enum cudaStreamCaptureMode { cudaStreamCaptureModeThreadLocal };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
inline constexpr unsigned cudaHostAllocDefault = 0;
inline constexpr unsigned cudaEventDisableTiming = 2;
inline constexpr unsigned cudaStreamNonBlocking = 1;

struct CUstream_st;
struct CUevent_st;
using cudaStream_t = CUstream_st*;
using cudaEvent_t = CUevent_st*;
struct CUgraph_st;
struct CUgraphExec_st;
struct CUgraphNode_st;
using cudaGraph_t = CUgraph_st*;
using cudaGraphExec_t = CUgraphExec_st*;
using cudaGraphNode_t = CUgraphNode_st*;

struct cudaUUID_t {
  char bytes[16];
};
struct cudaDeviceProp {
  char name[256];
  cudaUUID_t uuid;
  size_t totalGlobalMem;
  int multiProcessorCount;
};
struct cudaLaunchConfig_t {
  dim3 gridDim;
  dim3 blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
};

cudaError_t cudaGetLastError();
const char* cudaGetErrorString(cudaError_t error);
cudaError_t cudaGetDeviceCount(int* count);
cudaError_t cudaSetDevice(int device);
cudaError_t cudaGetDevice(int* device);
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device);
cudaError_t cudaDeviceGetPCIBusId(char* id, int bytes, int device);
cudaError_t cudaDeviceSynchronize();
cudaError_t cudaMemGetInfo(size_t* free, size_t* all);

cudaError_t cudaMalloc(void** memory, size_t bytes);
cudaError_t cudaFree(void* memory);
cudaError_t cudaHostAlloc(void** memory, size_t bytes, unsigned flags);
cudaError_t cudaFreeHost(void* memory);
cudaError_t cudaMemset(void* memory, int value, size_t bytes);
cudaError_t cudaMemsetAsync(void* memory, int value, size_t bytes, cudaStream_t stream);
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream);

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags);
cudaError_t cudaStreamDestroy(cudaStream_t stream);
cudaError_t cudaStreamSynchronize(cudaStream_t stream);
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags = 0);
cudaError_t cudaEventCreate(cudaEvent_t* event);
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned flags);
cudaError_t cudaEventDestroy(cudaEvent_t event);
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream);
cudaError_t cudaEventQuery(cudaEvent_t event);
cudaError_t cudaEventSynchronize(cudaEvent_t event);
cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t begin, cudaEvent_t end);

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode);
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph);
cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t* nodes, size_t* count);
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* ready, cudaGraph_t graph, uint64_t flags);
cudaError_t cudaGraphLaunch(cudaGraphExec_t ready, cudaStream_t stream);
cudaError_t cudaGraphDestroy(cudaGraph_t graph);
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t ready);

namespace emulated {

cudaError_t set_shared_limit(const void* kernel, int bytes);
cudaError_t enqueue_kernel(const void* kernel, const cudaLaunchConfig_t& config,
                           std::function<void()> thread);

}  // namespace emulated

template <class Kernel>
cudaError_t cudaFuncSetAttribute(Kernel* kernel, cudaFuncAttribute, int bytes) {
  return emulated::set_shared_limit(reinterpret_cast<const void*>(kernel), bytes);
}
template <class... Parameters, class... Args>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Args&&... args) {
  return emulated::enqueue_kernel(
      reinterpret_cast<const void*>(kernel), *config,
      [kernel, given = std::tuple<Parameters...>(std::forward<Args>(args)...)] {
        std::apply(kernel, given);
      });
}
