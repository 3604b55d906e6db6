// The output matrix and the loss: logits exist for one chunk of rows at a time.
#pragma once

#include <span>

#include "nn/linear.h"

namespace degu {

// Rows of one chunk are a run of 2^c units, so that its weight gradient is one node of the tree
// over units. Chooses the largest run whose fp32 logits stay under `logit_bytes`.
struct HeadChunks {
  int64_t units_per_chunk = 1;
  int64_t chunks = 1;
};
HeadChunks head_chunks(int64_t units, int64_t rows, int64_t vocab, size_t logit_bytes);

// Where the gradient of chunk after chunk goes: asked before each chunk, told after it.
class LeafSink {
 public:
  virtual ~LeafSink() = default;
  virtual void begin_leaf() = 0;  // sets gradient and write of the sink's parameters
  virtual void end_leaf() = 0;
};

// loss_T[t] = cross-entropy of softmax(multiplier * h_TD[t] · W^T) at target_T[t] (0 where < 0).
void head_loss(Context& context, AnyView h_TD, const Parameter& weight, float multiplier,
               std::span<const int32_t> target_T, AnyView loss_T);

// The same with gradients of sum_t gradient_scale * loss_T[t]: dh_TD and the weight's.
void head_loss_backward(Context& context, AnyView h_TD, Parameter& weight, float multiplier,
                        std::span<const int32_t> target_T, float gradient_scale,
                        const UnitSegments& units, const HeadChunks& chunks, LeafSink& sink,
                        AnyView loss_T, AnyView dh_TD);

// logit_TV (fp32) of the given rows, for serving and tests.
void head_logits(Context& context, AnyView h_TD, const Parameter& weight, float multiplier,
                 AnyView logit_TV);

}  // namespace degu
