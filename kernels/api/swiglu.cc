#include "kernels/api/swiglu.h"

#include "kernels/api/check.h"
#include "kernels/dispatch.h"
#include "kernels/tables/swiglu.h"
#include "tensor/trace.h"

namespace degu {
namespace {

const SwigluKernels& kernels(const Context& context) {
  return kernels_for<SwigluKernels>(context, "swiglu");
}

// Elements in the first `rows` rows.
int64_t leading(const char* op, const AnyView& view, int64_t rows) {
  const int64_t held = view.shape.rank() == 0 ? 0 : view.shape[0];
  if (rows < 0 || rows > held) {
    throw ShapeError("{}: rows is {}, gate_RF is {}", op, rows, view.shape.str());
  }
  return held == 0 ? 0 : view.elements() / held * rows;
}

}  // namespace

void swiglu(Context& context, AnyView gate_RF, AnyView up_RF, AnyView act_RF, int64_t rows) {
  const TraceScope span(context, "swiglu");
  check::floating(context, "swiglu", "gate_RF", gate_RF);
  check::same(context, "swiglu", "up_RF", up_RF, "gate_RF", gate_RF);
  check::same(context, "swiglu", "act_RF", act_RF, "gate_RF", gate_RF);
  kernels(context).forward(context, gate_RF, up_RF, act_RF, leading("swiglu", gate_RF, rows));
}

void swiglu_backward(Context& context, AnyView dact_RF, AnyView gate_RF, AnyView up_RF,
                     AnyView dgate_RF, AnyView dup_RF, int64_t rows) {
  const TraceScope span(context, "swiglu_backward");
  constexpr const char* kOp = "swiglu_backward";
  check::floating(context, kOp, "gate_RF", gate_RF);
  check::same(context, kOp, "dact_RF", dact_RF, "gate_RF", gate_RF);
  check::same(context, kOp, "up_RF", up_RF, "gate_RF", gate_RF);
  check::same(context, kOp, "dgate_RF", dgate_RF, "gate_RF", gate_RF);
  check::same(context, kOp, "dup_RF", dup_RF, "gate_RF", gate_RF);
  kernels(context).backward(context, dact_RF, gate_RF, up_RF, dgate_RF, dup_RF,
                            leading(kOp, gate_RF, rows));
}

}  // namespace degu
