// Whole tiny runs in folders of their own, and what they leave there.
#pragma once

#include <catch2/catch.hpp>
#include <cstring>
#include <nlohmann/json.hpp>

#include "io/atomic_file.h"
#include "tests/train/tiny_run.h"

namespace degu::testing {

inline std::string fresh_folder() {
  static int count = 0;
  const auto path = std::filesystem::temp_directory_path() /
                    ("degu_resume_" + std::to_string(::getpid()) + "_" + std::to_string(count++));
  std::filesystem::remove_all(path);
  return path.string();
}

inline RunResult run(RunConfig config, const RankLayout& layout, RunOptions options) {
  config.cluster.expert_parallel = layout.expert_parallel;
  const TokenDataset dataset(config.data.paths);
  config = resolve_config(config, dataset);
  options.live = false;
  options.peak_flops = 1e9;
  RunResult result;
  run_as_threads(layout.ranks, [&](Communicator& ranks) {
    RankOnDevice own(ranks, layout);
    const RunResult of_rank = run_training(config, options, dataset, own.world, own.context);
    if (ranks.rank() == 0) result = of_rank;
  });
  return result;
}

// Losses by step, from a run's metrics.
inline std::vector<double> losses(const std::string& folder) {
  std::vector<double> all;
  const std::string text = read_file(folder + "/metrics.jsonl");
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = text.find('\n', begin);
    const nlohmann::json line = nlohmann::json::parse(text.substr(begin, end - begin));
    if (line.contains("loss")) {
      REQUIRE(line["step"].get<size_t>() == all.size());
      all.push_back(line["loss"].get<double>());
    }
    begin = end + 1;
  }
  return all;
}

// The same values and moments, bit for bit.
inline void check_same_checkpoint(const std::string& first, const std::string& second) {
  CheckpointReader a(first);
  CheckpointReader b(second);
  for (const auto& info : a.list()) {
    Tensor x(info.dtype, info.shape);
    Tensor y(info.dtype, info.shape);
    a.read(info.name, x);
    b.read(info.name, y);
    INFO(info.name);
    CHECK(std::memcmp(x.view().data, y.view().data, x.bytes()) == 0);
  }
}

}  // namespace degu::testing
