#include "kernels/api/cross_entropy.h"

#include "kernels/api/check.h"
#include "kernels/dispatch.h"
#include "kernels/tables/cross_entropy.h"
#include "tensor/trace.h"

namespace degu {

void cross_entropy(Context& context, AnyView logit_TV, std::span<const int32_t> target_T,
                   float scale, float z_loss, AnyView loss_T, AnyView dlogit_TV) {
  const TraceScope span(context, "cross_entropy");
  const auto rows = static_cast<int64_t>(target_T.size());
  if (logit_TV.shape.rank() != 2 || logit_TV.dtype != DType::kF32 || logit_TV.dim(0) != rows ||
      logit_TV.dim(1) < 1) {
    throw ShapeError("cross_entropy: logits are {} {} for {} targets; pass fp32 [T, V]",
                     dtype_name(logit_TV.dtype), logit_TV.shape.str(), rows);
  }
  if (loss_T.dtype != DType::kF32 || loss_T.elements() != rows) {
    throw ShapeError("cross_entropy: the losses are {} {} for {} targets; pass fp32 [T]",
                     dtype_name(loss_T.dtype), loss_T.shape.str(), rows);
  }
  if (dlogit_TV && ((dlogit_TV.dtype != DType::kF32 && dlogit_TV.dtype != DType::kBF16) ||
                    dlogit_TV.shape != logit_TV.shape)) {
    throw ShapeError(
        "cross_entropy: the gradient is {} {} for logits {}; pass fp32 or bf16 of that shape",
        dtype_name(dlogit_TV.dtype), dlogit_TV.shape.str(), logit_TV.shape.str());
  }
  if (dlogit_TV && dlogit_TV.data == logit_TV.data && dlogit_TV.dtype != DType::kF32) {
    throw ShapeError("cross_entropy: a bf16 gradient cannot take the place of the fp32 logits");
  }
  check::on_device(context, "cross_entropy", "logit_TV", logit_TV);
  check::on_device(context, "cross_entropy", "loss_T", loss_T);
  if (dlogit_TV) check::on_device(context, "cross_entropy", "dlogit_TV", dlogit_TV);
  for (int64_t t = 0; t < rows; ++t) {
    if (target_T[static_cast<size_t>(t)] >= logit_TV.dim(1)) {
      throw DataError("cross_entropy: target {} of row {} is not below the vocabulary size {}",
                      target_T[static_cast<size_t>(t)], t, logit_TV.dim(1));
    }
  }
  if (rows == 0) return;
  kernels_for<CrossEntropyKernels>(context, "cross_entropy")
      .loss(context, logit_TV, target_T, scale, z_loss, loss_T, dlogit_TV);
}

}  // namespace degu
