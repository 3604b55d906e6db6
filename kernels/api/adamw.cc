#include "kernels/api/adamw.h"

#include <algorithm>
#include <string>

#include "base/random.h"
#include "kernels/api/check.h"
#include "kernels/dispatch.h"
#include "kernels/tables/adamw.h"
#include "tensor/trace.h"

namespace degu {
namespace {

const AdamWKernels& kernels(const Context& context) {
  return kernels_for<AdamWKernels>(context, "adamw");
}

// The backends count 32 bits of an element's index; the rest is in the keys. So a call is cut where
// the index in the whole tensor passes a multiple of this.
constexpr int64_t kCounters = int64_t{1} << 32;

NoiseStream noise_from(const AdamWStep& step, int64_t index) {
  const RandomStream stream(step.seed, "adamw/" + std::string(step.tensor),
                            static_cast<uint64_t>(step.step));
  const uint64_t keys = stream.bits64(static_cast<uint64_t>(index / kCounters));
  return {.first_key = static_cast<uint32_t>(keys >> 32),
          .second_key = static_cast<uint32_t>(keys),
          .first = static_cast<uint32_t>(index % kCounters)};
}

void check_blocks(const Context& context, const AnyView& grad, int64_t sums) {
  check::type(context, "block_square_sums", "grad", grad, {DType::kF32});
  const int64_t blocks = (grad.elements() + kNormBlock - 1) / kNormBlock;
  if (sums != blocks) {
    throw ShapeError("block_square_sums: {} sums for {} elements, must be {}", sums,
                     grad.elements(), blocks);
  }
}

void check_one(const Context& context, const char* op, const char* name, AnyView view, DType type) {
  check::type(context, op, name, view, {type});
  check::elements(op, name, view, 1);
}

}  // namespace

void adamw(Context& context, const AdamWStep& step, AnyView scale, AnyView master, AnyView m,
           AnyView v, AnyView grad, AnyView weight) {
  const TraceScope span(context, "adamw");
  if (scale) check_one(context, "adamw", "scale", scale, DType::kF32);
  check::type(context, "adamw", "master", master, {DType::kF32});
  check::floating(context, "adamw", "m", m);
  check::elements("adamw", "m", m, master.elements());
  check::same(context, "adamw", "v", v, "m", m);
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
  const auto* factor = static_cast<const float*>(scale.data);
  if (m.dtype == DType::kF32) {
    kernels(context).step(context, step, {}, factor, master, m, v, grad, weight);
    return;
  }
  if (step.first_element < 0) {
    throw ShapeError("adamw: first_element {}; indices count from 0", step.first_element);
  }
  const int64_t n = master.elements();
  for (int64_t begin = 0; begin < n;) {
    const int64_t index = step.first_element + begin;
    const int64_t count = std::min(n - begin, kCounters - index % kCounters);
    const auto part = [&](AnyView all) { return all.reshaped({n}).rows(begin, count); };
    kernels(context).step(context, step, noise_from(step, index), factor, part(master), part(m),
                          part(v), part(grad), weight ? part(weight) : weight);
    begin += count;
  }
}

void block_square_sums(Context& context, AnyView grad, AnyView block_sums) {
  const TraceScope span(context, "block_square_sums");
  check_blocks(context, grad, block_sums.elements());
  check::type(context, "block_square_sums", "block_sums", block_sums, {DType::kF64});
  kernels(context).block_square_sums(context, grad, static_cast<double*>(block_sums.data));
}

void sum_blocks(Context& context, AnyView block_sums, AnyView sum) {
  const TraceScope span(context, "sum_blocks");
  check::type(context, "sum_blocks", "block_sums", block_sums, {DType::kF64});
  check_one(context, "sum_blocks", "sum", sum, DType::kF64);
  const ScratchScope scope(context.scratch());
  AnyView level = block_sums;
  while (level.elements() > kNormBlock) {
    const AnyView next =
        context.scratch().take(DType::kF64, {(level.elements() + kNormBlock - 1) / kNormBlock});
    kernels(context).sum_runs(context, static_cast<const double*>(level.data), level.elements(),
                              static_cast<double*>(next.data));
    level = next;
  }
  kernels(context).sum_runs(context, static_cast<const double*>(level.data), level.elements(),
                            static_cast<double*>(sum.data));
}

void gradient_scale(Context& context, AnyView square_sums, double clip, AnyView scale) {
  const TraceScope span(context, "gradient_scale");
  check::type(context, "gradient_scale", "square_sums", square_sums, {DType::kF64});
  check_one(context, "gradient_scale", "scale", scale, DType::kF32);
  if (square_sums.elements() == 0) throw ShapeError("gradient_scale: no sums");
  kernels(context).gradient_scale(context, static_cast<const double*>(square_sums.data),
                                  square_sums.elements(), clip, static_cast<float*>(scale.data));
}

}  // namespace degu
