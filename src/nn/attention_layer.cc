#include "nn/attention_layer.h"

#include <cmath>
#include <vector>

#include "kernels/api/packed_attention.h"
#include "kernels/api/rmsnorm.h"
#include "kernels/api/rotary.h"

namespace degu {
namespace {

// Units over the rows of a [T * heads] view: each token's rows are adjacent.
std::vector<int64_t> scaled_offsets(const UnitSegments& units, int64_t heads) {
  std::vector<int64_t> offsets(units.offsets.begin(), units.offsets.end());
  for (int64_t& offset : offsets) offset *= heads;
  return offsets;
}

// Gradient through the RMSNorm of single heads, in place on d_THA.
void head_norm_backward(Context& context, AnyView d_THA, AnyView raw_THA, AnyView inv,
                        Parameter& gain, const UnitSegments& units) {
  const int64_t heads = d_THA.dim(1);
  const int64_t width = d_THA.dim(2);
  const Shape rows{d_THA.dim(0) * heads, width};
  const std::vector<int64_t> offsets = scaled_offsets(units, heads);
  UnitSegments head_units = units;
  head_units.offsets = offsets;
  rmsnorm_backward(context, d_THA.reshaped(rows), raw_THA.reshaped(rows), gain.value, inv,
                   head_units, AnyView{}, d_THA.reshaped(rows), gain.gradient, gain.write);
}

AnyView flat_heads(AnyView x_THA) {
  return x_THA.reshaped({x_THA.dim(0), x_THA.dim(1) * x_THA.dim(2)});
}
AnyView flat_rows(AnyView x_THA) {
  return x_THA.reshaped({x_THA.dim(0) * x_THA.dim(1), x_THA.dim(2)});
}

}  // namespace

AttentionActivations AttentionActivations::take(Arena& arena, const ModelShape& s, DType type,
                                                int64_t tokens) {
  AttentionActivations a;
  const Shape queries{tokens, s.heads, s.head_width};
  const Shape keys{tokens, s.kv_heads, s.head_width};
  a.inv_T = arena.take(DType::kF32, {tokens});
  a.h_TD = arena.take(type, {tokens, s.width});
  a.q_THA = arena.take(type, queries);
  a.k_TGA = arena.take(type, keys);
  a.v_TGA = arena.take(type, keys);
  if (s.qk_norm) {
    a.q_raw_THA = arena.take(type, queries);
    a.k_raw_TGA = arena.take(type, keys);
    a.q_inv = arena.take(DType::kF32, {tokens * s.heads});
    a.k_inv = arena.take(DType::kF32, {tokens * s.kv_heads});
  }
  a.out_THA = arena.take(type, queries);
  a.lse_TH = arena.take(DType::kF32, {tokens, s.heads});
  return a;
}

AttentionActivations AttentionActivations::rows(int64_t count) const {
  AttentionActivations a = *this;
  for (AnyView* view : {&a.inv_T, &a.h_TD, &a.q_THA, &a.k_TGA, &a.v_TGA, &a.out_THA, &a.lse_TH}) {
    *view = view->rows(0, count);
  }
  if (a.q_raw_THA) {
    a.q_raw_THA = a.q_raw_THA.rows(0, count);
    a.k_raw_TGA = a.k_raw_TGA.rows(0, count);
    a.q_inv = a.q_inv.rows(0, count * q_THA.dim(1));
    a.k_inv = a.k_inv.rows(0, count * k_TGA.dim(1));
  }
  return a;
}

AttentionLayer::AttentionLayer(const ModelShape& shape, const AttentionParameters& parameters)
    : shape_(shape),
      p_(parameters),
      scale_(static_cast<float>(shape.mup_base_width > 0 ? 1.0 / shape.head_width
                                                         : 1.0 / std::sqrt(shape.head_width))) {}

void AttentionLayer::forward(Context& context, AnyView x_TD, const Batch& batch, const KvView& kv,
                             const AttentionActivations& saved, AnyView y_TD) const {
  rmsnorm(context, x_TD, p_.norm->value, shape_.norm_eps, saved.h_TD, saved.inv_T);
  const AnyView q = shape_.qk_norm ? saved.q_raw_THA : saved.q_THA;
  const AnyView k = shape_.qk_norm ? saved.k_raw_TGA : saved.k_TGA;
  {
    const ScratchScope scope(context.scratch());
    const SharedInput h = share_input(context, saved.h_TD, {p_.wq, p_.wk, p_.wv});
    linear(context, h, *p_.wq, flat_heads(q));
    linear(context, h, *p_.wk, flat_heads(k));
    linear(context, h, *p_.wv, flat_heads(saved.v_TGA));
  }
  if (shape_.qk_norm) {
    rmsnorm(context, flat_rows(q), p_.q_norm->value, shape_.norm_eps, flat_rows(saved.q_THA),
            saved.q_inv);
    rmsnorm(context, flat_rows(k), p_.k_norm->value, shape_.norm_eps, flat_rows(saved.k_TGA),
            saved.k_inv);
  }
  rotary(context, saved.q_THA, batch.position_rows(), shape_.rope_theta);
  rotary(context, saved.k_TGA, batch.position_rows(), shape_.rope_theta);
  if (batch.packed_attention) {
    packed_attention(context, saved.q_THA, saved.k_TGA, saved.v_TGA, batch.sequences, scale_,
                     saved.out_THA, saved.lse_TH);
  } else {
    kv_store(context, saved.k_TGA, saved.v_TGA, batch.sequences, kv);
    attention(context, saved.q_THA, kv, batch.sequences, scale_, saved.out_THA, saved.lse_TH);
  }
  linear(context, flat_heads(saved.out_THA), *p_.wo, y_TD, {.add_RF = x_TD});
}

void AttentionLayer::backward(Context& context, AnyView dy_TD, AnyView x_TD, const Batch& batch,
                              const KvView& kv, const UnitSegments& units,
                              const AttentionActivations& saved, AnyView dx_TD) const {
  Arena& scratch = context.scratch();
  const ScratchScope scope(scratch);
  const DType type = dy_TD.dtype;
  const AnyView dout = scratch.take(type, saved.out_THA.shape);
  const AnyView dq = scratch.take(type, saved.q_THA.shape);
  const AnyView dk = scratch.take(type, saved.k_TGA.shape);
  const AnyView dv = scratch.take(type, saved.v_TGA.shape);
  const AnyView dh = scratch.take(type, saved.h_TD.shape);

  linear_backward(context, dy_TD, flat_heads(saved.out_THA), units, *p_.wo, flat_heads(dout));
  if (batch.packed_attention) {
    packed_attention_backward(context, saved.q_THA, saved.k_TGA, saved.v_TGA, batch.sequences,
                              scale_, saved.out_THA, saved.lse_TH, dout, dq, dk, dv);
  } else {
    attention_backward(context, saved.q_THA, kv, batch.sequences, scale_, saved.out_THA,
                       saved.lse_TH, dout, dq, dk, dv);
  }
  rotary(context, dq, batch.positions_T, shape_.rope_theta, /*inverse=*/true);
  rotary(context, dk, batch.positions_T, shape_.rope_theta, /*inverse=*/true);
  if (shape_.qk_norm) {
    head_norm_backward(context, dq, saved.q_raw_THA, saved.q_inv, *p_.q_norm, units);
    head_norm_backward(context, dk, saved.k_raw_TGA, saved.k_inv, *p_.k_norm, units);
  }
  linear_backward(context, flat_heads(dv), saved.h_TD, units, *p_.wv, dh);
  linear_backward(context, flat_heads(dk), saved.h_TD, units, *p_.wk, dh, {.add_RF = dh});
  linear_backward(context, flat_heads(dq), saved.h_TD, units, *p_.wq, dh, {.add_RF = dh});
  rmsnorm_backward(context, dh, x_TD, p_.norm->value, saved.inv_T, units, dy_TD, dx_TD,
                   p_.norm->gradient, p_.norm->write);
}

}  // namespace degu
