#include "kernels/api/quantize.h"

#include <atomic>

#include "kernels/api/check.h"
#include "kernels/cpu/quantize.h"
#include "kernels/dispatch.h"
#include "tensor/trace.h"

namespace degu {
namespace {

constexpr int64_t kRowsPerTask = 16;

Codes codes_of(const QuantizedWeight& weight) {
  return scheme_info(weight.scheme).codes;
}

// body(row) for every row of a weight or table.
template <class Body>
void each_row(Context& context, int64_t rows, Body&& body) {
  context.parallel_for((rows + kRowsPerTask - 1) / kRowsPerTask, [&](int64_t task, int) {
    for (int64_t r = task * kRowsPerTask; r < std::min(rows, (task + 1) * kRowsPerTask); ++r) {
      body(r);
    }
  });
}

// False when the row holds an infinity or NaN.
bool quantize_row(Codes codes, const float* w, int64_t inner, uint8_t* out, bf16* scales) {
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

}  // namespace

Activation Activation::take(Arena& arena, int64_t rows, int64_t width) {
  const int64_t groups = scale_groups(width);
  const AnyView codes = arena.take(DType::kI8, {rows, groups * kScaleGroup});
  return {codes, arena.take(DType::kF32, {rows, groups})};
}

void quantize_rows(Context& context, AnyView x_RD, const Activation& out) {
  const TraceScope span(context, "quantize_rows");
  constexpr const char* kOp = "quantize_rows";
  check::floating(context, kOp, "x_RD", x_RD);
  if (x_RD.shape.rank() != 2) {
    throw ShapeError("{}: x_RD is {}, must be [rows, D]", kOp, x_RD.shape.str());
  }
  const int64_t rows = x_RD.dim(0);
  const int64_t groups = scale_groups(x_RD.dim(1));
  check::type(context, kOp, "out.values", out.values, {DType::kI8});
  check::type(context, kOp, "out.scales", out.scales, {DType::kF32});
  check::elements(kOp, "out.values", out.values, rows * groups * kScaleGroup);
  check::elements(kOp, "out.scales", out.scales, rows * groups);
  kernels_for<cpu::QuantizeKernels>(context, "quantize").rows(context, x_RD, out);
}

Shape code_shape(Scheme scheme, const Shape& weight) {
  const int last = weight.rank() - 1;
  const int64_t bytes = code_bytes(scheme_info(scheme).codes, weight[last]);
  return last == 1 ? Shape{weight[0], bytes} : Shape{weight[0], weight[1], bytes};
}

Shape scale_shape(const Shape& weight) {
  const int last = weight.rank() - 1;
  const int64_t groups = scale_groups(weight[last]);
  return last == 1 ? Shape{weight[0], groups} : Shape{weight[0], weight[1], groups};
}

void check_quantized(const char* op, const QuantizedWeight& weight) {
  const SchemeInfo& info = scheme_info(weight.scheme);
  if (!info.quantized()) throw ShapeError("{}: {} is not a quantized scheme", op, info.name);
  if (weight.shape.rank() != 2 && weight.shape.rank() != 3) {
    throw ShapeError("{}: the weight is {}; pass [E, F, D] or [F, D]", op, weight.shape.str());
  }
  const auto expect = [&](const char* name, const AnyView& view, DType type, const Shape& shape) {
    if (view.device != DeviceType::kCpu || view.dtype != type || view.shape != shape) {
      throw ShapeError("{}: {} are {} {}, need {} {} in host memory for {} {}", op, name,
                       dtype_name(view.dtype), view.shape.str(), dtype_name(type), shape.str(),
                       info.name, weight.shape.str());
    }
  };
  expect("codes", weight.codes, info.weight, code_shape(weight.scheme, weight.shape));
  expect("scales", weight.scales, DType::kBF16, scale_shape(weight.shape));
}

void quantize_weight(Context& context, AnyView w_EFD, const QuantizedWeight& out) {
  const TraceScope span(context, "quantize_weight");
  constexpr const char* kOp = "quantize_weight";
  check_quantized(kOp, out);
  check::type(context, kOp, "w", w_EFD, {DType::kF32});
  if (w_EFD.shape != out.shape) {
    throw ShapeError("{}: w is {}, the result {}", kOp, w_EFD.shape.str(), out.shape.str());
  }
  const Codes codes = codes_of(out);
  const int64_t inner = out.inner();
  const auto* w = static_cast<const float*>(w_EFD.data);
  auto* bytes = static_cast<uint8_t*>(out.codes.data);
  auto* scales = static_cast<bf16*>(out.scales.data);
  std::atomic<int64_t> bad = -1;
  each_row(context, out.rows(), [&](int64_t r) {
    if (!quantize_row(codes, w + r * inner, inner, bytes + r * code_bytes(codes, inner),
                      scales + r * scale_groups(inner))) {
      bad = r;
    }
  });
  if (bad >= 0) {
    throw DataError("{}: row {} of the weight holds an infinity or NaN; it cannot be quantized",
                    kOp, bad.load());
  }
}

void dequantize_weight(Context& context, const QuantizedWeight& weight, AnyView w_EFD) {
  const TraceScope span(context, "dequantize_weight");
  check_quantized("dequantize_weight", weight);
  check::floating(context, "dequantize_weight", "w", w_EFD);
  check::elements("dequantize_weight", "w", w_EFD, weight.shape.elements());
  visit_floating(w_EFD, [&](auto* out) {
    each_row(context, weight.rows(),
             [&](int64_t r) { dequantize_row(weight, r, out + r * weight.inner()); });
  });
}

void dequantize_rows(Context& context, const QuantizedWeight& weight,
                     std::span<const int32_t> rows_T, AnyView y_TD) {
  const TraceScope span(context, "dequantize_rows");
  constexpr const char* kOp = "dequantize_rows";
  check_quantized(kOp, weight);
  check::floating(context, kOp, "y_TD", y_TD);
  const auto count = static_cast<int64_t>(rows_T.size());
  check::elements(kOp, "y_TD", y_TD, count * weight.inner());
  for (size_t t = 0; t < rows_T.size(); ++t) {
    if (rows_T[t] < 0 || rows_T[t] >= weight.rows()) {
      throw DataError("{}: row {} at place {} is outside the table of {} rows", kOp, rows_T[t], t,
                      weight.rows());
    }
  }
  visit_floating(y_TD, [&](auto* out) {
    each_row(context, count, [&](int64_t t) {
      dequantize_row(weight, rows_T[static_cast<size_t>(t)], out + t * weight.inner());
    });
  });
}

}  // namespace degu
