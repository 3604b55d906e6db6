#include "kernels/api/rotary.h"

#include "kernels/api/check.h"
#include "kernels/dispatch.h"
#include "kernels/tables/rotary.h"
#include "tensor/trace.h"

namespace degu {

void rotary(Context& context, AnyView x_THA, const RowNumbers& positions_T, double theta,
            bool inverse) {
  const TraceScope span(context, "rotary");
  if (x_THA.shape.rank() != 3 || x_THA.dim(0) != static_cast<int64_t>(positions_T.size())) {
    throw ShapeError("rotary: x is {} but there are {} positions; pass x as [T, H, A]",
                     x_THA.shape.str(), positions_T.size());
  }
  if (x_THA.dim(2) % 2 != 0) {
    throw ShapeError("rotary: head width {} is odd; dimensions are rotated in pairs", x_THA.dim(2));
  }
  if (x_THA.dtype != DType::kF32 && x_THA.dtype != DType::kBF16) {
    throw ShapeError("rotary: x is {}; it takes fp32 or bf16", dtype_name(x_THA.dtype));
  }
  check::on_device(context, "rotary", "x", x_THA);
  if (!(theta > 0)) throw ShapeError("rotary: theta is {}; it must be positive", theta);
  for (size_t t = 0; t < positions_T.size(); ++t) {
    if (positions_T.host[t] < 0) {
      throw ShapeError("rotary: position {} of row {} is negative", positions_T.host[t], t);
    }
  }
  if (x_THA.elements() == 0) return;
  kernels_for<RotaryKernels>(context, "rotary").rotate(context, x_THA, positions_T, theta, inverse);
}

}  // namespace degu
