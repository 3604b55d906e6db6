// The CUDA backend's tables of entry points, and the list of operators that have one.
//
//   // kernels/cuda/rmsnorm.cu
//   template <> const RmsNormKernels cuda::Table<RmsNormKernels>::value = {&forward, &backward};
//
// A build without CUDA (DEGU_CUDA_BUILT is not defined) refers to no table, so nothing is linked.
#pragma once

#include "base/error.h"

namespace degu {

struct AdamWKernels;
struct AttentionBackwardKernels;
struct AttentionKernels;
struct CrossEntropyKernels;
struct ElementwiseKernels;
struct EmbeddingKernels;
struct GroupedGemmDwKernels;
struct GroupedGemmKernels;
struct PackedAttentionKernels;
struct PermuteKernels;
struct ProbeKernels;
struct QuantizeKernels;
struct RmsNormKernels;
struct RotaryKernels;
struct RouterKernels;
struct SwigluKernels;
struct WeightKernels;

namespace cuda {

#ifdef DEGU_CUDA_BUILT
inline constexpr bool kBuilt = true;
#else
inline constexpr bool kBuilt = false;
#endif

template <class Kernels>
struct Table {
  static const Kernels value;
};

// Operators that this backend has. To add one: its line here, its source in kernels/CMakeLists.txt.
template <class Kernels>
inline constexpr bool kHas = false;
template <>
inline constexpr bool kHas<AdamWKernels> = true;
template <>
inline constexpr bool kHas<AttentionBackwardKernels> = true;
template <>
inline constexpr bool kHas<AttentionKernels> = true;
template <>
inline constexpr bool kHas<CrossEntropyKernels> = true;
template <>
inline constexpr bool kHas<ElementwiseKernels> = true;
template <>
inline constexpr bool kHas<EmbeddingKernels> = true;
template <>
inline constexpr bool kHas<GroupedGemmDwKernels> = true;
template <>
inline constexpr bool kHas<GroupedGemmKernels> = true;
#ifdef DEGU_CUDNN_BUILT
template <>
inline constexpr bool kHas<PackedAttentionKernels> = true;
#endif
template <>
inline constexpr bool kHas<PermuteKernels> = true;
template <>
inline constexpr bool kHas<ProbeKernels> = true;
template <>
inline constexpr bool kHas<QuantizeKernels> = true;
template <>
inline constexpr bool kHas<RmsNormKernels> = true;
template <>
inline constexpr bool kHas<RotaryKernels> = true;
template <>
inline constexpr bool kHas<RouterKernels> = true;
template <>
inline constexpr bool kHas<SwigluKernels> = true;
template <>
inline constexpr bool kHas<WeightKernels> = true;

template <class Kernels>
const Kernels& kernels([[maybe_unused]] const char* op) {
  if constexpr (kBuilt && kHas<Kernels>) {
    return Table<Kernels>::value;
  } else {
    throw DeviceError("{}: the CUDA backend has no such operator yet; use device: cpu", op);
  }
}

}  // namespace cuda
}  // namespace degu
