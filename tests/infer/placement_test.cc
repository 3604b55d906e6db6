// Experts anywhere: the same bits, and a file that says where.
#include <catch2/catch.hpp>
#include <fstream>
#include <mutex>
#include <nlohmann/json.hpp>

#include "comm/thread_comm.h"
#include "infer/parity.h"
#include "infer/placement_file.h"
#include "model/load.h"
#include "tests/compress/checkpoints.h"
#include "tests/infer/small_models.h"
#include "tests/support/temporary_folder.h"

namespace degu {
namespace {

using Catch::Matchers::Contains;
using degu::test::TemporaryFolder;
using testing::ModelCase;
using testing::serving_models;

ExpertPlacement random_placement(const ModelShape& shape, uint64_t seed) {
  const RandomStream stream(seed, "placement");
  ExpertPlacement placement;
  for (int l = 0; l < shape.layers; ++l) {
    std::vector<int32_t>& slot_E = placement.slot_LE.emplace_back();
    if (!shape.is_moe_layer(l)) continue;
    for (int e = 0; e < shape.moe.experts; ++e) slot_E.push_back(e);
    for (size_t e = slot_E.size(); e-- > 1;) {
      std::swap(slot_E[e], slot_E[stream.below(static_cast<uint64_t>(l) * 1000 + e, e + 1)]);
    }
  }
  return placement;
}

// The checkpoint's experts over ranks by a random placement against all of them on one rank in
// their order: logits and chosen experts of every row.
ParityReport compare(const std::string& folder, const ModelShape& shape, int ranks, uint64_t seed) {
  const ExpertPlacement placement = random_placement(shape, seed);
  REQUIRE_FALSE(placement.contiguous());
  std::mutex mutex;
  ParityReport total;
  run_as_threads(ranks, [&](Communicator& group) {
    Context context({.threads = 1, .scratch_bytes = size_t{1} << 30});
    CheckpointReader reader(folder);
    const int64_t here = shape.moe.experts / ranks;
    const auto whole =
        load_for_inference(context, reader, shape, DType::kBF16, {0, shape.moe.experts});
    const auto part = load_for_inference(context, reader, shape, DType::kBF16,
                                         {group.rank() * here, here}, placement);
    const ParityReport report = check_expert_parity(group, context, *whole, *part,
                                                    {.seed = seed, .sequences = 3, .rounds = 1});
    const std::lock_guard lock(mutex);
    total.add(report);
  });
  return total;
}

void require_equal_bits(const ParityReport& report) {
  for (const ParityPath& path : report.paths) {
    INFO(path.name << ": " << path.first_mismatch);
    CHECK(path.comparisons > 500);
    CHECK(path.mismatches == 0);
  }
}

TEST_CASE("wherever experts lie, logits and chosen experts are the same bits") {
  for (const ModelCase& c : serving_models()) {
    if (c.shape.moe.experts == 0) continue;
    const TemporaryFolder folder;
    testing::write_checkpoint(folder / "model", c.shape);
    for (int ranks : {1, 2, 4}) {
      for (uint64_t seed : {1u, 2u}) {
        INFO(c.name << " over " << ranks << " ranks, placement " << seed);
        require_equal_bits(compare(folder / "model", c.shape, ranks, seed));
      }
    }
  }
}

TEST_CASE("quantized experts go where the placement says, codes and scales") {
  const ModelShape shape = serving_models().front().shape;
  const TemporaryFolder folder;
  testing::write_checkpoint(folder / "model", shape);
  for (Scheme scheme : {Scheme::kW8A8, Scheme::kW4A16}) {
    INFO(scheme_info(scheme).name);
    const std::string out = folder / std::string(scheme_info(scheme).name);
    {
      Context context(testing::options());
      CheckpointReader reader(folder / "model");
      QuantizeOptions how;
      how.policy.scheme = scheme;
      how.method = "rtn";
      quantize_checkpoint(context, *make_self_communicator(), reader, out, how);
    }
    for (int ranks : {2, 4}) require_equal_bits(compare(out, shape, ranks, 3));
  }
}

TEST_CASE("experts are found in a checkpoint that several ranks wrote") {
  const ModelShape shape = serving_models().front().shape;
  const TemporaryFolder folder;
  run_as_threads(4, [&](Communicator& group) {
    Context context(testing::options());
    const ExpertRange own{2 * group.rank(), 2};
    ParameterSet parameters(context, shape, DType::kBF16, own, true);
    parameters.initialise(context, 1);
    CheckpointWriter writer(group, folder / "model", {{"next_step", 3}});
    for (const auto& p : parameters.all()) {
      const std::string name = std::string(kModelPrefix) + p->spec.name;
      if (p->spec.role == ParameterRole::kExperts) {
        writer.add(name, p->spec.shape, {own.begin, 0, 0}, p->value);
      } else if (group.rank() == 0) {
        writer.add(name, p->value);
      }
    }
    writer.commit();
  });
  for (int ranks : {1, 2}) require_equal_bits(compare(folder / "model", shape, ranks, 5));
}

TEST_CASE("a table for the wrong layers is refused where parameters are made") {
  const ModelShape shape = serving_models().front().shape;
  Context context(testing::options());
  CHECK_THROWS_WITH(
      ParameterSet(
          context, shape, DType::kBF16, {0, 8}, [](const ParameterSpec&) { return Scheme::kBf16; },
          ExpertPlacement{{{1, 0}}}),
      Contains("2 experts, the layer has 8"));
}

TEST_CASE("a placement survives its file") {
  for (const ModelCase& c : serving_models()) {
    if (c.shape.moe.experts == 0) continue;
    const PlacementFile file{
        .ranks = 2, .source = "a \"file\": 7", .placement = random_placement(c.shape, 9)};
    const PlacementFile back = parse_placement(placement_text(file, c.shape), "p.yaml", c.shape);
    CHECK(back.ranks == 2);
    CHECK(back.source == file.source);
    CHECK(back.placement.slot_LE == file.placement.slot_LE);
  }
}

TEST_CASE("a file that is no placement of this model is told with its place") {
  ModelShape shape = testing::small_shape();
  shape.moe.experts = 4;
  shape.layers = 3;
  shape.moe.first_dense_layers = 1;
  struct Case {
    const char* text;
    const char* message;
  };
  const Case cases[] = {
      {"ranks: 2\nlayers:\n  - layer: 1\n    experts: [0, 1, 2, 2]\n",
       "p.yaml:4: experts names 2 twice; each of the 4 stands there once"},
      {"ranks: 2\nlayers:\n  - layer: 1\n    experts: [0, 1, 2, 4]\n",
       "p.yaml:4: experts names 4; a list of 4 holds 0 to 3, each once"},
      {"layers:\n  - layer: 1\n    experts: [0, 1, 2]\n",
       "p.yaml: layer 1 places 3 experts, "
       "the model has 4"},
      {"layers:\n  - layer: 0\n    experts: [0, 1, 2, 3]\n", "p.yaml: layer 0 has no experts"},
      {"layers:\n  - layer: 7\n    experts: [0, 1, 2, 3]\n", "p.yaml: layer 7 has no experts"},
      {"layers:\n  - layer: 1\n    experts: [0, 1, 2, 3]\n",
       "p.yaml: layer 2 is missing, the model has experts there; write one for this model with "
       "`degu plan --serve"},
      {"layers:\n  - layer: 1\n    experts: [0, 1, 2, 3]\n  - layer: 1\n    experts: [0, 1, 2, "
       "3]\n",
       "p.yaml: layer 1 stands there twice"},
      {"ranks: two\n", "p.yaml:1: ranks is \"two\""},
      {"ranks: 0\n", "p.yaml:1: ranks is 0"},
      {"layers: 3\n", "p.yaml:1: layers is \"3\""},
      {"rank: 2\n", "did you mean \"ranks\"?"},
      {"layers:\n  - layer: 1\n    experts: [0, 1,", "p.yaml:"},
      {"", "p.yaml: layer 1 is missing"},
  };
  for (const Case& c : cases) {
    INFO(c.text);
    CHECK_THROWS_WITH(parse_placement(c.text, "p.yaml", shape), Contains(c.message));
    CHECK_THROWS_AS(parse_placement(c.text, "p.yaml", shape), ConfigError);
  }
  CHECK_THROWS_WITH(read_placement("atuo", shape), Contains("atuo") && Contains("auto"));
}

}  // namespace
}  // namespace degu
