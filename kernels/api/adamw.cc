#include "kernels/api/adamw.h"

#include "kernels/api/check.h"
#include "kernels/cpu/adamw.h"
#include "tensor/trace.h"

namespace degu {
namespace {

const AdamWKernels& kernels(const Context& context) {
  return cpu::kernels_for<AdamWKernels>(context.isa());
}

}  // namespace

void adamw(Context& context, const AdamWStep& step, AnyView master, AnyView m, AnyView v,
           AnyView grad, AnyView weight) {
  const TraceScope span(context, "adamw");
  check::type(context, "adamw", "master", master, {DType::kF32});
  check::same(context, "adamw", "m", m, "master", master);
  check::same(context, "adamw", "v", v, "master", master);
  check::same(context, "adamw", "grad", grad, "master", master);
  if (weight) {
    check::floating(context, "adamw", "weight", weight);
    check::elements("adamw", "weight", weight, master.elements());
  }
  const auto fraction = [](double beta) { return beta >= 0 && beta < 1; };
  if (step.step < 1 || !fraction(step.beta1) || !fraction(step.beta2)) {
    throw ShapeError(
        "adamw: step {} with beta1 {} and beta2 {}; steps count from 1, betas are in [0, 1)",
        step.step, step.beta1, step.beta2);
  }
  kernels(context).step(context, step, master, m, v, grad, weight);
}

void block_square_sums(Context& context, AnyView grad, std::span<double> block_sums) {
  const TraceScope span(context, "block_square_sums");
  check::type(context, "block_square_sums", "grad", grad, {DType::kF32});
  const int64_t blocks = (grad.elements() + kNormBlock - 1) / kNormBlock;
  if (static_cast<int64_t>(block_sums.size()) != blocks) {
    throw ShapeError("block_square_sums: {} sums for {} elements, must be {}", block_sums.size(),
                     grad.elements(), blocks);
  }
  kernels(context).block_square_sums(context, grad, block_sums);
}

}  // namespace degu
