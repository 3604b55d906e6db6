#include "nn/linear.h"

namespace degu {

void linear(Context& context, AnyView x_TD, const Parameter& weight, AnyView y_TF,
            const Epilogue& epilogue) {
  gemm(context, x_TD, weight.forward, y_TF, epilogue);
}

void linear_backward(Context& context, AnyView dy_TF, AnyView x_TD, const UnitSegments& units,
                     Parameter& weight, AnyView dx_TD, const Epilogue& epilogue) {
  grouped_gemm_dw(context, dy_TF, x_TD, units, weight.gradient, weight.write);
  if (dx_TD) gemm(context, dy_TF, weight.backward, dx_TD, epilogue);
}

void expert_linear(Context& context, AnyView x_RD, const Parameter& weights, const RowGroups& rows,
                   AnyView y_RF) {
  grouped_gemm(context, x_RD, weights.forward, rows, y_RF);
}

void expert_linear_backward(Context& context, AnyView dy_RF, AnyView x_RD, const RowGroups& rows,
                            const UnitSegments& units, Parameter& weights, AnyView dx_RD,
                            const Epilogue& epilogue) {
  grouped_gemm_dw(context, dy_RF, x_RD, units, weights.gradient, weights.write);
  grouped_gemm(context, dy_RF, weights.backward, rows, dx_RD, epilogue);
}

}  // namespace degu
