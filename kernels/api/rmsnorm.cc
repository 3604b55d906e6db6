#include "kernels/api/rmsnorm.h"

#include "kernels/api/check.h"
#include "kernels/dispatch.h"
#include "kernels/tables/rmsnorm.h"
#include "tensor/trace.h"

namespace degu {
namespace {

const RmsNormKernels& kernels(const Context& context) {
  return kernels_for<RmsNormKernels>(context, "rmsnorm");
}

}  // namespace

void rmsnorm(Context& context, AnyView x_TD, AnyView gain_D, double eps, AnyView y_TD,
             AnyView inv_T) {
  const TraceScope span(context, "rmsnorm");
  check::floating(context, "rmsnorm", "x_TD", x_TD);
  check::type(context, "rmsnorm", "gain_D", gain_D, {DType::kF32});
  const int64_t rows = check::rows_of("rmsnorm", "x_TD", x_TD, gain_D.elements());
  check::same(context, "rmsnorm", "y_TD", y_TD, "x_TD", x_TD);
  if (inv_T) {
    check::type(context, "rmsnorm", "inv_T", inv_T, {DType::kF32});
    check::elements("rmsnorm", "inv_T", inv_T, rows);
  }
  kernels(context).forward(context, x_TD, gain_D, eps, y_TD, inv_T);
}

void rmsnorm_backward(Context& context, AnyView dy_TD, AnyView x_TD, AnyView gain_D, AnyView inv_T,
                      const UnitSegments& segments, AnyView add_TD, AnyView dx_TD, AnyView dgain_SD,
                      Write write) {
  const TraceScope span(context, "rmsnorm_backward");
  constexpr const char* kOp = "rmsnorm_backward";
  check::floating(context, kOp, "x_TD", x_TD);
  check::type(context, kOp, "gain_D", gain_D, {DType::kF32});
  const int64_t rows = check::rows_of(kOp, "x_TD", x_TD, gain_D.elements());
  check::same(context, kOp, "dy_TD", dy_TD, "x_TD", x_TD);
  check::same(context, kOp, "dx_TD", dx_TD, "x_TD", x_TD);
  if (add_TD) check::same(context, kOp, "add_TD", add_TD, "x_TD", x_TD);
  check::type(context, kOp, "inv_T", inv_T, {DType::kF32});
  check::elements(kOp, "inv_T", inv_T, rows);
  check::segments(kOp, segments, rows);
  check::type(context, kOp, "dgain_SD", dgain_SD, {DType::kF32});
  check::elements(kOp, "dgain_SD", dgain_SD, segments.slots * gain_D.elements());
  kernels(context).backward(context, dy_TD, x_TD, gain_D, inv_T, segments, add_TD, dx_TD, dgain_SD,
                            write);
}

}  // namespace degu
