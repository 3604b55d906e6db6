// What `degu profile` found, as JSON (docs/profile.md) and as tables.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <vector>

#include "cli/profile_measure.h"
#include "infer/cost.h"
#include "shape/hardware.h"
#include "train/document_loss.h"

namespace degu {

struct ProfileQuality {
  int64_t tokens = 0;
  int64_t documents = 0;
  double loss = 0;  // nats per token
  Estimate perplexity;
  Estimate bits_per_byte;
  // Against the first level of the same checkpoint, documents paired; none for that one itself.
  std::string reference;
  std::optional<Estimate> perplexity_change;
};

// A model served in one way.
struct LevelProfile {
  std::string name;        // "planned-5287e136 int8": unique in the profile
  std::string checkpoint;  // as it was given
  std::string folder;      // what was served
  std::string level;       // as it was asked for
  std::string scheme;
  std::string method;       // of the quantizer; empty for training's own values
  std::string speculation;  // "off", "ngram" or the draft's checkpoint
  int64_t parameters = 0;   // in all
  int64_t active = 0;       // that a token visits
  MemoryPlan memory;
  size_t scratch_peak = 0;  // bytes of scratch that passes took
  size_t resident = 0;      // bytes by which the process grew
  double peak_flops = 0;    // per second, of the arithmetic of the scheme's products; before
  double peak_flops_after = 0;
  std::optional<ProfileQuality> quality;
  std::string same_bits_as;  // the level whose quality this one has, bit for bit
  std::vector<BatchProfile> batches;
};

struct ProfileReport {
  std::vector<LevelProfile> levels;
  HardwareProfile hardware;
  std::string hardware_source;  // the file, or "probed"
  double price_per_hour = 0;
  int64_t prompt_tokens = 0;
  int64_t max_tokens = 0;
  double temperature = 1;
  std::string prompts;  // where they come from
  std::string kv;
  std::vector<std::string> data;
  int64_t sequence_length = 0;  // of the windows that quality was measured on
  Priority priority = Priority::kCost;
  double slack = 0.01;
  double seconds = 0;

  double cost_per_million_input(const BatchProfile& b) const {
    return cost_per_million(price_per_hour, b.prefill_tokens_per_second);
  }
  double cost_per_million_output(const BatchProfile& b) const {
    return cost_per_million(price_per_hour, b.decode_tokens_per_second);
  }
  // A prompt of prompt_tokens and an answer of max_tokens.
  double request_cost(const BatchProfile& b) const;
};

// Every (level, batch) as a point; empty when quality was not measured.
struct ProfilePoint {
  const LevelProfile* level;
  const BatchProfile* batch;
  ServingPoint point;
};
std::vector<ProfilePoint> profile_points(const ProfileReport& report);

nlohmann::ordered_json to_json(const ProfileReport& report);
void print_report(const ProfileReport& report);

}  // namespace degu
