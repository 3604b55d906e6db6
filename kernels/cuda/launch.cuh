// What every launcher uses: the context's stream, small arrays on the device, grid sizes.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <initializer_list>
#include <span>
#include <utility>

#include "tensor/context.h"
#include "tensor/cuda_state.h"

namespace degu::cuda {

// A block's dynamic shared memory.
alignas(1024) extern __shared__ uint4 dynamic_shared[];

namespace {

// Threads per block of passes that reduce nothing.
inline constexpr int kThreads = 256;
inline constexpr unsigned kAllLanes = 0xffffffffu;

inline CudaState& state_of(Context& context) {
  return static_cast<CudaState&>(*context.device_state());
}

// A host span as kernels read it: the caller's own copy, or one in scratch, uploaded in stream
// order; it lives until the ScratchScope around the launch ends.
template <class T>
const T* on_device(Context& context, std::span<const T> host, const T* own = nullptr) {
  if (own != nullptr || host.empty()) return own;
  void* copy = context.scratch().take_bytes(host.size_bytes());
  state_of(context).upload(copy, host.data(), host.size_bytes());
  return static_cast<const T*>(copy);
}

template <class T>
T* scratch_of(Context& context, int64_t elements) {
  return static_cast<T*>(context.scratch().take_bytes(static_cast<size_t>(elements) * sizeof(T)));
}

inline unsigned blocks_for(int64_t items, int64_t per_block) {
  return static_cast<unsigned>((items + per_block - 1) / per_block);
}

// Whether 16-byte accesses are right for rows of `width` elements of T at these addresses.
template <class T>
bool vectored(int64_t rows, int64_t width, std::initializer_list<const void*> addresses) {
  uintptr_t bits = rows > 1 ? static_cast<uintptr_t>(width) * sizeof(T) : 0;
  for (const void* each : addresses) bits |= reinterpret_cast<uintptr_t>(each);
  return bits % 16 == 0;
}

// How many blocks of how many threads, and their dynamic shared memory in bytes.
struct Grid {
  dim3 blocks;
  dim3 threads;
  int shared = 0;
};

// Starts kernel(args…) on the context's stream. DeviceError that names the operator when it could
// not be started.
template <class... Parameters, class... Args>
void launch_kernel(Context& context, const char* op, const Grid& grid,
                   void (*kernel)(Parameters...), Args&&... args) {
  constexpr int kUnasked = 48 * 1024;  // shared memory that every kernel may have
  if (grid.shared > kUnasked) {
    cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, grid.shared);
  }
  CudaState& state = state_of(context);
  cudaLaunchConfig_t config{};
  config.gridDim = grid.blocks;
  config.blockDim = grid.threads;
  config.dynamicSmemBytes = static_cast<size_t>(grid.shared);
  config.stream = state.stream();
  cudaLaunchKernelEx(&config, kernel, std::forward<Args>(args)...);
  state.check_launch(op);
}

// Stops the kernel with an error that the next wait reports: an index that the door could not
// check.
__device__ inline void require(bool good) {
  if (!good) __trap();
}

}  // namespace
}  // namespace degu::cuda
