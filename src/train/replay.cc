#include "train/replay.h"

#include <algorithm>

#include "nn/head.h"
#include "train/route_file.h"

namespace degu {
namespace {

RecordedRoutes joined(const std::vector<RouteLine>& text, const ModelShape& shape) {
  const auto tokens = static_cast<int64_t>(text.size());
  const int64_t layers = moe_layers(shape);
  const int64_t k = shape.moe.top_k;
  RecordedRoutes out;
  out.experts_LTK.assign(static_cast<size_t>(layers * tokens * k), -1);
  for (int64_t t = 0; t < tokens; ++t) {
    const RouteLine& line = text[static_cast<size_t>(t)];
    out.tokens_T.push_back(line.token);
    if (line.experts_LK.empty()) continue;
    for (int64_t l = 0; l < layers; ++l) {
      std::copy_n(line.experts_LK.begin() + l * k, k,
                  out.experts_LTK.begin() + (l * tokens + t) * k);
    }
  }
  return out;
}

SequenceBatch one_sequence(const std::vector<int32_t>& tokens) {
  SequenceBatch batch;
  batch.sequences = 1;
  batch.sequence_length = static_cast<int64_t>(tokens.size());
  batch.tokens_T = tokens;
  batch.targets_T.assign(tokens.begin() + 1, tokens.end());
  batch.targets_T.push_back(SequenceBatch::kNotCounted);
  for (size_t i = 0; i < tokens.size(); ++i) {
    batch.positions_T.push_back(static_cast<int32_t>(i));
  }
  batch.document_offsets = {0, batch.tokens()};
  batch.counted_targets = batch.tokens() - 1;
  return batch;
}

double loss_of(Context& context, const ComparedModel& model, Pass& pass) {
  pass.forward(context, {});
  head_loss(context, pass.h_TD(), model.parameters.head(), model.model.logit_multiplier(),
            pass.targets(), pass.loss_T());
  const OnHost on_host = pass.host_loss_T();
  const View<const float> loss = on_host.as<const float>();
  double sum = 0;
  for (int64_t t = 0; t < loss.elements(); ++t) {
    if (pass.targets()[static_cast<size_t>(t)] >= 0) sum += double{loss[t]};
  }
  return sum;
}

// Tokens with recorded experts, and those that the pass just run sent to another set somewhere.
void count_rerouted(Pass& pass, const RecordedRoutes& routes, int64_t top_k, ReplayLoss& out) {
  const auto tokens = static_cast<int64_t>(routes.tokens_T.size());
  std::vector<char> changed(routes.tokens_T.size(), 0);
  const int32_t* recorded = routes.experts_LTK.data();
  for (const BlockActivations& block : pass.activations().blocks) {
    if (!block.moe.router.expert_TK) continue;
    const OnHost chosen(pass.context(), block.moe.router.expert_TK.rows(0, tokens));
    for (int64_t t = 0; t < tokens; ++t) {
      const int32_t* now = chosen.as<const int32_t>().row(t);
      const int32_t* then = recorded + t * top_k;
      if (!std::is_permutation(now, now + top_k, then)) changed[static_cast<size_t>(t)] = 1;
    }
    recorded += tokens * top_k;
  }
  for (int64_t t = 0; t < tokens; ++t) {
    if (routes.experts_LTK[static_cast<size_t>(t * top_k)] < 0) continue;
    ++out.recorded;
    out.rerouted += changed[static_cast<size_t>(t)];
  }
}

}  // namespace

std::vector<RecordedRoutes> read_routes(const std::string& path, const ModelShape& shape) {
  RouteReader reader(path, shape);
  std::vector<RouteLine> text;
  std::vector<RecordedRoutes> texts;
  for (RouteLine line; reader.next(line);) {
    if (!text.empty() && line.text != text.front().text) {
      texts.push_back(joined(text, shape));
      text.clear();
    }
    if (line.position != static_cast<int64_t>(text.size())) {
      reader.fail(
          fmt::format("position {} follows {} tokens of its text", line.position, text.size()));
    }
    text.push_back(line);
  }
  if (text.empty()) throw DataError("{}: holds no routes", path);
  texts.push_back(joined(text, shape));
  return texts;
}

void replay(Activations& activations, const RecordedRoutes* routes) {
  size_t layer = 0;
  for (BlockActivations& block : activations.blocks) {
    const AnyView chosen = block.moe.router.expert_TK;
    block.moe.replay_TK = {};
    if (!chosen || routes == nullptr) continue;
    const auto tokens = static_cast<int64_t>(routes->tokens_T.size());
    const int64_t k = chosen.dim(1);
    const int32_t* first = routes->experts_LTK.data() + layer * static_cast<size_t>(tokens * k);
    block.moe.replay_TK = View<const int32_t>(first, {tokens, k});
    ++layer;
  }
}

ReplayLoss replay_loss(Context& context, const ComparedModel& model,
                       const std::vector<RecordedRoutes>& texts) {
  size_t longest = 0;
  for (const RecordedRoutes& text : texts) longest = std::max(longest, text.tokens_T.size());
  const StepPlan plan{.sequence_length = static_cast<int64_t>(longest),
                      .unit_sequences = 1,
                      .micro_sequences = 1,
                      .balance_sequences = 1,
                      .capacity_sequences = 1};
  Pass pass(context, model.model, plan, 1, /*training=*/true);
  ReplayLoss out;
  double own = 0, replayed = 0;
  for (const RecordedRoutes& text : texts) {
    if (text.tokens_T.size() < 2) continue;  // nothing to predict
    const SequenceBatch batch = one_sequence(text.tokens_T);
    pass.load(batch);
    replay(pass.activations(), nullptr);
    own += loss_of(context, model, pass);
    count_rerouted(pass, text, model.model.shape().moe.top_k, out);
    replay(pass.activations(), &text);
    replayed += loss_of(context, model, pass);
    ++out.texts;
    out.tokens += batch.counted_targets;
  }
  if (out.tokens == 0) throw DataError("no text of the routes has two tokens");
  out.loss = own / static_cast<double>(out.tokens);
  out.replayed_loss = replayed / static_cast<double>(out.tokens);
  return out;
}

}  // namespace degu
