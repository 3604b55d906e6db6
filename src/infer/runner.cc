#include "infer/runner.h"

#include <algorithm>
#include <cstring>

#include "base/log.h"
#include "kernels/api/permute.h"
#include "moe/router.h"
#include "nn/head.h"

namespace degu {
namespace {

struct Workspace {
  Activations activations;
  AnyView wanted_R, h_RD, logit_RV;
  AnyView graph_inputs;
};

Workspace lay_out(Arena& arena, const ParameterSet& parameters, const Transformer& model,
                  const PassLimits& limits) {
  const ModelShape& shape = model.shape();
  Workspace w;
  w.activations = model.take(arena, limits.rows, /*balance_groups=*/0, Keep::kNothing);
  w.wanted_R = arena.take(DType::kI32, {limits.logit_rows});
  w.h_RD = arena.take(parameters.activation(), {limits.logit_rows, shape.width});
  w.logit_RV = arena.take(DType::kF32, {limits.logit_rows, shape.vocab});
  if (parameters.device() != DeviceType::kCpu) {
    w.graph_inputs = arena.take(DType::kU8, {DecodeGraphs::kInputBytes});
  }
  return w;
}

void put(std::string& bytes, int64_t value) {
  bytes.append(reinterpret_cast<const char*>(&value), sizeof(value));
}
void put(std::string& bytes, const std::vector<int32_t>& values) {
  put(bytes, static_cast<int64_t>(values.size()));
  bytes.append(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(int32_t));
}

class PlanBytes {
 public:
  explicit PlanBytes(std::string_view bytes) : rest_(bytes) {}
  int64_t number() {
    int64_t value = 0;
    std::memcpy(&value, take(sizeof(value)), sizeof(value));
    return value;
  }
  std::vector<int32_t> list() {
    const int64_t count = number();
    if (count < 0 || static_cast<size_t>(count) > rest_.size() / sizeof(int32_t)) fail();
    std::vector<int32_t> values(static_cast<size_t>(count));
    const size_t size = values.size() * sizeof(int32_t);
    const char* from = take(size);
    if (size > 0) std::memcpy(values.data(), from, size);
    return values;
  }
  [[noreturn]] static void fail() {
    throw DataError("a plan of a pass is cut short; ranks must run the same version");
  }

