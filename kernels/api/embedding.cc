#include "kernels/api/embedding.h"

#include "kernels/api/check.h"
#include "kernels/dispatch.h"
#include "kernels/tables/embedding.h"
#include "tensor/trace.h"

namespace degu {
namespace {

const EmbeddingKernels& kernels(const Context& context) {
  return kernels_for<EmbeddingKernels>(context, "embedding");
}

void check_tokens(const char* op, std::span<const int32_t> tokens, int64_t vocab) {
  for (size_t t = 0; t < tokens.size(); ++t) {
    if (tokens[t] < 0 || tokens[t] >= vocab) {
      throw DataError(
          "{}: token {} at row {} is outside the vocabulary of {}; was the text encoded "
          "with another tokenizer?",
          op, tokens[t], t, vocab);
    }
  }
}

}  // namespace

void embedding(Context& context, AnyView table_VD, const RowNumbers& tokens_T, AnyView y_TD) {
  const TraceScope span(context, "embedding");
  check::floating(context, "embedding", "table_VD", table_VD);
  if (table_VD.shape.rank() != 2) {
    throw ShapeError("embedding: table_VD is {}, must be [V, D]", table_VD.shape.str());
  }
  check::type(context, "embedding", "y_TD", y_TD, {table_VD.dtype});
  check::elements("embedding", "y_TD", y_TD,
                  static_cast<int64_t>(tokens_T.size()) * table_VD.dim(1));
  check_tokens("embedding", tokens_T.host, table_VD.dim(0));
  kernels(context).forward(context, table_VD, tokens_T, y_TD);
}

void embedding_backward(Context& context, AnyView dy_TD, std::span<const int32_t> tokens_T,
                        const UnitSegments& segments, AnyView dtable_SVD, Write write) {
  const TraceScope span(context, "embedding_backward");
  constexpr const char* kOp = "embedding_backward";
  check::floating(context, kOp, "dy_TD", dy_TD);
  check::type(context, kOp, "dtable_SVD", dtable_SVD, {DType::kF32});
  const int rank = dtable_SVD.shape.rank();
  if (rank < 2 || rank > 3) {
    throw ShapeError("{}: dtable_SVD is {}, must be [slots, V, D] or [V, D]", kOp,
                     dtable_SVD.shape.str());
  }
  const auto rows = static_cast<int64_t>(tokens_T.size());
  const int64_t width = dtable_SVD.dim(rank - 1);
  const int64_t vocab = dtable_SVD.dim(rank - 2);
  check::elements(kOp, "dy_TD", dy_TD, rows * width);
  check::segments(kOp, segments, rows);
  check::elements(kOp, "dtable_SVD", dtable_SVD, segments.slots * vocab * width);
  check_tokens(kOp, tokens_T, vocab);
  kernels(context).backward(context, dy_TD, tokens_T, segments, dtable_SVD, width, write);
}

}  // namespace degu
