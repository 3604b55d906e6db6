#include "kernels/api/permute.h"

#include <algorithm>

#include "kernels/api/check.h"
#include "kernels/dispatch.h"
#include "kernels/tables/permute.h"
#include "tensor/trace.h"

namespace degu {
namespace {

const PermuteKernels& kernels(const Context& context) {
  return kernels_for<PermuteKernels>(context, "permute");
}

// Every index is in [least, limit). Those on an accelerator are checked where they are used.
void indices(const char* op, const char* name, const AnyView& view, int32_t least, int64_t limit) {
  if (view.device != DeviceType::kCpu) return;
  const auto* index = static_cast<const int32_t*>(view.data);
  const int64_t n = view.elements();
  bool good = true;
  for (int64_t i = 0; i < n; ++i) good &= index[i] >= least && index[i] < limit;
  for (int64_t i = 0; !good && i < n; ++i) {
    if (index[i] < least || index[i] >= limit) {
      throw ShapeError("{}: {}[{}] is {}, must be in [{}, {})", op, name, i, index[i], least,
                       limit);
    }
  }
}

void matrix(const char* op, const char* name, const AnyView& view) {
  if (view.shape.rank() != 2) {
    throw ShapeError("{}: {} is {}, must have two dimensions", op, name, view.shape.str());
  }
}

// gate_TK-like: fp32 of row_TK's shape.
void per_slot(const Context& context, const char* op, const char* name, const AnyView& view,
              const AnyView& row_TK) {
  check::type(context, op, name, view, {DType::kF32});
  check::elements(op, name, view, row_TK.elements());
}

void check_plan(const Context& context, const AnyView& expert_TK, int64_t experts, int64_t capacity,
                std::span<const int64_t> group_offsets, int64_t offsets, const AnyView& row_TK,
                const AnyView& token_R) {
  constexpr const char* kOp = "route_plan";
  check::type(context, kOp, "expert_TK", expert_TK, {DType::kI32});
  matrix(kOp, "expert_TK", expert_TK);
  check::same(context, kOp, "row_TK", row_TK, "expert_TK", expert_TK);
  check::type(context, kOp, "token_R", token_R, {DType::kI32});
  if (token_R.elements() < expert_TK.elements()) {
    throw ShapeError("{}: token_R holds {}, must hold T * K = {}", kOp, token_R.elements(),
                     expert_TK.elements());
  }
  if (experts < 1 || offsets != experts + 1) {
    throw ShapeError("{}: {} offsets for {} experts, must be one more", kOp, offsets, experts);
  }
  if (capacity < 0)
    throw ShapeError("{}: capacity is {}, must be 0 (keep all) or more", kOp, capacity);
  if (capacity > 0 && (group_offsets.empty() || group_offsets.front() != 0 ||
                       group_offsets.back() != expert_TK.dim(0))) {
    throw ShapeError("{}: capacity groups must run from token 0 to {}", kOp, expert_TK.dim(0));
  }
  indices(kOp, "expert_TK", expert_TK, 0, experts);
}

}  // namespace

void route_plan(Context& context, AnyView expert_TK, int64_t experts, int64_t capacity,
                std::span<const int64_t> group_offsets, AnyView offsets_E, AnyView row_TK,
                AnyView token_R, AnyView dropped) {
  const TraceScope span(context, "route_plan");
  check_plan(context, expert_TK, experts, capacity, group_offsets, offsets_E.elements(), row_TK,
             token_R);
  check::type(context, "route_plan", "offsets_E", offsets_E, {DType::kI64});
  check::type(context, "route_plan", "dropped", dropped, {DType::kI64});
  check::elements("route_plan", "dropped", dropped, 1);
  kernels(context).route_plan(context, expert_TK, experts, capacity, group_offsets,
                              static_cast<int64_t*>(offsets_E.data), row_TK, token_R,
                              static_cast<int64_t*>(dropped.data));
}

void unit_offsets(Context& context, AnyView offsets_E, AnyView token_R,
                  std::span<const int64_t> units, AnyView offsets_EU) {
  const TraceScope span(context, "unit_offsets");
  constexpr const char* kOp = "unit_offsets";
  check::type(context, kOp, "offsets_E", offsets_E, {DType::kI64});
  check::type(context, kOp, "token_R", token_R, {DType::kI32});
  check::type(context, kOp, "offsets_EU", offsets_EU, {DType::kI64});
  if (units.size() < 2 || !std::is_sorted(units.begin(), units.end())) {
    throw ShapeError("{}: units must be given by their first tokens in order, then the end", kOp);
  }
  const auto count = static_cast<int64_t>(units.size()) - 1;
  check::elements(kOp, "offsets_EU", offsets_EU, (offsets_E.elements() - 1) * count + 1);
  kernels(context).unit_offsets(context, offsets_E, token_R, units, offsets_EU);
}

void renumber(Context& context, AnyView index, std::span<const int32_t> number, AnyView out) {
  const TraceScope span(context, "renumber");
  constexpr const char* kOp = "renumber";
  check::type(context, kOp, "index", index, {DType::kI32});
  check::same(context, kOp, "out", out, "index", index);
  indices(kOp, "index", index, 0, static_cast<int64_t>(number.size()));
  kernels(context).renumber(context, index, number, out);
}

void interleave_rows(Context& context, std::span<const int64_t> counts_PeU, int64_t experts,
                     int64_t units, AnyView order_R, AnyView place_R) {
  const TraceScope span(context, "interleave_rows");
  constexpr const char* kOp = "interleave_rows";
  check::type(context, kOp, "order_R", order_R, {DType::kI32});
  check::same(context, kOp, "place_R", place_R, "order_R", order_R);
  if (experts < 1 || units < 1 ||
      static_cast<int64_t>(counts_PeU.size()) % (experts * units) != 0) {
    throw ShapeError(
        "{}: {} counts for {} expert(s) of {} unit(s), must be as many from each source", kOp,
        counts_PeU.size(), experts, units);
  }
  int64_t rows = 0;
  for (int64_t count : counts_PeU) rows += count;
  check::elements(kOp, "order_R", order_R, rows);
  kernels(context).interleave_rows(context, counts_PeU, experts, units, order_R, place_R);
}

void gather_rows(Context& context, AnyView x_TD, AnyView source_R, AnyView y_RD) {
  const TraceScope span(context, "gather_rows");
  constexpr const char* kOp = "gather_rows";
  check::type(context, kOp, "x_TD", x_TD, {DType::kF32, DType::kBF16, DType::kI8});
  check::type(context, kOp, "source_R", source_R, {DType::kI32});
  check::type(context, kOp, "y_RD", y_RD, {x_TD.dtype});
  matrix(kOp, "x_TD", x_TD);
  check::elements(kOp, "y_RD", y_RD, source_R.elements() * x_TD.dim(1));
  indices(kOp, "source_R", source_R, 0, x_TD.dim(0));
  kernels(context).gather_rows(context, x_TD, source_R, y_RD);
}

void combine(Context& context, AnyView x_RD, AnyView row_TK, AnyView gate_TK, AnyView add_TD,
             AnyView y_TD) {
  const TraceScope span(context, "combine");
  constexpr const char* kOp = "combine";
  check::floating(context, kOp, "x_RD", x_RD);
  check::type(context, kOp, "row_TK", row_TK, {DType::kI32});
  check::type(context, kOp, "y_TD", y_TD, {x_RD.dtype});
  matrix(kOp, "x_RD", x_RD);
  matrix(kOp, "row_TK", row_TK);
  check::elements(kOp, "y_TD", y_TD, row_TK.dim(0) * x_RD.dim(1));
  if (gate_TK) per_slot(context, kOp, "gate_TK", gate_TK, row_TK);
  if (add_TD) check::same(context, kOp, "add_TD", add_TD, "y_TD", y_TD);
  indices(kOp, "row_TK", row_TK, -1, x_RD.dim(0));
  kernels(context).combine(context, x_RD, row_TK, gate_TK, add_TD, y_TD);
}

void combine_backward(Context& context, AnyView dy_TD, AnyView x_RD, AnyView row_TK,
                      AnyView gate_TK, AnyView dx_RD, AnyView dgate_TK) {
  const TraceScope span(context, "combine_backward");
  constexpr const char* kOp = "combine_backward";
  check::floating(context, kOp, "x_RD", x_RD);
  check::type(context, kOp, "row_TK", row_TK, {DType::kI32});
  check::type(context, kOp, "dy_TD", dy_TD, {x_RD.dtype});
  matrix(kOp, "x_RD", x_RD);
  matrix(kOp, "row_TK", row_TK);
  check::elements(kOp, "dy_TD", dy_TD, row_TK.dim(0) * x_RD.dim(1));
  check::same(context, kOp, "dx_RD", dx_RD, "x_RD", x_RD);
  if (gate_TK) per_slot(context, kOp, "gate_TK", gate_TK, row_TK);
  per_slot(context, kOp, "dgate_TK", dgate_TK, row_TK);
  indices(kOp, "row_TK", row_TK, -1, x_RD.dim(0));
  kernels(context).combine_backward(context, dy_TD, x_RD, row_TK, gate_TK, dx_RD, dgate_TK);
}

}  // namespace degu
