#include "compress/output_error.h"

#include "kernels/api/grouped_gemm.h"

namespace degu {

OutputError::OutputError(Context& context, AnyView hessian_DD) {
  const int64_t inner = hessian_DD.dim(0);
  memory_ = Tensor(DType::kU8,
                   {static_cast<int64_t>(packed_bytes(context, Scheme::kFp32, 1, inner, inner))});
  packed_ =
      pack_weight(context, hessian_DD, Scheme::kFp32, Orientation::kForward, memory_.view().data);
}

std::vector<double> OutputError::rows(Context& context, AnyView delta_FD) const {
  const ScratchScope scope(context.scratch());
  const int64_t count = delta_FD.dim(0);
  const int64_t inner = packed_.inner;
  const AnyView product = context.scratch().take(DType::kF32, delta_FD.shape);
  gemm(context, delta_FD, packed_, product);
  const auto* d = static_cast<const float*>(delta_FD.data);
  const auto* y = static_cast<const float*>(product.data);
  std::vector<double> errors(static_cast<size_t>(count));
  context.parallel_for(count, [&](int64_t row, int) {
    double sum = 0;
    for (int64_t i = row * inner; i < (row + 1) * inner; ++i) sum += double{d[i]} * y[i];
    errors[static_cast<size_t>(row)] = sum;
  });
  return errors;
}

double OutputError::sum(Context& context, AnyView delta_FD) const {
  double total = 0;
  for (double each : rows(context, delta_FD)) total += each;
  return total;
}

}  // namespace degu
