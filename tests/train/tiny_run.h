// A small training run on prepared text, with threads as ranks.
#pragma once

#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "base/random.h"
#include "comm/staged_comm.h"
#include "comm/thread_comm.h"
#include "data/prepare.h"
#include "tensor/device.h"
#include "tests/comm/late_comm.h"
#include "train/run.h"

namespace degu::testing {

// Shards of made-up words, prepared once per test program.
inline const std::string& tiny_shards() {
  static const std::string folder = [] {
    const std::filesystem::path base =
        std::filesystem::temp_directory_path() / ("degu_train_" + std::to_string(::getpid()));
    std::filesystem::create_directories(base);
    const RandomStream stream(5, "tiny text");
    std::ofstream text(base / "text.txt");
    uint64_t index = 0;
    for (int document = 0; document < 400; ++document) {
      for (int word = 0; word < 60; ++word) {
        const uint64_t length = 2 + stream.below(index++, 4);
        for (uint64_t i = 0; i < length; ++i)
          text << static_cast<char>('a' + stream.below(index++, 6));
        text << (word % 12 == 11 ? ".\n" : " ");
      }
      text << "\n\n";
    }
    text.close();
    PrepareOptions options;
    options.out = (base / "shards").string();
    options.inputs = {{"words", (base / "text.txt").string()}};
    options.vocab = 300;
    options.val_fraction = 0.1;
    options.rules.document_bytes = 600;
    options.threads = 1;
    prepare_data(options);
    return options.out;
  }();
  return folder;
}

// A bit that differs in one step differs in those after it; sanitized and emulated runs are slow.
inline constexpr int64_t kFewSteps = 4;

inline RunConfig tiny_run(Precision precision = Precision::kBf16) {
  RunConfig c;
  c.model.vocab = 0;
  c.model.width = 32;
  c.model.layers = 2;
  c.model.heads = 2;
  c.model.ffn_width = 48;
  c.model.moe.experts = 4;
  c.model.moe.top_k = 2;
  c.model.moe.first_dense_layers = 0;
  c.data.paths = {tiny_shards()};
  c.data.sequence_length = 32;
  c.data.validation_tokens = 640;
  c.train.precision = precision;
  c.train.batch_sequences = 16;
  c.train.unit_sequences = 2;
  c.train.steps = 20;
  c.train.optimizer.learning_rate = 0.01;
  c.train.balance = {.aux_loss = 0.02, .z_loss = 0.001, .bias_update = 0.01, .group_sequences = 2};
  c.train.log_every = 1;
  return c;
}

// What a run leaves: losses, norms and validation of every step, and all values at the end, by
// name.
struct Trained {
  std::vector<double> numbers;
  std::map<std::string, std::vector<float>> values;
  int64_t extra_rounds = 0;  // of exchanges; depends on the layout
  friend bool operator==(const Trained& a, const Trained& b) {
    return a.numbers == b.numbers && a.values == b.values;
  }
};

struct RankLayout {
  int ranks = 1;
  int expert_parallel = 1;
  int64_t micro_sequences = 0;
  int threads = 1;
  DeviceType device = DeviceType::kCpu;  // an accelerator is shared by all ranks
  bool late = false;                     // exchanges take place when they are waited for
  int64_t steps_ahead = 0;               // begun before the numbers of the first are asked for
};

// One rank's context, and the communicator for tensors on its device.
struct RankOnDevice {
  RankOnDevice(Communicator& ranks, const RankLayout& layout)
      : context({.threads = layout.threads,
                 .scratch_bytes = size_t{1} << (layout.device == DeviceType::kCpu ? 30 : 27),
                 .device = layout.device}),
        between(layout.device != DeviceType::kCpu ? make_staged_communicator(ranks)
                : layout.late                     ? std::make_unique<test::LateCommunicator>(ranks)
                                                  : nullptr),
        world(between ? *between : ranks) {}

  Context context;
  std::unique_ptr<Communicator> between;
  Communicator& world;
};

inline Trained train(RunConfig config, const RankLayout& layout, int64_t steps = 0) {
  config.cluster.expert_parallel = layout.expert_parallel;
  config.train.micro_batch_sequences = layout.micro_sequences;
  const TokenDataset dataset(config.data.paths);
  config = resolve_config(config, dataset);
  Trained trained;
  std::mutex mutex;
  run_as_threads(layout.ranks, [&](Communicator& ranks) {
    RankOnDevice own(ranks, layout);
    Communicator& world = own.world;
    Trainer trainer(config, dataset, world, own.context);
    const int64_t last = steps > 0 ? steps : trainer.plan().steps;
    for (int64_t s = 0; s < last; ++s) {
      trainer.begin_step();
      while (trainer.pending_steps() > (s + 1 < last ? layout.steps_ahead : 0)) {
        const StepResult r = trainer.finish_step();
        if (world.rank() != 0) continue;
        for (double x : {r.loss, r.aux_loss, r.z_loss, r.gradient_norm, r.learning_rate}) {
          trained.numbers.push_back(x);
        }
        for (const LayerHealth& layer : r.layers) trained.extra_rounds += layer.extra_rounds;
      }
    }
    const ValidationResult v = trainer.validate();
    if (world.rank() == 0) trained.numbers.push_back(v.loss);
    const std::lock_guard lock(mutex);
    for (const auto& p : trainer.parameters().all()) {
      std::vector<float>& all = trained.values[p->spec.name];
      all.resize(static_cast<size_t>(p->spec.shape.elements()));
      const int64_t first =
          p->spec.role == ParameterRole::kExperts
              ? trainer.parameters().experts().begin * p->spec.shape[1] * p->spec.shape[2]
              : 0;
      const OnHost on_host(own.context, p->value);
      const View<float> value = on_host.as<float>();
      std::copy(value.data(), value.data() + value.elements(), all.begin() + first);
    }
  });
  return trained;
}

}  // namespace degu::testing
