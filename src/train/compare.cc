#include "train/compare.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <nlohmann/json.hpp>
#include <type_traits>

#include "base/random.h"
#include "nn/head.h"

namespace degu {
namespace {

constexpr int64_t kRows = 256;  // whose logits exist at once
constexpr int kResamples = 2000;

struct TokenSums {
  double tokens = 0, loss = 0, reference = 0, kl = 0, agreed = 0, rerouted = 0;

  TokenSums& operator+=(const TokenSums& other) {
    tokens += other.tokens;
    loss += other.loss;
    reference += other.reference;
    kl += other.kl;
    agreed += other.agreed;
    rerouted += other.rerouted;
    return *this;
  }
};

struct LogSoftmax {
  const float* logit;
  int64_t best = 0;
  double log_sum = 0;

  LogSoftmax(const float* row, int64_t vocab) : logit(row) {
    best = std::max_element(row, row + vocab) - row;
    double sum = 0;
    for (int64_t v = 0; v < vocab; ++v) sum += std::exp(double{row[v]} - row[best]);
    log_sum = row[best] + std::log(sum);
  }
  double operator()(int64_t v) const { return double{logit[v]} - log_sum; }
};

TokenSums compare_rows(const float* a, const float* b, int64_t vocab, int32_t target) {
  const LogSoftmax model(a, vocab);
  const LogSoftmax reference(b, vocab);
  TokenSums sums{.tokens = 1, .loss = -model(target), .reference = -reference(target)};
  for (int64_t v = 0; v < vocab; ++v) {
    const double log_p = reference(v);
    sums.kl += std::exp(log_p) * (log_p - model(v));
  }
  sums.agreed = model.best == reference.best ? 1 : 0;
  return sums;
}

// Which tokens of the pass visit another set of experts in some layer.
std::vector<char> rerouted(Pass& a, Pass& b, int64_t tokens) {
  std::vector<char> changed(static_cast<size_t>(tokens), 0);
  for (size_t l = 0; l < a.activations().blocks.size(); ++l) {
    const auto table = [l](Pass& pass) {
      return pass.activations().blocks[l].moe.router.expert_TK;
    };
    if (!table(a)) continue;
    const int64_t top_k = table(a).dim(1);
    const OnHost first(a.context(), table(a).rows(0, tokens));
    const OnHost second(b.context(), table(b).rows(0, tokens));
    const auto chosen = [&](const OnHost& experts_TK, int64_t t) {
      const int32_t* row = experts_TK.as<const int32_t>().row(t);
      std::vector<int32_t> experts(row, row + top_k);
      std::sort(experts.begin(), experts.end());
      return experts;
    };
    for (int64_t t = 0; t < tokens; ++t) {
      if (chosen(first, t) != chosen(second, t)) changed[static_cast<size_t>(t)] = 1;
    }
  }
  return changed;
}

class Comparer {
 public:
  Comparer(Context& context, const ComparedModel& model, const ComparedModel& reference,
           const StepPlan& plan)
      : context_(context),
        model_(model),
        reference_(reference),
        pass_(context, model.model, plan, plan.micro_sequences, /*training=*/true),
        reference_pass_(context, reference.model, plan, plan.micro_sequences, /*training=*/true) {}

  // One entry per document's part of the batch.
  void add(const SequenceBatch& batch, std::vector<TokenSums>& documents) {
    for (Pass* pass : {&pass_, &reference_pass_}) {
      pass->load(batch);
      pass->forward(context_, {});
    }
    const std::vector<char> changed = rerouted(pass_, reference_pass_, batch.tokens());
    std::vector<TokenSums> rows(static_cast<size_t>(batch.tokens()));
    for (int64_t begin = 0; begin < batch.tokens(); begin += kRows) {
      chunk(batch, begin, std::min(kRows, batch.tokens() - begin), changed, rows);
    }
    for (size_t d = 0; d + 1 < batch.document_offsets.size(); ++d) {
      TokenSums sums;
      for (int64_t t = batch.document_offsets[d]; t < batch.document_offsets[d + 1]; ++t) {
        sums += rows[static_cast<size_t>(t)];
      }
      if (sums.tokens > 0) documents.push_back(sums);
    }
  }

 private:
  void chunk(const SequenceBatch& batch, int64_t begin, int64_t count,
             const std::vector<char>& changed, std::vector<TokenSums>& rows) {
    const ScratchScope scope(context_.scratch());
    const int64_t vocab = model_.model.shape().vocab;
    const auto logits = [&](const ComparedModel& of, Pass& pass) {
      const AnyView out = context_.scratch().take(DType::kF32, {count, vocab});
      head_logits(context_, pass.h_TD().rows(begin, count), of.parameters.head(),
                  of.model.logit_multiplier(), out);
      return OnHost(context_, out);
    };
    const OnHost own = logits(model_, pass_);
    const OnHost others = logits(reference_, reference_pass_);
    const float* a = own.as<const float>().data();
    const float* b = others.as<const float>().data();
    context_.parallel_for(count, [&](int64_t r, int) {
      const auto t = static_cast<size_t>(begin + r);
      if (batch.targets_T[t] < 0) return;
      rows[t] = compare_rows(a + r * vocab, b + r * vocab, vocab, batch.targets_T[t]);
      rows[t].rerouted = changed[t];
    });
  }

