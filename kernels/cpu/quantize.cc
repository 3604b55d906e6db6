#include "kernels/tables/quantize.h"

#include <atomic>

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

constexpr int64_t kRowsPerTask = 16;

// body(row) for every row of a weight or table.
template <class Body>
void each_row(Context& context, int64_t rows, Body&& body) {
  context.parallel_for((rows + kRowsPerTask - 1) / kRowsPerTask, [&](int64_t task, int) {
    for (int64_t r = task * kRowsPerTask; r < std::min(rows, (task + 1) * kRowsPerTask); ++r) {
      body(r);
    }
  });
}

Codes codes_of(const QuantizedWeight& weight) {
  Codes codes = Codes::kNone;  // not from the table of schemes: the object shares no symbol
  visit_format(weight.scheme, [&]<class Format>() { codes = Format::kInfo.codes; });
  return codes;
}

// False when the row holds an infinity or NaN.
bool quantize_weight_row(Codes codes, const float* w, int64_t inner, uint8_t* out, bf16* scales) {
  for (int64_t begin = 0; begin < inner; begin += kScaleGroup) {
    const int64_t end = std::min(inner, begin + kScaleGroup);
    float most = 0;
    for (int64_t i = begin; i < end; ++i) {
      if (!std::isfinite(w[i])) return false;
      most = std::max(most, std::fabs(w[i]));
    }
    const float scale = weight_scale(codes, most);
    scales[begin / kScaleGroup] = bf16(scale);
    for (int64_t i = begin; i < end; ++i) store_code(codes, out, i, code_of(codes, w[i], scale));
  }
  return true;
}

int64_t round_weight(Context& context, AnyView w_EFD, const QuantizedWeight& out) {
  const Codes codes = codes_of(out);
  const int64_t inner = out.inner();
  const auto* w = static_cast<const float*>(w_EFD.data);
  auto* bytes = static_cast<uint8_t*>(out.codes.data);
  auto* scales = static_cast<bf16*>(out.scales.data);
  std::atomic<int64_t> bad = -1;
  each_row(context, out.rows(), [&](int64_t r) {
    if (!quantize_weight_row(codes, w + r * inner, inner, bytes + r * code_bytes(codes, inner),
                             scales + r * scale_groups(inner))) {
      bad = r;
    }
  });
  return bad;
}

template <class T>
void dequantize_row(const QuantizedWeight& weight, int64_t row, T* out) {
  const Codes codes = codes_of(weight);
  const int64_t inner = weight.inner();
  const auto* stored =
      static_cast<const uint8_t*>(weight.codes.data) + row * code_bytes(codes, inner);
  const auto* scales = static_cast<const bf16*>(weight.scales.data) + row * scale_groups(inner);
  for (int64_t i = 0; i < inner; ++i) {
    const float value = code_value(codes, stored_code(codes, stored, i));
    out[i] = static_cast<T>(value * static_cast<float>(scales[i / kScaleGroup]));
  }
}

template <class F>
void visit_floating(AnyView view, F&& f) {
  if (view.dtype == DType::kBF16) {
    f(static_cast<bf16*>(view.data));
  } else {
    f(static_cast<float*>(view.data));
  }
}

void dequantize(Context& context, const QuantizedWeight& weight, AnyView w_EFD) {
  visit_floating(w_EFD, [&](auto* out) {
    each_row(context, weight.rows(),
             [&](int64_t r) { dequantize_row(weight, r, out + r * weight.inner()); });
  });
}

}  // namespace

template <>
const QuantizeKernels cpu::Table<QuantizeKernels, cpu::kThisIsa>::value = {&rows, &round_weight,
                                                                           &dequantize};

}  // namespace degu
