// What errors in a matrix's rows do to its product with the calibration rows.
#pragma once

#include <vector>

#include "kernels/api/weight.h"
#include "tensor/tensor.h"

namespace degu {

// With H = sum over calibration rows x of x^T x, an error d in one row of a matrix changes that
// output by d·x, and over all rows by sum (d·x)^2 = d H d^T.
class OutputError {
 public:
  // `hessian_DD`: fp32 and symmetric; it is copied.
  OutputError(Context& context, AnyView hessian_DD);

  // d H d^T for each row d of delta_FD (fp32).
  std::vector<double> rows(Context& context, AnyView delta_FD) const;
  double sum(Context& context, AnyView delta_FD) const;
  int64_t inner() const { return packed_.inner; }

 private:
  Tensor memory_;
  PackedWeight packed_;
};

}  // namespace degu
