#include "kernels/api/grouped_gemm.h"

#include "kernels/api/check.h"
#include "kernels/dispatch.h"
#include "kernels/tables/grouped_gemm.h"
#include "tensor/device.h"
#include "tensor/trace.h"

namespace degu {
namespace {

void check_offsets(const char* op, std::span<const int64_t> offsets, int64_t rows_of_x) {
  if (offsets.empty() || offsets.front() != 0) {
    throw ShapeError("{}: row offsets must start at 0", op);
  }
  for (size_t i = 1; i < offsets.size(); ++i) {
    if (offsets[i] < offsets[i - 1]) {
      throw ShapeError("{}: row offsets decrease at {} ({} after {})", op, i, offsets[i],
                       offsets[i - 1]);
    }
  }
  if (offsets.back() > rows_of_x) {
    throw ShapeError("{}: groups hold {} rows but x has {}", op, offsets.back(), rows_of_x);
  }
}

void check_matrix(const Context& context, const char* op, const char* name, const AnyView& view,
                  int64_t columns) {
  check::on_device(context, op, name, view);
  if (view.shape.rank() != 2 || view.dim(1) != columns) {
    throw ShapeError("{}: {} has shape {}, needs [rows, {}]", op, name, view.shape.str(), columns);
  }
}

void check_float(const char* op, const char* name, const AnyView& view) {
  if (view.dtype != DType::kF32 && view.dtype != DType::kBF16) {
    throw ShapeError("{}: {} is {}, needs fp32 or bf16", op, name, dtype_name(view.dtype));
  }
}

}  // namespace

void grouped_gemm(Context& context, const Activation& x_RD, const PackedWeight& w,
                  const RowGroups& groups, AnyView y_RF, const Epilogue& epilogue) {
  const TraceScope span(context, "grouped_gemm");
  constexpr const char* kOp = "grouped_gemm";
  const SchemeInfo& info = scheme_info(w.scheme);
  const AnyView& x = x_RD.values;
  if (x.dtype != info.activation || static_cast<bool>(x_RD.scales) != info.integer_activations()) {
    throw ShapeError("{}: x is {} {} scales but scheme {} multiplies {}", kOp, dtype_name(x.dtype),
                     x_RD.scales ? "with" : "without", info.name, dtype_name(info.activation));
  }
  if (info.integer_activations()) {
    check_matrix(context, kOp, "x's codes", x, scale_groups(w.inner) * kScaleGroup);
    check_matrix(context, kOp, "x's scales", x_RD.scales, scale_groups(w.inner));
    if (x_RD.scales.dtype != DType::kF32 || x_RD.scales.dim(0) != x.dim(0)) {
      throw ShapeError("{}: x's scales are {} {}, need fp32 with {} rows", kOp,
                       dtype_name(x_RD.scales.dtype), x_RD.scales.shape.str(), x.dim(0));
    }
  } else {
    check_matrix(context, kOp, "x", x, w.inner);
  }
  check_matrix(context, kOp, "y", y_RF, w.outputs);
  check_float(kOp, "y", y_RF);
  check_offsets(kOp, groups.offsets, x.dim(0));
  if (groups.groups() != w.experts) {
    throw ShapeError("{}: {} row groups for {} experts", kOp, groups.groups(), w.experts);
  }
  if (y_RF.dim(0) < groups.rows()) {
    throw ShapeError("{}: y has {} rows, needs {}", kOp, y_RF.dim(0), groups.rows());
  }
  if (w.device != context.device()) {
    throw ShapeError("{}: w was packed on another device than the context's; pack it there", kOp);
  }
  if (w.isa != context.isa()) {
    throw ShapeError("{}: w was packed for {}, the context runs {}; pack it again", kOp,
                     isa_name(w.isa), isa_name(context.isa()));
  }
  if (const AnyView& add = epilogue.add_RF) {
    check_matrix(context, kOp, "epilogue.add", add, w.outputs);
    if (add.dtype != y_RF.dtype || add.dim(0) < groups.rows()) {
      throw ShapeError("{}: epilogue.add is {} {}, needs {} with {} rows", kOp,
                       dtype_name(add.dtype), add.shape.str(), dtype_name(y_RF.dtype),
                       groups.rows());
    }
  }
  kernels_for<GroupedGemmKernels>(context, "grouped_gemm")
      .forward(context, x_RD, w, groups, y_RF, epilogue);
}

void gemm(Context& context, const Activation& x_RD, const PackedWeight& w, AnyView y_RF,
          const Epilogue& epilogue) {
  if (x_RD.values.shape.rank() != 2) {
    throw ShapeError("gemm: x has shape {}, needs [rows, {}]", x_RD.values.shape.str(), w.inner);
  }
  const int64_t rows = x_RD.values.dim(0);
  const int64_t offsets[] = {0, rows};
  DeviceState* state = context.device_state();
  const int64_t* there = state == nullptr ? nullptr : state->one_group(rows);
  grouped_gemm(context, x_RD, w, RowGroups{offsets, there}, y_RF, epilogue);
}

void grouped_gemm_dw(Context& context, AnyView dy_RF, AnyView x_RD, const UnitSegments& segments,
                     AnyView dw_SEFD, Write write) {
  const TraceScope span(context, "grouped_gemm_dw");
  constexpr const char* kOp = "grouped_gemm_dw";
  const Shape& shape = dw_SEFD.shape;
  const int rank = shape.rank();
  if (rank < 2 || dw_SEFD.dtype != DType::kF32) {
    throw ShapeError("{}: dw is {} {}, needs fp32 [slots, groups, F, D]", kOp,
                     dtype_name(dw_SEFD.dtype), shape.str());
  }
  check::on_device(context, kOp, "dw", dw_SEFD);
  check_matrix(context, kOp, "dy", dy_RF, shape[rank - 2]);
  check_matrix(context, kOp, "x", x_RD, shape[rank - 1]);
  check_float(kOp, "x", x_RD);
  if (x_RD.dtype != dy_RF.dtype) {
    throw ShapeError("{}: x is {} but dy is {}", kOp, dtype_name(x_RD.dtype),
                     dtype_name(dy_RF.dtype));
  }
  if (!segments.consistent() || segments.units < 1 || segments.slots < 1 || segments.groups < 0) {
    throw ShapeError("{}: {} segment offsets for {} groups x {} slots x {} units", kOp,
                     segments.offsets.size(), segments.groups, segments.slots, segments.units);
  }
  check_offsets(kOp, segments.offsets, x_RD.dim(0));
  if (dy_RF.dim(0) < segments.rows()) {
    throw ShapeError("{}: dy has {} rows, needs {}", kOp, dy_RF.dim(0), segments.rows());
  }
  if (dw_SEFD.elements() != segments.slots * segments.groups * shape[rank - 2] * shape[rank - 1]) {
    throw ShapeError("{}: dw has shape {} for {} slots and {} groups", kOp, shape.str(),
                     segments.slots, segments.groups);
  }
  kernels_for<GroupedGemmDwKernels>(context, "grouped_gemm")
      .weight_gradient(context, dy_RF, x_RD, segments, dw_SEFD, write);
}

}  // namespace degu
