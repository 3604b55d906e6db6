// Losses document by document.
#include "train/document_loss.h"

#include <catch2/catch.hpp>

#include <cmath>

#include "comm/communicator.h"
#include "tests/train/tiny_run.h"
#include "train/evaluate.h"

namespace degu {
namespace {

using namespace degu::testing;

TEST_CASE("documents add up to the evaluator's loss, and pairs compare") {
  Context context({.threads = 2, .scratch_bytes = size_t{1} << 30});
  RunConfig config = tiny_run();
  config.model.tied_head = false;
  const TokenDataset dataset(config.data.paths);
  config = resolve_config(config, dataset);
  const ValidationSet data(dataset, config.data);
  const StepPlan plan{.sequence_length = config.data.sequence_length,
                      .unit_sequences = 1,
                      .micro_sequences = 3,
                      .balance_sequences = 1,
                      .capacity_sequences = 1};
  std::vector<DocumentLosses> losses;
  for (uint64_t seed : {1u, 2u}) {
    ParameterSet parameters(context, config.model, DType::kBF16, {0, config.model.moe.experts},
                            false);
    const Transformer model(parameters);
    parameters.initialise(context, seed);
    parameters.pack(context);
    losses.push_back(document_losses(context, {parameters, model}, plan, data));
    const DocumentLosses& own = losses.back();
    const std::unique_ptr<Communicator> self = make_self_communicator();
    const ValidationResult all = Evaluator(context, parameters, model, plan, data, *self).run();
    CHECK(own.loss() == Approx(all.loss).epsilon(1e-9));
    CHECK(own.tokens() == all.domains[0].tokens);
    CHECK(own.documents.size() > 1);
    const Estimate ppl = perplexity(own);
    CHECK(ppl.value == Approx(std::exp(all.loss)).epsilon(1e-9));
    CHECK(ppl.low < ppl.value);
    CHECK(ppl.value < ppl.high);
    const Estimate bits = bits_per_byte(own);
    CHECK(bits.value == Approx(all.bits_per_byte).epsilon(1e-9));
    CHECK(bits.low < bits.value);
    CHECK(bits.value < bits.high);
  }
  const Estimate none = perplexity_change(losses[0], losses[0]);
  CHECK(none.value == 0);
  CHECK(none.low == 0);
  CHECK(none.high == 0);
  const Estimate change = perplexity_change(losses[0], losses[1]);
  CHECK(change.value == Approx(std::expm1(losses[0].loss() - losses[1].loss())).margin(1e-12));
  CHECK(change.low <= change.value);
  CHECK(change.value <= change.high);
  losses[1].documents.pop_back();
  CHECK_THROWS_AS(perplexity_change(losses[0], losses[1]), DataError);
}

}  // namespace
}  // namespace degu
