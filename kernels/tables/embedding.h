// Entry points of kernels/api/embedding.h: filled by each backend (CPU: per instruction set).
#pragma once

#include <span>

#include "kernels/api/rows.h"
#include "tensor/context.h"

namespace degu {

struct EmbeddingKernels {
  void (*forward)(Context&, AnyView table_VD, const RowNumbers& tokens_T, AnyView y_TD);
  void (*backward)(Context&, AnyView dy_TD, std::span<const int32_t> tokens_T, const UnitSegments&,
                   AnyView dtable_SVD, int64_t width, Write);
};

}  // namespace degu
