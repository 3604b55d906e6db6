// Training that replays recorded routes: its own give its own bits on every layout of ranks, others
// are taken to the letter, and files that do not fit are refused.
#include "train/step_routes.h"

#include <catch2/catch.hpp>
#include <filesystem>
#include <fstream>

#include "tests/train/folder_run.h"

namespace degu {
namespace {

using namespace degu::testing;

RunConfig routed_run() {
  RunConfig config = tiny_run();
  config.train.steps = 6;
  return config;
}

std::string routes_of(const std::string& folder) {
  return folder + "/routes.jsonl";
}

TEST_CASE("a run that replays its own routes ends with its own bits, on any layout") {
  struct Variant {
    const char* name;
    RunConfig config;
  };
  std::vector<Variant> variants = {{"softmax, all losses", routed_run()}};
  variants.push_back({"sigmoid, capacity, first layer dense", routed_run()});
  ModelShape& shape = variants.back().config.model;
  shape.moe.router = RouterKind::kSigmoid;
  shape.moe.capacity_factor = 1.0;
  shape.moe.first_dense_layers = 1;
  for (const auto& [name, config] : variants) {
    INFO(name);
    const std::string plain = fresh_folder();
    const RunResult expected = run(config, {.ranks = 1}, {.folder = plain});
    CHECK_FALSE(std::filesystem::exists(routes_of(plain)));

    RunConfig recording = config;
    recording.train.record_routes = true;
    const std::string first = fresh_folder();
    check_same_checkpoint(expected.checkpoint,
                          run(recording, {.ranks = 1}, {.folder = first}).checkpoint);
    const std::string routes = read_file(routes_of(first));
    CHECK(std::count(routes.begin(), routes.end(), '\n') == 6 * 16 * 32);

    for (const RankLayout& layout :
         {RankLayout{.ranks = 1, .micro_sequences = 4, .threads = 3}, RankLayout{.ranks = 2},
          RankLayout{.ranks = 2, .expert_parallel = 2, .micro_sequences = 4},
          RankLayout{.ranks = 4, .expert_parallel = 2}}) {
      INFO(layout.ranks << " ranks, expert_parallel " << layout.expert_parallel);
      RunConfig replaying = recording;
      // A rank's passes are then apart in the batch.
      replaying.train.shard_gradients = layout.expert_parallel > 1;
      replaying.train.replay_routes = routes_of(first);
      replaying.train.micro_batch_sequences = layout.micro_sequences;
      const std::string again = fresh_folder();
      const RunResult result = run(replaying, layout, {.folder = again});
      check_same_checkpoint(expected.checkpoint, result.checkpoint);
      CHECK(result.validation.loss == expected.validation.loss);
      CHECK(losses(again) == losses(plain));
      CHECK(read_file(routes_of(again)) == routes);
      std::filesystem::remove_all(again);
    }
    std::filesystem::remove_all(plain);
    std::filesystem::remove_all(first);
  }
}

TEST_CASE("recording and replay go on where a stopped run is resumed") {
  RunConfig config = routed_run();
  config.train.record_routes = true;
  const std::string whole = fresh_folder();
  const RunResult expected = run(config, {.ranks = 1}, {.folder = whole});
  config.train.replay_routes = routes_of(whole);
  const std::string parts = fresh_folder();
  run(config, {.ranks = 2, .expert_parallel = 2}, {.folder = parts, .stop_after = 2});
  // Lines after the checkpoint are written anew; a torn one goes.
  std::ofstream(routes_of(parts), std::ios::app) << "{\"experts\":[[0,1]";
  const RunResult last = run(config, {.ranks = 1}, {.folder = parts, .resume = true});
  check_same_checkpoint(expected.checkpoint, last.checkpoint);
  CHECK(read_file(routes_of(parts)) == read_file(routes_of(whole)));

  config.train.steps = 8;
  std::filesystem::remove(routes_of(parts));
  CHECK_THROWS_AS(run(config, {.ranks = 1}, {.folder = parts, .resume = true}), DataError);
  std::filesystem::remove_all(whole);
  std::filesystem::remove_all(parts);
}

// Steps a trainer and returns its last step's loads; the router's weights at start and end.
struct Replayed {
  std::vector<std::vector<int64_t>> load_LE;
  std::vector<float> router_before, router_after;
  std::vector<float> expert_after;
};

Replayed replay_steps(RunConfig config, int ranks, int64_t steps) {
  config.cluster.expert_parallel = ranks;
  const TokenDataset dataset(config.data.paths);
  config = resolve_config(config, dataset);
  Replayed out;
  run_as_threads(ranks, [&](Communicator& world) {
    Context context({.threads = 1, .scratch_bytes = size_t{1} << 30});
    Trainer trainer(config, dataset, world, context);
    const auto values = [&](const char* name) {
      const View<const float> v = trainer.parameters().get(name).value.as<const float>();
      return std::vector<float>(v.data(), v.data() + v.elements());
    };
    const std::vector<float> before = values("blocks.0.moe.router");
    StepResult result;
    for (int64_t s = 0; s < steps; ++s) result = trainer.step();
    if (world.rank() != 0) return;
    out.router_before = before;
    out.router_after = values("blocks.0.moe.router");
    out.expert_after = values("blocks.1.moe.down");
    for (const LayerHealth& layer : result.layers) out.load_LE.push_back(layer.load_E);
  });
  return out;
}

// Rewrites a file of routes line by line.
template <class Change>
std::string changed_routes(const std::string& path, const Change& change) {
  std::ifstream in(path);
  std::string text;
  int64_t number = 0;
  for (std::string line; std::getline(in, line); ++number) {
    nlohmann::json json = nlohmann::json::parse(line);
    if (change(json, number)) text += json.dump() + "\n";
  }
  const std::string out = path + ".changed";
  std::ofstream(out) << text;
  return out;
}

TEST_CASE("other routes are taken to the letter, and the router learns from them") {
  RunConfig config = routed_run();
  config.train.record_routes = true;
  const std::string folder = fresh_folder();
  run(config, {.ranks = 1}, {.folder = folder});
  config.train.record_routes = false;
  // Expert 3 gets no token of the first layer and every token of the second.
  std::vector<std::vector<int64_t>> last_step(2, std::vector<int64_t>(4, 0));
  const std::string other =
      changed_routes(routes_of(folder), [&](nlohmann::json& line, int64_t number) {
        const auto a = static_cast<int32_t>(number % 3);
        line["experts"] = {{a, (a + 1) % 3}, {3, a}};
        if (number < 5 * 16 * 32) return true;
        for (size_t layer = 0; layer < 2; ++layer) {
          for (const auto& e : line["experts"][layer]) ++last_step[layer][e.get<size_t>()];
        }
        return true;
      });
  const Replayed own = replay_steps(config, 1, 6);
  config.train.replay_routes = other;
  const Replayed one = replay_steps(config, 1, 6);
  CHECK(one.load_LE == last_step);
  CHECK(own.load_LE != last_step);
  CHECK(one.router_after != one.router_before);
  CHECK(one.expert_after != own.expert_after);
  const Replayed two = replay_steps(config, 2, 6);
  CHECK(two.load_LE == last_step);
  CHECK(two.router_after == one.router_after);
  std::filesystem::remove_all(folder);
}

TEST_CASE("routes that do not fit a run are refused with the place") {
  RunConfig config = routed_run();
  config.train.record_routes = true;
  const std::string folder = fresh_folder();
  run(config, {.ranks = 1}, {.folder = folder});
  config.train.record_routes = false;
  const auto refused = [&](const std::string& path, int ranks = 1) {
    config.train.replay_routes = path;
    try {
      replay_steps(config, ranks, 6);
    } catch (const DataError& error) {
      return std::string(error.what());
    }
    return std::string("taken");
  };
  const auto with = [&](const auto& change) {
    return changed_routes(routes_of(folder), [&](nlohmann::json& line, int64_t number) {
      return number == 700 ? change(line) : true;
    });
  };
  CHECK(refused(routes_of(folder)) == "taken");
  // Of two ranks one alone reads the line; both hear of it.
  const std::string token = with([](nlohmann::json& line) {
    line["token"] = line["token"].get<int32_t>() ^ 1;
    return true;
  });
  for (int ranks : {1, 2}) CHECK_THAT(refused(token, ranks), Catch::Contains("changed:701: token"));
  CHECK_THAT(refused(with([](nlohmann::json& line) {
               line["experts"].erase(0);
               return true;
             })),
             Catch::Contains("changed:701: 1 MoE layers, the model has 2"));
  CHECK_THAT(refused(with([](nlohmann::json& line) {
               line["experts"][1] = {0};
               return true;
             })),
             Catch::Contains("1 experts for a token, the model takes 2"));
  CHECK_THAT(refused(with([](nlohmann::json& line) {
               line["experts"][1] = {0, 4};
               return true;
             })),
             Catch::Contains("expert 4 of 4"));
  CHECK_THAT(refused(with([](nlohmann::json& line) {
               line["experts"] = nlohmann::json::array();
               return true;
             })),
             Catch::Contains("changed:701: nobody recorded"));
  CHECK_THAT(refused(with([](nlohmann::json&) { return false; })),
             Catch::Contains("changed:701: token"));
  const std::string cut = changed_routes(
      routes_of(folder), [](nlohmann::json&, int64_t number) { return number < 3000; });
  CHECK_THAT(refused(cut), Catch::Contains("ends after 3000 lines"));
  config.train.replay_routes = folder + "/nothing";
  CHECK_THROWS_AS(replay_steps(config, 1, 1), IoError);

  // Other data.
  config.train.replay_routes = routes_of(folder);
  config.data.seed += 1;
  CHECK_THROWS_AS(replay_steps(config, 1, 1), DataError);
  config.model.moe.experts = 0;
  CHECK_THROWS_AS(resolve_config(config, TokenDataset(config.data.paths)), ConfigError);
  std::filesystem::remove_all(folder);
}

}  // namespace
}  // namespace degu
