// Matrix products over rows grouped by expert. A dense layer is the case of one group.
#pragma once

#include "kernels/api/quantize.h"
#include "kernels/api/rows.h"
#include "kernels/api/weight.h"

namespace degu {

struct Epilogue {
  AnyView add_RF{};  // same type and shape as y: y = product + add (one rounding); may be y itself
};

// y_RF[r, f] = sum_d x_RD[r, d] * w_eFD[e, f, d]   for the rows r of expert e
//
// x_RD  the scheme's activation type (codes and scales, where it is int8); y_RF  fp32 or bf16;
// groups.groups() == w.experts. Sums are fp32 (integer within a quantization group); their order
// depends on D and the instruction set alone, not on R, the row's place, the tile it falls in, or
// threads. Integer schemes give the same fp32 sums on all instruction sets. With a kBackward
// packing the same operator is dx_RD = dy_RF · W. Rows at and beyond groups.rows() are left
// untouched. ShapeError when sizes or types do not fit.
void grouped_gemm(Context& context, const Activation& x_RD, const PackedWeight& w,
                  const RowGroups& groups, AnyView y_RF, const Epilogue& epilogue = {});

// The case of one group: all rows of x_RD.
void gemm(Context& context, const Activation& x_RD, const PackedWeight& w, AnyView y_RF,
          const Epilogue& epilogue = {});

// dw_SEFD[s, e, f, d] = tree over units u of ( sum over rows r of (e, s, u) of dy_RF[r, f] *
// x_RD[r, d] )
//
// x and dy are both fp32 or both bf16; dw_SEFD is fp32, [slots, groups, F, D] (leading ones may be
// left out). Each unit's sum runs over its rows in order; the units of a slot are joined as
// ((u0 + u1) + (u2 + u3)) + …; an empty unit counts as +0. With Write::kAdd one further addition
// joins what dw held: dw + result.
void grouped_gemm_dw(Context& context, AnyView dy_RF, AnyView x_RD, const UnitSegments& segments,
                     AnyView dw_SEFD, Write write = Write::kOverwrite);

}  // namespace degu
