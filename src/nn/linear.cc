#include "nn/linear.h"

#include <algorithm>

#include "kernels/api/embedding.h"

namespace degu {
namespace {

void refuse_gradient(const Parameter& weight) {
  const SchemeInfo& info = scheme_info(weight.forward.scheme);
  if (info.quantized()) {
    throw ConfigError(
        "{} is quantized ({}) and has no gradient; train from the checkpoint it was made from",
        weight.spec.name, info.name);
  }
}

}  // namespace

bool multiplies_integers(const Parameter& weight) {
  return scheme_info(weight.forward.scheme).integer_activations();
}

Activation SharedInput::of(const Parameter& weight) const {
  return multiplies_integers(weight) ? quantized : Activation(plain);
}

SharedInput share_input(Context& context, AnyView x_TD,
                        std::initializer_list<const Parameter*> weights) {
  SharedInput input{.plain = x_TD, .quantized = {}};
  const bool integers = std::any_of(weights.begin(), weights.end(), [](const Parameter* weight) {
    return multiplies_integers(*weight);
  });
  if (integers) {
    input.quantized = Activation::take(context.scratch(), x_TD.dim(0), x_TD.dim(1));
    quantize_rows(context, x_TD, input.quantized);
  }
  return input;
}

void linear(Context& context, const SharedInput& x_TD, const Parameter& weight, AnyView y_TF,
            const Epilogue& epilogue) {
  gemm(context, x_TD.of(weight), weight.forward, y_TF, epilogue);
}

void linear(Context& context, AnyView x_TD, const Parameter& weight, AnyView y_TF,
            const Epilogue& epilogue) {
  const ScratchScope scope(context.scratch());
  linear(context, share_input(context, x_TD, {&weight}), weight, y_TF, epilogue);
}

void linear_backward(Context& context, AnyView dy_TF, AnyView x_TD, const UnitSegments& units,
                     Parameter& weight, AnyView dx_TD, const Epilogue& epilogue) {
  refuse_gradient(weight);
  grouped_gemm_dw(context, dy_TF, x_TD, units, weight.gradient, weight.write);
  if (dx_TD) gemm(context, dy_TF, weight.backward, dx_TD, epilogue);
}

void expert_linear(Context& context, const SharedInput& x_RD, const Parameter& weights,
                   const RowGroups& rows, AnyView y_RF) {
  grouped_gemm(context, x_RD.of(weights), weights.forward, rows, y_RF);
}

void expert_linear(Context& context, AnyView x_RD, const Parameter& weights, const RowGroups& rows,
                   AnyView y_RF) {
  const ScratchScope scope(context.scratch());
  // Memory is laid out for the most rows there can be; only these are wanted.
  const AnyView x = x_RD.rows(0, rows.rows());
  expert_linear(context, share_input(context, x, {&weights}), weights, rows, y_RF);
}

void expert_linear_backward(Context& context, AnyView dy_RF, AnyView x_RD, const RowGroups& rows,
                            const UnitSegments& units, Parameter& weights, AnyView dx_RD,
                            const Epilogue& epilogue) {
  refuse_gradient(weights);
  grouped_gemm_dw(context, dy_RF, x_RD, units, weights.gradient, weights.write);
  grouped_gemm(context, dy_RF, weights.backward, rows, dx_RD, epilogue);
}

void embed(Context& context, const Parameter& parameter, const RowNumbers& tokens_T, AnyView y_TD) {
  if (parameter.table) {
    embedding(context, parameter.table, tokens_T, y_TD);
  } else {
    unpack_rows(context, parameter.forward, tokens_T, y_TD);
  }
}

}  // namespace degu
