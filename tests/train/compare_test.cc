// Two models token by token.
#include "train/compare.h"

#include <catch2/catch.hpp>
#include <nlohmann/json.hpp>

#include "comm/communicator.h"
#include "tests/train/tiny_run.h"

namespace degu {
namespace {

using namespace degu::testing;

struct Model {
  Model(Context& context, const RunConfig& config, uint64_t seed)
      : parameters(context, config.model, DType::kBF16, {0, config.model.moe.experts}, false),
        model(parameters) {
    parameters.initialise(context, seed);
    parameters.pack(context);
  }
  ParameterSet parameters;
  Transformer model;
};

TEST_CASE("a model compared with itself and with another one") {
  Context context({.threads = 2, .scratch_bytes = size_t{1} << 30});
  RunConfig config = tiny_run();
  config.model.tied_head = false;  // untrained and tied, both would predict the token itself
  const TokenDataset dataset(config.data.paths);
  config = resolve_config(config, dataset);
  const ValidationSet data(dataset, config.data);
  const StepPlan plan{.sequence_length = config.data.sequence_length,
                      .unit_sequences = 1,
                      .micro_sequences = 3,
                      .balance_sequences = 1,
                      .capacity_sequences = 1};
  Model a(context, config, 1);
  Model b(context, config, 2);
  const auto measured = [&](Model& m) {
    const std::unique_ptr<Communicator> self = make_self_communicator();
    return Evaluator(context, m.parameters, m.model, plan, data, *self).run();
  };

  const Comparison same =
      compare_models(context, {a.parameters, a.model}, {a.parameters, a.model}, plan, data);
  CHECK(same.loss == same.reference_loss);
  CHECK(same.perplexity_change.value == 0);
  CHECK(same.kl.value == 0);
  CHECK(same.kl.high == 0);
  CHECK(same.top1_agreement.low == 1);
  CHECK(same.routing_changed.high == 0);

  const Comparison other =
      compare_models(context, {a.parameters, a.model}, {b.parameters, b.model}, plan, data);
  const ValidationResult of_a = measured(a);
  const ValidationResult of_b = measured(b);
  CHECK(other.loss == Approx(of_a.loss).epsilon(1e-6));
  CHECK(other.reference_loss == Approx(of_b.loss).epsilon(1e-6));
  CHECK(other.bits_per_byte == Approx(of_a.bits_per_byte).epsilon(1e-6));
  CHECK(other.reference_bits_per_byte == Approx(of_b.bits_per_byte).epsilon(1e-6));
  CHECK(other.tokens == of_a.domains[0].tokens);
  CHECK(other.documents > 1);
  CHECK(other.perplexity_change.value == Approx(std::exp(of_a.loss - of_b.loss) - 1).epsilon(1e-4));
  CHECK(other.kl.value > 0);
  CHECK(other.top1_agreement.value < 1);
  CHECK(other.routing_changed.value > 0.5);  // two random routers agree on few pairs of four
  for (const Estimate* e :
       {&other.perplexity_change, &other.kl, &other.top1_agreement, &other.routing_changed}) {
    CHECK(e->low <= e->value);
    CHECK(e->value <= e->high);
  }
  CHECK(to_json(other).at("kl").at("interval").size() == 2);

  // On any number of ranks, experts spread or not, the same bits.
  for (int ranks : {2, 3, 4}) {
    for (int expert_parallel : {1, ranks == 3 ? 1 : ranks}) {
      INFO(ranks << " ranks, experts over " << expert_parallel);
      run_as_threads(ranks, [&](Communicator& world) {
        Context own({.threads = 1, .scratch_bytes = size_t{1} << 28});
        Mesh mesh(world, expert_parallel);
        const Range range = mesh.layout().experts(config.model.moe.experts);
        const auto spread = [&](uint64_t seed) {
          auto parameters = std::make_unique<ParameterSet>(
              own, config.model, DType::kBF16, ExpertRange{range.begin, range.size()}, false);
          parameters->initialise(own, seed);
          parameters->pack(own);
          return parameters;
        };
        const auto first = spread(1);
        const auto second = spread(2);
        const Transformer of_first(*first, {.group = &mesh.ep()});
        const Transformer of_second(*second, {.group = &mesh.ep()});
        const Comparison c =
            compare_models(own, {*first, of_first}, {*second, of_second}, plan, data, &world);
        if (to_json(c) != to_json(other)) throw NumericError("rank {} differs", world.rank());
      });
    }
  }

  Model dense(
      context,
      [&] {
        RunConfig changed = config;
        changed.model.moe = {};
        changed.model = changed.model.resolved();
        return changed;
      }(),
      1);
  CHECK_THROWS_AS(
      compare_models(context, {a.parameters, a.model}, {dense.parameters, dense.model}, plan, data),
      ConfigError);
}

}  // namespace
}  // namespace degu