  Context& context_;
  ComparedModel model_, reference_;
  Pass pass_, reference_pass_;
};

// `of` is evaluated on the sums over all documents, then over resamples of them.
Estimate estimate(const std::vector<TokenSums>& documents,
                  const std::function<double(const TokenSums&)>& of) {
  const auto n = static_cast<uint64_t>(documents.size());
  TokenSums all;
  for (const TokenSums& each : documents) all += each;
  const RandomStream stream(0, "bootstrap over documents");
  std::vector<double> values;
  for (uint64_t b = 0; b < kResamples; ++b) {
    TokenSums sums;
    for (uint64_t i = 0; i < n; ++i) sums += documents[stream.below(b * n + i, n)];
    values.push_back(of(sums));
  }
  std::sort(values.begin(), values.end());
  const auto at = [&](double share) {
    return values[static_cast<size_t>(std::lround(share * (kResamples - 1)))];
  };
  return {of(all), at(0.025), at(0.975)};
}

nlohmann::json estimate_json(const Estimate& e) {
  return {{"value", e.value}, {"interval", {e.low, e.high}}};
}

using PassSums = std::vector<TokenSums>;  // per document's part

// What each rank's passes brought, in the order of the passes, on every rank.
PassSums gathered(Communicator& world, const std::vector<PassSums>& own) {
  static_assert(std::is_trivially_copyable_v<TokenSums>);
  std::string bytes;
  for (const PassSums& pass : own) {
    const auto count = static_cast<uint64_t>(pass.size());
    bytes.append(reinterpret_cast<const char*>(&count), sizeof(count));
    bytes.append(reinterpret_cast<const char*>(pass.data()), pass.size() * sizeof(TokenSums));
  }
  const std::vector<std::string> all = world.gather_text(bytes);
  std::vector<size_t> read(all.size(), 0);
  PassSums documents;
  for (size_t rank = 0; read[rank] < all[rank].size(); rank = (rank + 1) % all.size()) {
    const char* from = all[rank].data() + read[rank];
    uint64_t count = 0;
    std::memcpy(&count, from, sizeof(count));
    const size_t first = documents.size();
    documents.resize(first + count);
    std::memcpy(documents.data() + first, from + sizeof(count), count * sizeof(TokenSums));
    read[rank] += sizeof(count) + count * sizeof(TokenSums);
  }
  return documents;
}

}  // namespace

Comparison compare_models(Context& context, const ComparedModel& model,
                          const ComparedModel& reference, const StepPlan& plan,
                          const ValidationSet& data, Communicator* world) {
  const ModelShape& a = model.model.shape();
  const ModelShape& b = reference.model.shape();
  if (a.vocab != b.vocab || a.layers != b.layers || a.moe.experts != b.moe.experts ||
      a.moe.top_k != b.moe.top_k) {
    throw ConfigError("models of different shapes cannot be compared token by token");
  }
  Comparer comparer(context, model, reference, plan);
  const int64_t ranks = world == nullptr ? 1 : world->size();
  const int64_t rank = world == nullptr ? 0 : world->rank();
  std::vector<PassSums> own;
  SequenceBatch batch;
  // A pass is collective over the expert group: a rank that has run out of sequences repeats the
  // first ones and drops the result.
  for (int64_t round = 0; round < data.sequences(); round += plan.micro_sequences * ranks) {
    const int64_t mine = round + plan.micro_sequences * rank;
    const int64_t first = mine < data.sequences() ? mine : 0;
    data.read(first, std::min(plan.micro_sequences, data.sequences() - first), batch);
    PassSums sums;
    comparer.add(batch, sums);
    if (first == mine) own.push_back(std::move(sums));
  }
  PassSums documents;
  if (world == nullptr) {
    for (const PassSums& pass : own) documents.insert(documents.end(), pass.begin(), pass.end());
  } else {
    documents = gathered(*world, own);
  }
  TokenSums all;
  for (const TokenSums& each : documents) all += each;
  int64_t bytes = 0;
  for (const ValidationSet::Domain& domain : data.domains()) bytes += domain.counted_bytes;
  const auto per_byte = [&](double loss) {
    return loss / (std::log(2.0) * static_cast<double>(bytes));
  };
  return {
      .tokens = static_cast<int64_t>(all.tokens),
      .documents = static_cast<int64_t>(documents.size()),
      .loss = all.loss / all.tokens,
      .reference_loss = all.reference / all.tokens,
      .bits_per_byte = per_byte(all.loss),
      .reference_bits_per_byte = per_byte(all.reference),
      .perplexity_change = estimate(
          documents,
          [](const TokenSums& s) { return std::expm1((s.loss - s.reference) / s.tokens); }),
      .kl = estimate(documents, [](const TokenSums& s) { return s.kl / s.tokens; }),
      .top1_agreement = estimate(documents, [](const TokenSums& s) { return s.agreed / s.tokens; }),
      .routing_changed =
          estimate(documents, [](const TokenSums& s) { return s.rerouted / s.tokens; }),
  };
}

nlohmann::json to_json(const Comparison& c) {
  return {{"tokens", c.tokens},
          {"documents", c.documents},
          {"loss", c.loss},
          {"reference_loss", c.reference_loss},
          {"perplexity", std::exp(c.loss)},
          {"reference_perplexity", std::exp(c.reference_loss)},
          {"bits_per_byte", c.bits_per_byte},
          {"reference_bits_per_byte", c.reference_bits_per_byte},
          {"perplexity_change", estimate_json(c.perplexity_change)},
          {"kl", estimate_json(c.kl)},
          {"top1_agreement", estimate_json(c.top1_agreement)},
          {"routing_changed", estimate_json(c.routing_changed)}};
}

}  // namespace degu
