// Recorded routes: the same bits when they are the model's own, and refused when they are not its.
#include "train/replay.h"

#include <catch2/catch.hpp>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "tests/train/tiny_run.h"

namespace degu {
namespace {

using namespace degu::testing;

ModelShape replay_shape(RouterKind router, bool renormalize) {
  const ModelShape shape{.vocab = 60,
                         .width = 32,
                         .layers = 3,
                         .heads = 2,
                         .kv_heads = 2,
                         .head_width = 16,
                         .ffn_width = 48,
                         .tied_head = false,
                         .init_std = 0.2,
                         .moe = {.experts = 4,
                                 .top_k = 2,
                                 .expert_width = 24,
                                 .first_dense_layers = 1,
                                 .router = router,
                                 .renormalize = renormalize}};
  return shape.resolved();
}

SequenceBatch text_of(int64_t tokens) {
  SequenceBatch batch;
  batch.sequences = 1;
  batch.sequence_length = tokens;
  for (int64_t t = 0; t < tokens; ++t) {
    batch.tokens_T.push_back(static_cast<int32_t>((7 * t + t * t) % 60));
    batch.targets_T.push_back(static_cast<int32_t>((7 * (t + 1) + (t + 1) * (t + 1)) % 60));
    batch.positions_T.push_back(static_cast<int32_t>(t));
  }
  batch.document_offsets = {0, tokens};
  batch.counted_targets = tokens;
  return batch;
}

std::vector<char> bytes_of(AnyView view) {
  const auto* first = static_cast<const char*>(view.data);
  return {first, first + view.bytes()};
}

RecordedRoutes recorded(Pass& pass, const SequenceBatch& batch) {
  RecordedRoutes routes{.tokens_T = batch.tokens_T, .experts_LTK = {}};
  for (const BlockActivations& block : pass.activations().blocks) {
    const AnyView chosen = block.moe.router.expert_TK;
    if (!chosen) continue;
    const View<const int32_t> rows = chosen.rows(0, batch.tokens()).as<const int32_t>();
    routes.experts_LTK.insert(routes.experts_LTK.end(), rows.data(), rows.data() + rows.elements());
  }
  return routes;
}

TEST_CASE("a model's own routes give its own bits; others give others, with the router's gates") {
  for (RouterKind router : {RouterKind::kSoftmax, RouterKind::kSigmoid, RouterKind::kHash}) {
    for (bool renormalize : {true, false}) {
      const ModelShape shape = replay_shape(router, renormalize);
      Context context({.threads = 2, .scratch_bytes = size_t{1} << 28});
      ParameterSet parameters(context, shape, DType::kBF16, {0, shape.moe.experts}, true);
      parameters.initialise(context, 4);
      parameters.pack(context);
      const Transformer model(parameters);
      const SequenceBatch batch = text_of(37);
      const StepPlan plan{.sequence_length = 37,
                          .unit_sequences = 1,
                          .micro_sequences = 1,
                          .balance_sequences = 1,
                          .capacity_sequences = 1};
      Pass pass(context, model, plan, 1, /*training=*/true);
      pass.load(batch);
      pass.forward(context, {});
      const std::vector<char> own = bytes_of(pass.h_TD());
      const AnyView gates = pass.activations().blocks[1].moe.router.gate_TK;
      const std::vector<char> own_gates = bytes_of(gates);
      RecordedRoutes routes = recorded(pass, batch);
      REQUIRE(routes.experts_LTK.size() == 2u * 37 * 2);

      replay(pass.activations(), &routes);
      pass.forward(context, {});
      CHECK(bytes_of(pass.h_TD()) == own);
      CHECK(bytes_of(gates) == own_gates);

      // One token of the first MoE layer goes elsewhere: rows before it keep their bits.
      int32_t* moved = routes.experts_LTK.data() + 20 * 2;
      const int32_t before = moved[0];
      for (int32_t e = 0; e < 4; ++e) {
        if (e != moved[0] && e != moved[1]) moved[0] = e;
      }
      REQUIRE(moved[0] != before);
      pass.forward(context, {});
      const std::vector<char> other = bytes_of(pass.h_TD());
      const size_t row = other.size() / 37;
      CHECK(std::memcmp(other.data(), own.data(), 20 * row) == 0);
      CHECK(std::memcmp(other.data() + 20 * row, own.data() + 20 * row, row) != 0);
      const View<const float> score =
          pass.activations().blocks[1].moe.router.score_TE.as<const float>();
      if (router != RouterKind::kHash) {
        const float a = score(20, moved[0]);
        const float b = score(20, moved[1]);
        const View<const float> gate = gates.as<const float>();
        CHECK(gate(20, 0) == (renormalize ? a / (a + b) : a));
        CHECK(gate(20, 1) == (renormalize ? b / (a + b) : b));
      }

      // Nobody recorded that token: the router chooses again.
      moved[0] = moved[1] = -1;
      pass.forward(context, {});
      CHECK(bytes_of(pass.h_TD()) == own);
      replay(pass.activations(), nullptr);
      pass.forward(context, {});
      CHECK(bytes_of(pass.h_TD()) == own);
    }
  }
}

TEST_CASE("files of routes are read back, and those of another model refused") {
  const ModelShape shape = replay_shape(RouterKind::kSoftmax, true);
  const auto path = (std::filesystem::temp_directory_path() / "degu-replay-test.jsonl").string();
  const auto read = [&](const std::string& text) {
    std::ofstream(path) << text;
    return read_routes(path, shape);
  };
  const std::string first =
      R"({"prompt": 0, "position": 0, "token": 5, "experts": [[0, 1], [2, 3]]})"
      "\n";
  const std::vector<RecordedRoutes> texts =
      read(first +
           R"({"prompt": 0, "position": 1, "token": 6, "experts": []})"
           "\n" +
           R"({"prompt": 1, "position": 0, "token": 7, "experts": [[3, 1], [1, 0]]})"
           "\n");
  REQUIRE(texts.size() == 2);
  CHECK(texts[0].tokens_T == std::vector<int32_t>{5, 6});
  CHECK(texts[0].experts_LTK == std::vector<int32_t>{0, 1, -1, -1, 2, 3, -1, -1});
  CHECK(texts[1].experts_LTK == std::vector<int32_t>{3, 1, 1, 0});

  for (const char* bad :
       {R"({"prompt": 0, "position": 0, "token": 5, "experts": [[0, 1]]})",
        R"({"prompt": 0, "position": 0, "token": 5, "experts": [[0, 1], [2]]})",
        R"({"prompt": 0, "position": 0, "token": 5, "experts": [[0, 1], [2, 4]]})",
        R"({"prompt": 0, "position": 0, "token": 5, "experts": [[0, 1], [2, 2]]})",
        R"({"prompt": 0, "position": 0, "token": 60, "experts": [[0, 1], [2, 3]]})",
        R"({"prompt": 0, "position": 0, "token": 5, "experts": [[0, 1], "x"]})",
        R"({"prompt": 0, "position": 1, "token": 5, "experts": [[0, 1], [2, 3]]})",
        R"({"prompt": 0, "token": 5, "experts": [[0, 1], [2, 3]]})", "[]", "nonsense", ""}) {
    INFO(bad);
    CHECK_THROWS_AS(read(bad), DataError);
  }
  CHECK_THROWS_AS(read(first + first), DataError);
  ModelShape dense = shape;
  dense.moe = {};
  CHECK_THROWS_AS(read_routes(path, dense.resolved()), DataError);
  std::filesystem::remove(path);
  CHECK_THROWS_AS(read_routes(path, shape), IoError);
}

}  // namespace
}  // namespace degu