 private:
  const char* take(size_t size) {
    if (rest_.size() < size) fail();
    const char* at = rest_.data();
    rest_.remove_prefix(size);
    return at;
  }
  std::string_view rest_;
};

}  // namespace

int64_t PassPlan::rows() const {
  int64_t sum = 0;
  for (const SequenceRows& s : sequences) sum += s.rows();
  return sum;
}

int64_t PassPlan::logit_rows() const {
  int64_t sum = 0;
  for (const SequenceRows& s : sequences) sum += s.logit_rows();
  return sum;
}

std::string encode_plan(const PassPlan& plan) {
  std::string bytes;
  put(bytes, static_cast<int64_t>(plan.sequences.size()));
  for (const SequenceRows& s : plan.sequences) {
    put(bytes, s.first_position);
    put(bytes, s.logits_from);
    put(bytes, s.tokens);
    put(bytes, s.pages);
    put(bytes, s.fresh);
  }
  return bytes;
}

PassPlan decode_plan(std::string_view bytes) {
  PlanBytes in(bytes);
  PassPlan plan;
  for (int64_t left = in.number(); left > 0; --left) {
    SequenceRows& s = plan.sequences.emplace_back();
    s.first_position = in.number();
    s.logits_from = in.number();
    s.tokens = in.list();
    s.pages = in.list();
    s.fresh = in.list();
  }
  return plan;
}

void require_servable(const ModelShape& shape) {
  if (shape.moe.experts == 0) return;
  if (shape.moe.capacity_factor > 0) {
    throw ConfigError(
        "model.moe.capacity_factor is {}: which tokens an expert drops depends on the batch, so "
        "this model cannot be served; train it with capacity_factor 0",
        shape.moe.capacity_factor);
  }
  const auto router = make_router(shape, {});
  if (!router->causal() || !router->batch_invariant()) {
    const auto name = enum_names(shape.moe.router)[static_cast<size_t>(shape.moe.router)];
    throw ConfigError(
        "model.moe.router {}: a token's experts depend on {}, so this model cannot be served; "
        "choose a router that decides per token",
        name, router->causal() ? "the other sequences of the batch" : "later tokens");
  }
}

size_t ModelRunner::workspace_bytes(const ParameterSet& parameters, const Transformer& model,
                                    const PassLimits& limits) {
  Arena counter = Arena::measuring(parameters.device());
  lay_out(counter, parameters, model, limits);
  return counter.used();
}

ModelRunner::ModelRunner(Context& context, ParameterSet& parameters, const Transformer& model,
                         const PassLimits& limits, DType kv_type, int32_t pages, bool graphs)
    : context_(context),
      parameters_(parameters),
      model_(model),
      limits_(limits),
      kv_((require_servable(model.shape()), context), model.shape(), kv_type, pages),
      arena_(workspace_bytes(parameters, model, limits), context.device()) {
  Workspace w = lay_out(arena_, parameters, model, limits);
  activations_ = std::move(w.activations);
  wanted_R_ = w.wanted_R;
  h_RD_ = w.h_RD;
  logit_RV_ = w.logit_RV;
  start_graphs(graphs, w.graph_inputs);
}

void ModelRunner::start_graphs(bool wanted, AnyView inputs) {
  const ModelShape& s = shape();
  if (!wanted) {
    no_graphs_ = "not wanted";
  } else if (context_.device() != DeviceType::kCuda) {
    no_graphs_ = "no GPU";
  } else if (parameters_.experts().count < s.moe.experts) {
    no_graphs_ = "experts are spread over ranks, and each layer waits for the counts of the rows";
    log_info("decode passes run without graphs: {}", no_graphs_);
  } else {
    graphs_ = std::make_unique<DecodeGraphs>(context_, kv_, inputs,
                                             std::min(limits_.rows, limits_.logit_rows), s.vocab);
  }
}

GraphStats ModelRunner::graph_stats() const {
  return graphs_ ? graphs_->stats() : GraphStats{.off = no_graphs_};
}

void ModelRunner::load(const PassPlan& plan) {
  if (plan.rows() > limits_.rows || plan.logit_rows() > limits_.logit_rows) {
    throw ShapeError("a pass of {} tokens and {} rows of logits; the limits are {} and {}",
                     plan.rows(), plan.logit_rows(), limits_.rows, limits_.logit_rows);
  }
  tokens_.clear();
  positions_.clear();
  offsets_.assign(1, 0);
  first_position_.clear();
  max_pages_ = 0;
  const OnHost wanted_host = OnHost::unfilled(context_, wanted_R_.rows(0, plan.logit_rows()));
  const View<int32_t> wanted = wanted_host.as<int32_t>();
  int64_t wanted_rows = 0;
  for (const SequenceRows& s : plan.sequences) {
    for (int64_t r = s.logits_from; r < s.rows(); ++r) {
      wanted[wanted_rows++] = static_cast<int32_t>(offsets_.back() + r);
    }
    tokens_.insert(tokens_.end(), s.tokens.begin(), s.tokens.end());
    for (int64_t r = 0; r < s.rows(); ++r) {
      positions_.push_back(static_cast<int32_t>(s.first_position + r));
    }
    offsets_.push_back(offsets_.back() + s.rows());
    first_position_.push_back(s.first_position);
    max_pages_ = std::max(max_pages_, kv_pages_for(s.first_position + s.rows()));
    kv_.zero(context_, s.fresh);
  }
  wanted_host.put_back();
  table_.assign(static_cast<size_t>(max_pages_) * plan.sequences.size(), -1);
  for (size_t i = 0; i < plan.sequences.size(); ++i) {
    const SequenceRows& s = plan.sequences[i];
    const int64_t count = kv_pages_for(s.first_position + s.rows());
    DEGU_DCHECK(count <= static_cast<int64_t>(s.pages.size()));
    std::copy_n(s.pages.begin(), count,
                table_.begin() + static_cast<std::ptrdiff_t>(i) * max_pages_);
  }
}

void ModelRunner::forward(const Batch& batch) {
  all_rows_ = {0, batch.tokens()};
  const TokenGroups groups{.units = {.offsets = all_rows_, .groups = 1, .slots = 1, .units = 1},
                           .balance_offsets = all_rows_,
                           .capacity_offsets = all_rows_};
  model_.forward(context_, batch, groups, {}, activations_);
}

// Every row wants logits.
void ModelRunner::run_decode(const PassPlan& plan) {
  for (const SequenceRows& s : plan.sequences) kv_.zero(context_, s.fresh);
  graphs_->run(plan, [this](const Batch& batch) {
    forward(batch);
    head_logits(context_, activations_.h_TD.rows(0, batch.tokens()), parameters_.head(),
                model_.logit_multiplier(), logit_RV_.rows(0, batch.tokens()));
  });
}

void ModelRunner::run_rows(const PassPlan& plan) {
  load(plan);
  forward({.tokens_T = tokens_,
           .positions_T = positions_,
           .sequences = {.offsets = offsets_, .first_position = first_position_},
           .kv_L = kv_.views(table_, max_pages_)});
  const int64_t wanted = plan.logit_rows();
  if (wanted == 0) return;
  const AnyView h = h_RD_.rows(0, wanted);
  gather_rows(context_, activations_.h_TD.rows(0, plan.rows()), wanted_R_.rows(0, wanted), h);
  head_logits(context_, h, parameters_.head(), model_.logit_multiplier(),
              logit_RV_.rows(0, wanted));
}

PassOutput ModelRunner::run(const PassPlan& plan) {
  if (graphs_ && graphs_->takes(plan)) {
    run_decode(plan);
  } else {
    run_rows(plan);
  }
  PassOutput out;
  on_host_.clear();
  out.logit_RV = on_host_.emplace_back(context_, logit_RV_.rows(0, plan.logit_rows())).as<float>();
  if (!activations_.expert_LTK) return out;
  const AnyView experts = on_host_.emplace_back(context_, activations_.expert_LTK);
  for (int64_t layer = 0; layer < experts.dim(0); ++layer) {
    const AnyView expert_TK = experts.rows(layer, 1).reshaped({experts.dim(1), experts.dim(2)});
    out.expert_LTK.push_back(expert_TK.rows(0, plan.rows()));
  }
  for (const BlockActivations& block : activations_.blocks) {
    out.exchange_seconds += block.moe.dispatch.exchange_seconds;
  }
  return out;
}

}  // namespace degu
