#include "kernels/api/router.h"

#include "kernels/api/check.h"
#include "kernels/dispatch.h"
#include "kernels/tables/router.h"
#include "tensor/trace.h"

namespace degu {
namespace {

const RouterKernels& kernels(const Context& context) {
  return kernels_for<RouterKernels>(context, "router");
}

void fits(const Context& context, const char* op, const char* name, const AnyView& view, DType type,
          Shape shape) {
  check::type(context, op, name, view, {type});
  if (view.elements() != shape.elements() ||
      (view.shape.rank() > 1 && view.shape[view.shape.rank() - 1] != shape[shape.rank() - 1])) {
    throw ShapeError("{}: {} is {}, must be {}", op, name, view.shape.str(), shape.str());
  }
}

// T and E of a token-by-expert matrix.
Shape tokens_by_experts(const char* op, const char* name, const AnyView& view, int64_t top_k) {
  if (view.shape.rank() != 2) {
    throw ShapeError("{}: {} is {}, must be [T, E]", op, name, view.shape.str());
  }
  if (top_k < 1 || top_k > view.dim(1)) {
    throw ShapeError("{}: top_k is {}, must be from 1 to the {} experts", op, top_k, view.dim(1));
  }
  return view.shape;
}

void token_groups(const char* op, std::span<const int64_t> offsets, int64_t tokens) {
  bool good = !offsets.empty() && offsets.front() == 0 && offsets.back() == tokens;
  for (size_t g = 0; good && g + 1 < offsets.size(); ++g) good = offsets[g] <= offsets[g + 1];
  if (!good) throw ShapeError("{}: balance groups must run from token 0 to {}", op, tokens);
}

}  // namespace

void router_topk(Context& context, AnyView logit_TE, AnyView bias_E, const RouterOptions& options,
                 AnyView score_TE, AnyView expert_TK, AnyView gate_TK, AnyView lse_T) {
  const TraceScope span(context, "router_topk");
  constexpr const char* kOp = "router_topk";
  const Shape te = tokens_by_experts(kOp, "logit_TE", logit_TE, options.top_k);
  fits(context, kOp, "logit_TE", logit_TE, DType::kF32, te);
  if (bias_E) fits(context, kOp, "bias_E", bias_E, DType::kF32, {te[1]});
  fits(context, kOp, "score_TE", score_TE, DType::kF32, te);
  fits(context, kOp, "expert_TK", expert_TK, DType::kI32, {te[0], options.top_k});
  fits(context, kOp, "gate_TK", gate_TK, DType::kF32, {te[0], options.top_k});
  fits(context, kOp, "lse_T", lse_T, DType::kF32, {te[0]});
  kernels(context).topk(context, logit_TE, bias_E, options, score_TE, expert_TK, gate_TK, lse_T);
}

void router_topk_backward(Context& context, AnyView logit_TE, AnyView score_TE, AnyView expert_TK,
                          AnyView gate_TK, AnyView lse_T, AnyView dgate_TK, AnyView dscore_GE,
                          std::span<const int64_t> group_offsets, float dz,
                          const RouterOptions& options, AnyView dlogit_TE) {
  const TraceScope span(context, "router_topk_backward");
  constexpr const char* kOp = "router_topk_backward";
  const Shape te = tokens_by_experts(kOp, "logit_TE", logit_TE, options.top_k);
  const Shape tk = {te[0], options.top_k};
  fits(context, kOp, "logit_TE", logit_TE, DType::kF32, te);
  fits(context, kOp, "score_TE", score_TE, DType::kF32, te);
  fits(context, kOp, "expert_TK", expert_TK, DType::kI32, tk);
  fits(context, kOp, "gate_TK", gate_TK, DType::kF32, tk);
  fits(context, kOp, "lse_T", lse_T, DType::kF32, {te[0]});
  fits(context, kOp, "dgate_TK", dgate_TK, DType::kF32, tk);
  fits(context, kOp, "dlogit_TE", dlogit_TE, DType::kF32, te);
  if (dscore_GE) {
    token_groups(kOp, group_offsets, te[0]);
    const auto groups = static_cast<int64_t>(group_offsets.size()) - 1;
    fits(context, kOp, "dscore_GE", dscore_GE, DType::kF32, {groups, te[1]});
  }
  kernels(context).topk_backward(context, logit_TE, score_TE, expert_TK, lse_T, dgate_TK, dscore_GE,
                                 group_offsets, dz, options, dlogit_TE);
}

void router_balance(Context& context, AnyView score_TE, AnyView expert_TK,
                    std::span<const int64_t> group_offsets, Score score, AnyView count_GE,
                    AnyView score_sum_GE) {
  const TraceScope span(context, "router_balance");
  constexpr const char* kOp = "router_balance";
  const Shape te = tokens_by_experts(kOp, "score_TE", score_TE, 1);
  fits(context, kOp, "score_TE", score_TE, DType::kF32, te);
  if (expert_TK.shape.rank() != 2) {
    throw ShapeError("{}: expert_TK is {}, must be [T, K]", kOp, expert_TK.shape.str());
  }
  fits(context, kOp, "expert_TK", expert_TK, DType::kI32, {te[0], expert_TK.dim(1)});
  token_groups(kOp, group_offsets, te[0]);
  const Shape ge = {static_cast<int64_t>(group_offsets.size()) - 1, te[1]};
  fits(context, kOp, "count_GE", count_GE, DType::kI64, ge);
  fits(context, kOp, "score_sum_GE", score_sum_GE, DType::kF32, ge);
  kernels(context).balance(context, score_TE, expert_TK, group_offsets, score, count_GE,
                           score_sum_GE);
}

void balance_losses(Context& context, AnyView count_GE, AnyView score_sum_GE, AnyView lse_T,
                    std::span<const int64_t> group_offsets, int64_t top_k, double aux_weight,
                    AnyView aux_G, AnyView z_G, AnyView load_E, AnyView dscore_GE) {
  const TraceScope span(context, "balance_losses");
  constexpr const char* kOp = "balance_losses";
  const Shape ge = tokens_by_experts(kOp, "count_GE", count_GE, top_k);
  const Shape g = {ge[0]};
  token_groups(kOp, group_offsets, lse_T.elements());
  if (static_cast<int64_t>(group_offsets.size()) != ge[0] + 1) {
    throw ShapeError("{}: {} group offsets for {} groups, must be one more", kOp,
                     group_offsets.size(), ge[0]);
  }
  fits(context, kOp, "count_GE", count_GE, DType::kI64, ge);
  fits(context, kOp, "score_sum_GE", score_sum_GE, DType::kF32, ge);
  fits(context, kOp, "lse_T", lse_T, DType::kF32, {lse_T.elements()});
  fits(context, kOp, "aux_G", aux_G, DType::kF64, g);
  fits(context, kOp, "z_G", z_G, DType::kF64, g);
  fits(context, kOp, "load_E", load_E, DType::kI64, {ge[1]});
  fits(context, kOp, "dscore_GE", dscore_GE, DType::kF32, ge);
  kernels(context).balance_losses(context, count_GE, score_sum_GE, lse_T, group_offsets, top_k,
                                  aux_weight, aux_G, z_G, load_E, dscore_GE);
}

void balance_bias(Context& context, AnyView load_E, double rate, AnyView scale, AnyView bias_E) {
  const TraceScope span(context, "balance_bias");
  constexpr const char* kOp = "balance_bias";
  const Shape e = {load_E.elements()};
  fits(context, kOp, "load_E", load_E, DType::kI64, e);
  fits(context, kOp, "bias_E", bias_E, DType::kF32, e);
  if (scale) fits(context, kOp, "scale", scale, DType::kF32, {1});
  kernels(context).balance_bias(context, load_E, static_cast<float>(rate),
                                static_cast<const float*>(scale.data), bias_E);
}

}  // namespace degu
