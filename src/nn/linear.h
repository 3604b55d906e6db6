// y = x · W^T, and its gradients.
#pragma once

#include "kernels/api/grouped_gemm.h"
#include "nn/parameter.h"

namespace degu {

// y_TF = x_TD · W_FD^T (+ epilogue).
void linear(Context& context, AnyView x_TD, const Parameter& weight, AnyView y_TF,
            const Epilogue& epilogue = {});

// dx_TD = dy_TF · W_FD (+ epilogue; null dx: not wanted) and the weight's gradient by units.
void linear_backward(Context& context, AnyView dy_TF, AnyView x_TD, const UnitSegments& units,
                     Parameter& weight, AnyView dx_TD, const Epilogue& epilogue = {});

// The same per expert: rows of expert e meet W_eFD[e].
void expert_linear(Context& context, AnyView x_RD, const Parameter& weights, const RowGroups& rows,
                   AnyView y_RF);
void expert_linear_backward(Context& context, AnyView dy_RF, AnyView x_RD, const RowGroups& rows,
                            const UnitSegments& units, Parameter& weights, AnyView dx_RD,
                            const Epilogue& epilogue = {});

}  // namespace degu
