#include "train/document_loss.h"

#include <algorithm>
#include <cmath>
#include <functional>

#include "base/random.h"
#include "nn/head.h"

namespace degu {
namespace {

constexpr int kResamples = 2000;

// The mean per token of `of_document`'s sums, mapped by `to`; its interval from resamples.
Estimate resampled(const DocumentLosses& losses, const std::function<double(size_t)>& of_document,
                   const std::function<double(double)>& to) {
  const auto n = static_cast<uint64_t>(losses.documents.size());
  const RandomStream stream(0, "bootstrap over documents");
  const auto mean = [&](const std::function<size_t(uint64_t)>& pick) {
    double sum = 0, tokens = 0;
    for (uint64_t i = 0; i < n; ++i) {
      const size_t d = pick(i);
      sum += of_document(d);
      tokens += static_cast<double>(losses.documents[d].tokens);
    }
    return to(sum / tokens);
  };
  std::vector<double> values;
  for (uint64_t b = 0; b < kResamples; ++b) {
    values.push_back(
        mean([&](uint64_t i) { return static_cast<size_t>(stream.below(b * n + i, n)); }));
  }
  std::sort(values.begin(), values.end());
  const auto at = [&](double share) {
    return values[static_cast<size_t>(std::lround(share * (kResamples - 1)))];
  };
  return {mean([](uint64_t i) { return static_cast<size_t>(i); }), at(0.025), at(0.975)};
}

}  // namespace

int64_t DocumentLosses::tokens() const {
  int64_t sum = 0;
  for (const DocumentLoss& d : documents) sum += d.tokens;
  return sum;
}

double DocumentLosses::loss() const {
  double sum = 0;
  for (const DocumentLoss& d : documents) sum += d.loss;
  return sum / static_cast<double>(tokens());
}

DocumentLosses document_losses(Context& context, const ComparedModel& model, const StepPlan& plan,
                               const ValidationSet& data) {
  Pass pass(context, model.model, plan, plan.micro_sequences, /*training=*/false);
  DocumentLosses out;
  SequenceBatch batch;
  for (int64_t first = 0; first < data.sequences(); first += plan.micro_sequences) {
    data.read(first, std::min(plan.micro_sequences, data.sequences() - first), batch);
    pass.load(batch);
    pass.forward(context, {});
    head_loss(context, pass.h_TD(), model.parameters.head(), model.model.logit_multiplier(),
              pass.targets(), pass.loss_T());
    const OnHost on_host = pass.host_loss_T();
    const View<const float> loss = on_host.as<const float>();
    for (size_t d = 0; d + 1 < batch.document_offsets.size(); ++d) {
      DocumentLoss sums;
      for (int64_t t = batch.document_offsets[d]; t < batch.document_offsets[d + 1]; ++t) {
        if (batch.targets_T[static_cast<size_t>(t)] < 0) continue;
        ++sums.tokens;
        sums.loss += double{loss[t]};
      }
      if (sums.tokens > 0) out.documents.push_back(sums);
    }
  }
  for (const ValidationSet::Domain& domain : data.domains()) out.bytes += domain.counted_bytes;
  return out;
}

Estimate perplexity(const DocumentLosses& losses) {
  return resampled(
      losses, [&](size_t d) { return losses.documents[d].loss; },
      [](double mean) { return std::exp(mean); });
}

Estimate bits_per_byte(const DocumentLosses& losses) {
  const double tokens_per_byte =
      static_cast<double>(losses.tokens()) / static_cast<double>(losses.bytes);
  return resampled(
      losses, [&](size_t d) { return losses.documents[d].loss; },
      [=](double mean) { return mean / std::log(2.0) * tokens_per_byte; });
}

Estimate perplexity_change(const DocumentLosses& losses, const DocumentLosses& reference) {
  const bool same =
      std::equal(losses.documents.begin(), losses.documents.end(), reference.documents.begin(),
                 reference.documents.end(),
                 [](const DocumentLoss& a, const DocumentLoss& b) { return a.tokens == b.tokens; });
  if (!same) {
    throw DataError("losses on {} and {} documents cannot be paired: they are of different text",
                    losses.documents.size(), reference.documents.size());
  }
  return resampled(
      losses, [&](size_t d) { return losses.documents[d].loss - reference.documents[d].loss; },
      [](double mean) { return std::expm1(mean); });
}

}  // namespace degu
