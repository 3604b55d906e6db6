// Token embedding: a look-up, and its gradient as a segmented sum.
#pragma once

#include <span>

#include "kernels/api/rows.h"
#include "tensor/context.h"

namespace degu {

// y_TD[t] = table_VD[tokens_T[t]]; both of one type (fp32 or bf16). Each token is in [0, V):
// DataError else.
void embedding(Context& context, AnyView table_VD, const RowNumbers& tokens_T, AnyView y_TD);

// dtable_SVD[s, v] = tree over units of sum over the unit's rows t with token v of dy_TD[t]
// fp32, [slots, V, D] or [V, D]; segments have one group. With kAdd only rows that occur are
// touched.
void embedding_backward(Context& context, AnyView dy_TD, std::span<const int32_t> tokens_T,
                        const UnitSegments& segments, AnyView dtable_SVD,
                        Write write = Write::kOverwrite);

}  // namespace degu
