// What every launcher uses: the context's stream, small arrays on the device, grid sizes.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <initializer_list>
#include <span>

#include "tensor/context.h"
#include "tensor/cuda_state.h"

namespace degu::cuda {
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

// Lets a kernel have more than 48 KiB of dynamic shared memory. A launch that could not have it
// fails and is reported there.
template <class Kernel>
void allow_shared(Kernel* kernel, int bytes) {
  cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
}

// Stops the kernel with an error that the next wait reports: an index that the door could not
// check.
__device__ inline void require(bool good) {
  if (!good) __trap();
}

}  // namespace
}  // namespace degu::cuda
