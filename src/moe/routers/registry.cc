// The routers that `model.moe.router` can name: one line each, in the order of RouterKind.
#include "moe/routers/hash.h"
#include "moe/routers/topk.h"

namespace degu {
namespace {

using MakeRouter = std::unique_ptr<Router> (*)(const ModelShape&, const RouterParameters&);

constexpr MakeRouter kRouters[] = {
    make_softmax_router,  // RouterKind::kSoftmax
    make_sigmoid_router,  // RouterKind::kSigmoid
    make_hash_router,     // RouterKind::kHash
};
static_assert(std::size(kRouters) == enum_names(RouterKind{}).size());

}  // namespace

std::unique_ptr<Router> make_router(const ModelShape& shape, const RouterParameters& parameters) {
  return kRouters[static_cast<size_t>(shape.moe.router)](shape, parameters);
}

RouterActivations RouterActivations::take(Arena& arena, const MoeShape& moe, int64_t tokens) {
  return {.logit_TE = arena.take(DType::kF32, {tokens, moe.experts}),
          .score_TE = arena.take(DType::kF32, {tokens, moe.experts}),
          .expert_TK = arena.take(DType::kI32, {tokens, moe.top_k}),
          .gate_TK = arena.take(DType::kF32, {tokens, moe.top_k}),
          .lse_T = arena.take(DType::kF32, {tokens})};
}

RouterActivations RouterActivations::rows(int64_t count) const {
  return {.logit_TE = logit_TE.rows(0, count),
          .score_TE = score_TE.rows(0, count),
          .expert_TK = expert_TK.rows(0, count),
          .gate_TK = gate_TK.rows(0, count),
          .lse_T = lse_T.rows(0, count)};
}

}  // namespace degu
