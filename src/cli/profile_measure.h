// What `degu profile` measures of one way to serve a model: seconds of real requests through the
// engine, beside probes of what the machine could do at that moment.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "cli/serving_setup.h"
#include "kernels/api/probe.h"

namespace degu {

// Bandwidth that changed by more than this between the probes around a repetition makes it noisy;
// noisy repetitions are measured again.
inline constexpr double kSteadyProbes = 1.15;
// And the figures of a batch are called noisy when its repetitions' decode rates spread further.
inline constexpr double kSteadyDecode = 1.3;

// The machine's limits, asked again and again. Holds 256 MiB.
class LimitProbe {
 public:
  explicit LimitProbe(int threads);
  double read_bandwidth();        // bytes per second, median of three passes
  double peak_flops(DType type);  // operations per second; about 0.2 s
  Context& context() { return context_; }

 private:
  Context context_;
  BandwidthProbe bandwidth_;
};

struct Percentiles {
  double p50 = 0, p95 = 0, p99 = 0;
};

// Seconds of one repetition: all requests of a batch arrive at once.
struct BatchTimes {
  std::vector<double> ttft;    // of every request, from its arrival
  std::vector<double> gaps;    // between tokens; n tokens that come together count as n equal gaps
  double prefill_seconds = 0;  // until the last request has its first token
  double decode_seconds = 0;   // from then to the end
  int64_t decode_tokens = 0;   // that came in that time
  int64_t decode_passes = 0;
  double distinct_experts = 0;  // per MoE layer, mean over those passes
  int64_t drafts_proposed = 0, drafts_accepted = 0;
  double probe_before = 0, probe_after = 0;  // read bandwidth, bytes per second

  bool noisy() const;
};

// What a decode pass must read, by the model's packed tensors.
struct WeightBytes {
  double every_pass = 0;  // all but experts and the embedding's rows
  double expert = 0;      // one expert of one layer
  int64_t moe_layers = 0;
};
WeightBytes weight_bytes(const Context& context, ParameterSet& parameters);

struct BatchProfile {
  int64_t batch = 0;
  Percentiles ttft, itl;                 // seconds, over all repetitions together
  double prefill_tokens_per_second = 0;  // medians over repetitions, as all below
  double decode_tokens_per_second = 0;
  double decode_low = 0, decode_high = 0;      // the slowest and the fastest repetition
  double prefill_flops = 0, decode_flops = 0;  // per second, by shape/accounting.h
  double prefill_compute_share = 0, decode_compute_share = 0;
  double decode_bytes = 0;     // per second: weights and cache that the passes had to read
  double bandwidth_share = 0;  // of the mean of the probes around the same repetition
  double distinct_experts = 0;
  double tokens_per_pass = 0;  // and sequence
  double acceptance = 0;       // share of drafts that stood; 0 without speculation
  int64_t repetitions = 0;
  int64_t repeated = 0;  // measured again for noise
  bool calm = true;      // false: bandwidth did not calm down; noisy repetitions are counted
  bool steady() const { return calm && decode_high <= kSteadyDecode * decode_low; }
  double probe_low = 0, probe_high = 0;
};

struct ProfileWorkload {
  std::vector<std::vector<int32_t>> prompts;  // at least as many as the largest batch
  int64_t max_tokens = 0;
  double temperature = 1;
  int repetitions = 3;
};

// One warm-up, then repetitions. `peak_flops`: of the arithmetic that the scheme's products use.
BatchProfile profile_batch(Job& job, ServingSetup& setup, LimitProbe& probe,
                           const ProfileWorkload& workload, int64_t batch, double peak_flops);

}  // namespace degu
