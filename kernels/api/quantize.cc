#include "kernels/api/quantize.h"

#include "kernels/api/check.h"
#include "kernels/dispatch.h"
#include "kernels/tables/quantize.h"
#include "tensor/trace.h"

namespace degu {
namespace {

const QuantizeKernels& kernels(const Context& context) {
  return kernels_for<QuantizeKernels>(context, "quantize");
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
  kernels(context).rows(context, x_RD, out);
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

void check_quantized(const char* op, const QuantizedWeight& weight, DeviceType device) {
  const SchemeInfo& info = scheme_info(weight.scheme);
  if (!info.quantized()) throw ShapeError("{}: {} is not a quantized scheme", op, info.name);
  if (weight.shape.rank() != 2 && weight.shape.rank() != 3) {
    throw ShapeError("{}: the weight is {}; pass [E, F, D] or [F, D]", op, weight.shape.str());
  }
  const auto expect = [&](const char* name, const AnyView& view, DType type, const Shape& shape) {
    if (view.device != device || view.dtype != type || view.shape != shape) {
      throw ShapeError("{}: {} are {} {}, need {} {} in {} memory for {} {}", op, name,
                       dtype_name(view.dtype), view.shape.str(), dtype_name(type), shape.str(),
                       device == DeviceType::kCpu ? "host" : "the device's", info.name,
                       weight.shape.str());
    }
  };
  expect("codes", weight.codes, info.weight, code_shape(weight.scheme, weight.shape));
  expect("scales", weight.scales, DType::kBF16, scale_shape(weight.shape));
}

void quantize_weight(Context& context, AnyView w_EFD, const QuantizedWeight& out) {
  const TraceScope span(context, "quantize_weight");
  constexpr const char* kOp = "quantize_weight";
  check_quantized(kOp, out, context.device());
  check::type(context, kOp, "w", w_EFD, {DType::kF32});
  if (w_EFD.shape != out.shape) {
    throw ShapeError("{}: w is {}, the result {}", kOp, w_EFD.shape.str(), out.shape.str());
  }
  const int64_t bad = kernels(context).weight(context, w_EFD, out);
  if (bad >= 0) {
    throw DataError("{}: row {} of the weight holds an infinity or NaN; it cannot be quantized",
                    kOp, bad);
  }
}

void dequantize_weight(Context& context, const QuantizedWeight& weight, AnyView w_EFD) {
  const TraceScope span(context, "dequantize_weight");
  check_quantized("dequantize_weight", weight, context.device());
  check::floating(context, "dequantize_weight", "w", w_EFD);
  check::elements("dequantize_weight", "w", w_EFD, weight.shape.elements());
  kernels(context).dequantize(context, weight, w_EFD);
}

}  // namespace degu
