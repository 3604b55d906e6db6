#include "kernels/api/adamw.h"

#include "kernels/api/check.h"
#include "kernels/dispatch.h"
#include "kernels/tables/adamw.h"
#include "tensor/device.h"
#include "tensor/trace.h"

namespace degu {
namespace {

const AdamWKernels& kernels(const Context& context) {
  return kernels_for<AdamWKernels>(context, "adamw");
}

void check_blocks(const Context& context, const AnyView& grad, int64_t sums) {
  check::type(context, "block_square_sums", "grad", grad, {DType::kF32});
  const int64_t blocks = (grad.elements() + kNormBlock - 1) / kNormBlock;
  if (sums != blocks) {
    throw ShapeError("block_square_sums: {} sums for {} elements, must be {}", sums,
                     grad.elements(), blocks);
  }
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
  const auto blocks = static_cast<int64_t>(block_sums.size());
  check_blocks(context, grad, blocks);
  if (context.device() == DeviceType::kCpu) {
    kernels(context).block_square_sums(context, grad, block_sums.data());
    return;
  }
  ScratchScope scope(context.scratch());
  const AnyView sums = context.scratch().take(DType::kF64, {blocks});
  kernels(context).block_square_sums(context, grad, static_cast<double*>(sums.data));
  copy(context, sums, View<double>(block_sums.data(), {blocks}));
}

void block_square_sums(Context& context, AnyView grad, AnyView block_sums) {
  const TraceScope span(context, "block_square_sums");
  check_blocks(context, grad, block_sums.elements());
  check::type(context, "block_square_sums", "block_sums", block_sums, {DType::kF64});
  kernels(context).block_square_sums(context, grad, static_cast<double*>(block_sums.data));
}

}  // namespace degu
