#include "nn/head.h"

#include <algorithm>
#include <vector>

#include "kernels/api/cross_entropy.h"
#include "kernels/api/elementwise.h"

namespace degu {
namespace {

constexpr int64_t kEvaluationRows = 256;  // rows per chunk where no gradient ties them to units

std::span<const int32_t> part(std::span<const int32_t> all, int64_t begin, int64_t count) {
  return all.subspan(static_cast<size_t>(begin), static_cast<size_t>(count));
}

}  // namespace

HeadChunks head_chunks(int64_t units, int64_t rows, int64_t vocab, size_t logit_bytes) {
  const int64_t rows_per_unit = std::max<int64_t>(1, rows / std::max<int64_t>(units, 1));
  HeadChunks result{1, units};
  while (result.units_per_chunk * 2 <= units && units % (result.units_per_chunk * 2) == 0 &&
         static_cast<size_t>(result.units_per_chunk * 2 * rows_per_unit * vocab) * sizeof(float) <=
             logit_bytes) {
    result.units_per_chunk *= 2;
    result.chunks /= 2;
  }
  return result;
}

void head_logits(Context& context, AnyView h_TD, const Parameter& weight, float multiplier,
                 AnyView logit_TV) {
  linear(context, h_TD, weight, logit_TV);
  if (multiplier != 1.0f) scale(context, logit_TV, multiplier);
}

void head_loss(Context& context, AnyView h_TD, const Parameter& weight, float multiplier,
               std::span<const int32_t> target_T, AnyView loss_T) {
  const ScratchScope scope(context.scratch());
  const int64_t rows = h_TD.dim(0);
  const int64_t vocab = weight.spec.shape[0];
  const AnyView logits =
      context.scratch().take(DType::kF32, {std::min(rows, kEvaluationRows), vocab});
  for (int64_t begin = 0; begin < rows; begin += kEvaluationRows) {
    const int64_t count = std::min(kEvaluationRows, rows - begin);
    head_logits(context, h_TD.rows(begin, count), weight, multiplier, logits.rows(0, count));
    cross_entropy(context, logits.rows(0, count), part(target_T, begin, count), 1.0f, 0.0f,
                  loss_T.rows(begin, count), AnyView{});
  }
}

void head_loss_backward(Context& context, AnyView h_TD, Parameter& weight, float multiplier,
                        std::span<const int32_t> target_T, float gradient_scale,
                        const UnitSegments& units, const HeadChunks& chunks, LeafSink& sink,
                        AnyView loss_T, AnyView dh_TD) {
  Arena& scratch = context.scratch();
  std::vector<int64_t> offsets(static_cast<size_t>(chunks.units_per_chunk) + 1);
  for (int64_t c = 0; c < chunks.chunks; ++c) {
    const ScratchScope scope(scratch);
    const int64_t first = c * chunks.units_per_chunk;
    const int64_t begin = units.begin(0, 0, first);
    const int64_t count = units.end(0, 0, first + chunks.units_per_chunk - 1) - begin;
    for (size_t u = 0; u < offsets.size(); ++u) {
      offsets[u] = units.offsets[static_cast<size_t>(first) + u] - begin;
    }
    const AnyView h = h_TD.rows(begin, count);
    const AnyView logits = scratch.take(DType::kF32, {count, weight.spec.shape[0]});
    head_logits(context, h, weight, multiplier, logits);
    const AnyView dlogits = h.dtype == DType::kF32 ? logits : scratch.take(h.dtype, logits.shape);
    // d(multiplier * product): the multiplier joins the gradient's scale.
    cross_entropy(context, logits, part(target_T, begin, count), gradient_scale * multiplier, 0.0f,
                  loss_T.rows(begin, count), dlogits);
    sink.begin_leaf();
    const UnitSegments run{
        .offsets = offsets, .groups = 1, .slots = 1, .units = chunks.units_per_chunk};
    linear_backward(context, dlogits, h, run, weight, dh_TD.rows(begin, count));
    sink.end_leaf();
  }
}

}  // namespace degu
