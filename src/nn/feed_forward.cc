#include "nn/feed_forward.h"

#include "kernels/api/swiglu.h"

namespace degu {

FeedForwardActivations FeedForwardActivations::take(Arena& arena, DType type, int64_t tokens,
                                                    int64_t width) {
  return {.gate_TF = arena.take(type, {tokens, width}),
          .up_TF = arena.take(type, {tokens, width}),
          .act_TF = arena.take(type, {tokens, width})};
}

FeedForwardActivations FeedForwardActivations::rows(int64_t count) const {
  return {.gate_TF = gate_TF.rows(0, count),
          .up_TF = up_TF.rows(0, count),
          .act_TF = act_TF.rows(0, count)};
}

void FeedForward::forward(Context& context, AnyView h_TD, AnyView add_TD,
                          const FeedForwardActivations& saved, AnyView y_TD) const {
  {
    const ScratchScope scope(context.scratch());
    const SharedInput h = share_input(context, h_TD, {p_.gate, p_.up});
    linear(context, h, *p_.gate, saved.gate_TF);
    linear(context, h, *p_.up, saved.up_TF);
  }
  swiglu(context, saved.gate_TF, saved.up_TF, saved.act_TF, h_TD.dim(0));
  linear(context, saved.act_TF, *p_.down, y_TD, {.add_RF = add_TD});
}

void FeedForward::backward(Context& context, AnyView dy_TD, AnyView h_TD, const UnitSegments& units,
                           const FeedForwardActivations& saved, AnyView add_TD,
                           AnyView dh_TD) const {
  Arena& scratch = context.scratch();
  const ScratchScope scope(scratch);
  const AnyView dact = scratch.take(dy_TD.dtype, saved.act_TF.shape);
  const AnyView dgate = scratch.take(dy_TD.dtype, saved.act_TF.shape);
  linear_backward(context, dy_TD, saved.act_TF, units, *p_.down, dact);
  // The gradient of `up` takes the place of dact's.
  swiglu_backward(context, dact, saved.gate_TF, saved.up_TF, dgate, dact, h_TD.dim(0));
  linear_backward(context, dact, h_TD, units, *p_.up, dh_TD, {.add_RF = add_TD});
  linear_backward(context, dgate, h_TD, units, *p_.gate, dh_TD, {.add_RF = dh_TD});
}

}  // namespace degu
