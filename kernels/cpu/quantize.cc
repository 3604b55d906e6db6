#include "kernels/cpu/quantize.h"

#include "kernels/cpu/int_vector.h"
#include "kernels/cpu/sweep.h"

namespace degu {
namespace {

constexpr int kVectors = static_cast<int>(kScaleGroup) / VecF::kLanes;

// One whole group. Magnitudes are compared as integers: then infinities and NaN are the largest.
template <class T>
[[gnu::always_inline]] inline float quantize_group(const T* x, int8_t* codes) {
  VecF value[kVectors];
  VecI most = broadcast_int(0);
  for (int i = 0; i < kVectors; ++i) {
    value[i] = load(x + i * VecF::kLanes);
    most = max(most, word_bits(value[i]) & broadcast_int(0x7fffffff));
  }
  const auto largest = std::bit_cast<float>(max_lane(most));
  const bool finite = largest < std::bit_cast<float>(0x7f800000);
  const bool zero_group = !(largest >= 0x1p-100f) || !finite;
  const VecF inverse = broadcast(zero_group ? 0.0f : 127.0f / largest);
  if (zero_group) {
    for (VecF& each : value) each = zero();
  }
  for (int i = 0; i < kVectors; ++i) store_rounded(codes + i * VecF::kLanes, value[i] * inverse);
  if (!finite) return std::bit_cast<float>(0x7fc00000);
  return zero_group ? 0.0f : largest / 127.0f;
}

template <class T>
void quantize_row(const T* x, int64_t width, int8_t* codes, float* scales) {
  int64_t i = 0;
  for (; i + kScaleGroup <= width; i += kScaleGroup) {
    scales[i / kScaleGroup] = quantize_group(x + i, codes + i);
  }
  if (i < width) {
    alignas(64) T last[kScaleGroup] = {};
    std::memcpy(last, x + i, static_cast<size_t>(width - i) * sizeof(T));
    scales[i / kScaleGroup] = quantize_group(last, codes + i);
  }
}

template <class T>
void rows_typed(Context& context, const T* x, int64_t rows, int64_t width, const Activation& out) {
  const int64_t groups = scale_groups(width);
  auto* codes = static_cast<int8_t*>(out.values.data);
  auto* scales = static_cast<float*>(out.scales.data);
  sweep_rows(context, rows, width, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      quantize_row(x + r * width, width, codes + r * groups * kScaleGroup, scales + r * groups);
    }
  });
}

void rows(Context& context, AnyView x, const Activation& out) {
  if (x.dtype == DType::kBF16) {
    rows_typed(context, static_cast<const bf16*>(x.data), x.dim(0), x.dim(1), out);
  } else {
    rows_typed(context, static_cast<const float*>(x.data), x.dim(0), x.dim(1), out);
  }
}

}  // namespace

template <>
const cpu::QuantizeKernels cpu::Table<cpu::QuantizeKernels, cpu::kThisIsa>::value = {&rows};

}  // namespace degu
