// Pre-normalised causal self-attention with a residual: y = x + W_o · attention(rotary(W_qkv ·
// norm(x))).
#pragma once

#include "nn/batch.h"
#include "nn/linear.h"
#include "shape/model_shape.h"

namespace degu {

struct AttentionParameters {
  Parameter* norm = nullptr;    // [D]
  Parameter* wq = nullptr;      // [H*A, D]
  Parameter* wk = nullptr;      // [G*A, D]
  Parameter* wv = nullptr;      // [G*A, D]
  Parameter* wo = nullptr;      // [D, H*A]
  Parameter* q_norm = nullptr;  // [A], with qk_norm
  Parameter* k_norm = nullptr;  // [A]
};

// What the forward pass leaves for the backward pass. Training hands every layer its own;
// evaluation and serving hand all layers the same one.
struct AttentionActivations {
  AnyView inv_T;                 // 1 / rms of x
  AnyView h_TD;                  // norm(x)
  AnyView q_THA, k_TGA, v_TGA;   // rotated (and normalised) queries and keys
  AnyView q_raw_THA, k_raw_TGA;  // before qk_norm; null without it
  AnyView q_inv, k_inv;          // [T*H], [T*G]
  AnyView out_THA;               // heads' outputs
  AnyView lse_TH;

  static AttentionActivations take(Arena& arena, const ModelShape& shape, DType type,
                                   int64_t tokens);
  AttentionActivations rows(int64_t count) const;  // the first `count` tokens
};

class AttentionLayer {
 public:
  AttentionLayer(const ModelShape& shape, const AttentionParameters& parameters);

  // y_TD = x_TD + attention; y may be x.
  void forward(Context& context, AnyView x_TD, const Batch& batch, const KvView& kv,
               const AttentionActivations& saved, AnyView y_TD) const;
  // dx_TD = dy_TD + gradient through attention; dx may be dy.
  void backward(Context& context, AnyView dy_TD, AnyView x_TD, const Batch& batch, const KvView& kv,
                const UnitSegments& units, const AttentionActivations& saved, AnyView dx_TD) const;

 private:
  ModelShape shape_;
  AttentionParameters p_;
  float scale_;
};

}  // namespace degu
