// A model with its cache, ready for an engine: what `generate` and servers set up alike.
#pragma once

#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <string>

#include "cli/command_line.h"
#include "cli/loaded_model.h"
#include "infer/engine.h"

namespace degu {

// Options that say how to serve, whatever is asked.
struct ServingArguments {
  int threads = 0;
  DeviceType device = DeviceType::kCpu;
  int64_t context = 0;    // tokens; 0: the sequence length of training
  int64_t kv_tokens = 0;  // tokens in the cache, per rank; 0: what memory_gib leaves
  double memory_gib = 0;  // weights, workspace and cache of a rank; 0: a share of what is free
  std::string kv_type = "auto";  // of keys and values: auto (as activations) or int8
  int64_t pass_tokens = 256;
  int max_running = 64;
  bool prefix_cache = true;
  bool graphs = true;  // of decode passes, on a GPU
  bool bos = true;
  std::string draft;              // a checkpoint
  std::string speculate = "off";  // off, ngram, draft
  int depth = 4;
  bool fixed_depth = false;
  PlacementArguments placement;
};
void add_serving_options(CommandLine& line, ServingArguments& arguments);
// How tokens are drawn, but for the seed.
void add_sampling_options(CommandLine& line, SamplingParams& sampling);

// Where a rank's bytes go; decided before the first request and never exceeded.
struct MemoryPlan {
  size_t weights = 0;
  size_t loaded = 0;     // measured: by how much this process's memory grew while they were read
  size_t workspace = 0;  // activations and logits of one pass; on rank 0 those of all ranks
  size_t scratch = 0;    // a bound on what operators take besides (infer/memory_plan.h)
  size_t page = 0;       // one page, all layers
  int32_t pages = 0;
  size_t draft = 0;  // weights, workspace and pages of the draft model
  size_t total() const {
    return weights + workspace + scratch + static_cast<size_t>(pages) * page + draft;
  }
};
// The plan beside what this process took so far: the most scratch, and all that is in memory.
nlohmann::ordered_json memory_json(const MemoryPlan& plan, Context& context);

// The prompt's tokens, BOS first when the tokenizer has one and `bos`. DataError for text that is
// not UTF-8.
std::vector<int32_t> encode_prompt(const Tokenizer& tokenizer, const std::string& text, bool bos);

class ServingSetup {
 public:
  // Collective: experts are spread over all ranks. ConfigError when the model cannot be served or
  // the memory does not hold one context.
  ServingSetup(Job& job, const std::string& checkpoint, const ServingArguments& arguments);
  ~ServingSetup();

  bool leads() const { return job_.world().rank() == 0; }
  void follow();  // the other ranks: until rank 0's lanes are gone

  const Tokenizer& tokenizer() const { return model_.tokenizer; }
  const LoadedModel& model() const { return model_; }
  const MemoryPlan& memory() const { return memory_; }
  Lanes& lanes() { return *lanes_; }
  EngineOptions engine_options() const;
  std::unique_ptr<Drafter> make_drafter();  // null without speculation
  // Of this rank's decode passes so far.
  GraphStats graphs() const { return runner_->graph_stats(); }

 private:
  struct Draft;
  void plan_memory();
  int64_t pages_in_memory() const;
  void log_memory();
  void load_draft();

  Job& job_;
  ServingArguments arguments_;
  LoadedModel model_;
  MemoryPlan memory_;
  PassLimits limits_;
  DType kv_type_ = DType::kBF16;
  int64_t context_ = 0;
  std::unique_ptr<Draft> draft_;
  std::unique_ptr<ModelRunner> runner_;
  std::unique_ptr<Lanes> lanes_;  // on rank 0
};

}  // namespace degu
