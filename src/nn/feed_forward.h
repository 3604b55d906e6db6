// The dense SwiGLU block: y = W_down · swiglu(W_gate · h, W_up · h). Also an MoE's shared experts.
#pragma once

#include "nn/linear.h"

namespace degu {

struct FeedForwardParameters {
  Parameter* gate = nullptr;  // [F, D]
  Parameter* up = nullptr;    // [F, D]
  Parameter* down = nullptr;  // [D, F]
};

struct FeedForwardActivations {
  AnyView gate_TF, up_TF, act_TF;

  static FeedForwardActivations take(Arena& arena, DType type, int64_t tokens, int64_t width);
  FeedForwardActivations rows(int64_t count) const;
};

class FeedForward {
 public:
  explicit FeedForward(const FeedForwardParameters& parameters) : p_(parameters) {}

  // y_TD = add_TD + ffn(h_TD); y may be add.
  void forward(Context& context, AnyView h_TD, AnyView add_TD, const FeedForwardActivations& saved,
               AnyView y_TD) const;
  // dh_TD = gradient of h (+ add_TD when given; may be dh itself).
  void backward(Context& context, AnyView dy_TD, AnyView h_TD, const UnitSegments& units,
                const FeedForwardActivations& saved, AnyView add_TD, AnyView dh_TD) const;

 private:
  FeedForwardParameters p_;
};

}  // namespace degu
