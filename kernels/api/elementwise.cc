#include "kernels/api/elementwise.h"

#include "kernels/api/check.h"
#include "kernels/dispatch.h"
#include "kernels/tables/elementwise.h"
#include "tensor/trace.h"

namespace degu {
namespace {

const ElementwiseKernels& kernels(const Context& context) {
  return kernels_for<ElementwiseKernels>(context, "elementwise");
}

}  // namespace

void cast(Context& context, AnyView from, AnyView to) {
  const TraceScope span(context, "cast");
  check::floating(context, "cast", "from", from);
  check::floating(context, "cast", "to", to);
  check::elements("cast", "to", to, from.elements());
  kernels(context).cast(context, from, to);
}

void add(Context& context, AnyView a, AnyView b, AnyView out) {
  const TraceScope span(context, "add");
  check::type(context, "add", "a", a, {DType::kF32, DType::kBF16, DType::kI64});
  check::same(context, "add", "b", b, "a", a);
  check::same(context, "add", "out", out, "a", a);
  kernels(context).add(context, a, b, out);
}

void scale(Context& context, AnyView x, float factor) {
  const TraceScope span(context, "scale");
  check::floating(context, "scale", "x", x);
  kernels(context).scale(context, x, factor);
}

void fill_zero(Context& context, AnyView x) {
  const TraceScope span(context, "fill_zero");
  check::type(context, "fill_zero", "x", x, {x.dtype});
  kernels(context).fill_zero(context, x);
}

}  // namespace degu
