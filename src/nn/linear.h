// y = x · W^T, and its gradients.
#pragma once

#include <initializer_list>
#include <span>

#include "kernels/api/grouped_gemm.h"
#include "nn/parameter.h"

namespace degu {

// What one or more products read: rows as they are and, where a product multiplies integers, the
// same rows quantized, once for all of them.
struct SharedInput {
  AnyView plain;         // null: no product wants them unquantized
  Activation quantized;  // null values: no product wants codes

  // What the product with `weight`, one of those it was made for, reads.
  Activation of(const Parameter& weight) const;
};

// x_TD made ready for products with `weights`, in the context's scratch memory: it lives as long as
// the caller's ScratchScope.
SharedInput share_input(Context& context, AnyView x_TD,
                        std::initializer_list<const Parameter*> weights);

// Whether the product with `weight` multiplies integers.
bool multiplies_integers(const Parameter& weight);

// y_TF = x_TD · W_FD^T (+ epilogue). A view is quantized on the way where the weight wants that.
void linear(Context& context, const SharedInput& x_TD, const Parameter& weight, AnyView y_TF,
            const Epilogue& epilogue = {});
void linear(Context& context, AnyView x_TD, const Parameter& weight, AnyView y_TF,
            const Epilogue& epilogue = {});

// Gradients exist for unquantized weights only: ConfigError otherwise.
//
// dx_TD = dy_TF · W_FD (+ epilogue; null dx: not wanted) and the weight's gradient by units.
void linear_backward(Context& context, AnyView dy_TF, AnyView x_TD, const UnitSegments& units,
                     Parameter& weight, AnyView dx_TD, const Epilogue& epilogue = {});

// The same per expert: rows of expert e meet W_eFD[e].
void expert_linear(Context& context, const SharedInput& x_RD, const Parameter& weights,
                   const RowGroups& rows, AnyView y_RF);
void expert_linear(Context& context, AnyView x_RD, const Parameter& weights, const RowGroups& rows,
                   AnyView y_RF);
void expert_linear_backward(Context& context, AnyView dy_RF, AnyView x_RD, const RowGroups& rows,
                            const UnitSegments& units, Parameter& weights, AnyView dx_RD,
                            const Epilogue& epilogue = {});

// y_TD[t] = row tokens_T[t] of the embedding, dequantized where it is quantized.
void embed(Context& context, const Parameter& embedding, const RowNumbers& tokens_T, AnyView y_TD);

}  // namespace degu
