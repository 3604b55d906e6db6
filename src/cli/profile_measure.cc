#include "cli/profile_measure.h"

#include <algorithm>
#include <iterator>

#include "infer/cost.h"
#include "shape/accounting.h"

namespace degu {
namespace {

constexpr int64_t kProbeBytes = int64_t{256} << 20;
constexpr ProbeStream kProbeStream{StreamKind::kRead, kProbeBytes};

double median(const std::vector<double>& values) {
  return percentile(values, 0.5).value_or(0);
}

Percentiles percentiles(const std::vector<double>& values) {
  return {percentile(values, 0.5).value_or(0), percentile(values, 0.95).value_or(0),
          percentile(values, 0.99).value_or(0)};
}

double since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// What the sinks of one repetition hear.
struct Listener {
  Clock::time_point start;
  struct Stream {
    double last = -1;  // seconds of the latest token; -1: none yet
    std::string error;
  };
  std::vector<Stream> streams;
  BatchTimes* times = nullptr;
  size_t waiting = 0;  // requests without a first token
  int64_t tokens = 0;

  void hear(size_t i, const Event& event) {
    Stream& stream = streams[i];
    if (!event.error.empty()) stream.error = event.error;
    if (event.tokens.empty()) return;
    const double now = since(start);
    const auto count = static_cast<int64_t>(event.tokens.size());
    tokens += count;
    if (stream.last < 0) {
      times->ttft.push_back(now);
      --waiting;
    } else {
      const double gap = (now - stream.last) / static_cast<double>(count);
      for (int64_t n = 0; n < count; ++n) times->gaps.push_back(gap);
    }
    stream.last = now;
  }
};

int64_t sum(const std::array<int64_t, kMaxDraftDepth>& values) {
  int64_t all = 0;
  for (int64_t v : values) all += v;
  return all;
}

BatchTimes run_once(Engine& engine, const ProfileWorkload& workload, int64_t batch) {
  BatchTimes times;
  Listener listener{.start = Clock::now(),
                    .streams = std::vector<Listener::Stream>(static_cast<size_t>(batch)),
                    .times = &times,
                    .waiting = static_cast<size_t>(batch)};
  const EngineStats before = engine.stats();
  for (size_t i = 0; i < static_cast<size_t>(batch); ++i) {
    Request request{
        .prompt = workload.prompts[i], .max_tokens = workload.max_tokens, .ignore_eos = true};
    request.sampling.temperature = workload.temperature;
    request.sampling.seed = i + 1;
    engine.submit(std::move(request), [&listener, i](Event&& event) { listener.hear(i, event); });
  }
  while (listener.waiting > 0 && engine.step()) {
  }
  times.prefill_seconds = since(listener.start);
  const EngineStats middle = engine.stats();
  const int64_t first_tokens = listener.tokens;
  while (engine.step()) {
  }
  times.decode_seconds = since(listener.start) - times.prefill_seconds;
  for (const Listener::Stream& stream : listener.streams) {
    if (!stream.error.empty()) throw NumericError("a request failed: {}", stream.error);
  }
  const EngineStats after = engine.stats();
  times.decode_tokens = listener.tokens - first_tokens;
  times.decode_passes = after.passes - middle.passes;
  // The engine's mean is over all passes since it began.
  const auto all = [](const EngineStats& s) {
    return s.distinct_experts * static_cast<double>(s.passes);
  };
  if (times.decode_passes > 0) {
    times.distinct_experts = (all(after) - all(middle)) / static_cast<double>(times.decode_passes);
  }
  times.drafts_proposed = sum(after.drafts_proposed) - sum(before.drafts_proposed);
  times.drafts_accepted = sum(after.drafts_accepted) - sum(before.drafts_accepted);
  return times;
}

struct ModelSizes {
  ModelShape shape;
  WeightBytes weights;
  double kv_token_bytes = 0;
};

// Rates of one repetition that need the model's sizes.
struct Rates {
  double prefill_flops, decode_flops, decode_bytes;
};

Rates rates_of(const BatchTimes& times, const ModelSizes& sizes, const ProfileWorkload& workload,
               int64_t batch) {
  const auto requests = static_cast<double>(batch);
  const auto prompt = static_cast<int64_t>(workload.prompts.front().size());
  const Flops reading = count_flops(sizes.shape, prompt);
  const double prefill = requests * (static_cast<double>(prompt) *
                                         static_cast<double>(reading.forward() - reading.head) +
                                     static_cast<double>(reading.head));
  // A token behind c keys costs what the mean token of 2 c - 1 does.
  const int64_t keys = prompt + workload.max_tokens / 2;
  const auto per_token = static_cast<double>(count_flops(sizes.shape, 2 * keys - 1).forward());
  const WeightBytes& weights = sizes.weights;
  const double bytes_per_pass =
      weights.every_pass +
      static_cast<double>(weights.moe_layers) * times.distinct_experts * weights.expert +
      requests * static_cast<double>(keys) * sizes.kv_token_bytes;
  return {prefill / times.prefill_seconds,
          per_token * static_cast<double>(times.decode_tokens) / times.decode_seconds,
          bytes_per_pass * static_cast<double>(times.decode_passes) / times.decode_seconds};
}

BatchProfile summarize(const std::vector<BatchTimes>& repetitions, const ModelSizes& sizes,
                       const ProfileWorkload& workload, int64_t batch) {
  BatchProfile out{.batch = batch, .repetitions = static_cast<int64_t>(repetitions.size())};
  const auto prompt_tokens =
      static_cast<double>(batch) * static_cast<double>(workload.prompts.front().size());
  std::vector<double> ttft, gaps, prefill, decode, probes;
  std::vector<double> prefill_flops, decode_flops, decode_bytes, shares, distinct, per_pass;
  double proposed = 0, accepted = 0;
  for (const BatchTimes& t : repetitions) {
    ttft.insert(ttft.end(), t.ttft.begin(), t.ttft.end());
    gaps.insert(gaps.end(), t.gaps.begin(), t.gaps.end());
    prefill.push_back(prompt_tokens / t.prefill_seconds);
    decode.push_back(static_cast<double>(t.decode_tokens) / t.decode_seconds);
    const Rates rates = rates_of(t, sizes, workload, batch);
    prefill_flops.push_back(rates.prefill_flops);
    decode_flops.push_back(rates.decode_flops);
    decode_bytes.push_back(rates.decode_bytes);
    shares.push_back(rates.decode_bytes / (0.5 * (t.probe_before + t.probe_after)));
    distinct.push_back(t.distinct_experts);
    per_pass.push_back(static_cast<double>(t.decode_tokens) /
                       static_cast<double>(batch * std::max<int64_t>(t.decode_passes, 1)));
    probes.insert(probes.end(), {t.probe_before, t.probe_after});
    proposed += static_cast<double>(t.drafts_proposed);
    accepted += static_cast<double>(t.drafts_accepted);
  }
  out.ttft = percentiles(ttft);
  out.itl = percentiles(gaps);
  out.prefill_tokens_per_second = median(prefill);
  out.decode_tokens_per_second = median(decode);
  out.decode_low = *std::min_element(decode.begin(), decode.end());
  out.decode_high = *std::max_element(decode.begin(), decode.end());
  out.prefill_flops = median(prefill_flops);
  out.decode_flops = median(decode_flops);
  out.decode_bytes = median(decode_bytes);
  out.bandwidth_share = median(shares);
  out.distinct_experts = median(distinct);
  out.tokens_per_pass = median(per_pass);
  out.acceptance = proposed > 0 ? accepted / proposed : 0;
  out.probe_low = *std::min_element(probes.begin(), probes.end());
  out.probe_high = *std::max_element(probes.begin(), probes.end());
  return out;
}

}  // namespace

LimitProbe::LimitProbe(int threads)
    : context_({.threads = threads, .scratch_bytes = size_t{2} * kProbeBytes}),
      bandwidth_(context_, {&kProbeStream, 1}) {}

double LimitProbe::read_bandwidth() {
  return median({bandwidth_.run(), bandwidth_.run(), bandwidth_.run()});
}

double LimitProbe::peak_flops(DType type) {
  return probe_peak_flops(context_, type);
}

bool BatchTimes::noisy() const {
  return std::max(probe_before, probe_after) > kSteadyProbes * std::min(probe_before, probe_after);
}

WeightBytes weight_bytes(const Context& context, ParameterSet& parameters) {
  WeightBytes out;
  for (const auto& p : parameters.all()) {
    const PackedWeight& w = p->forward;
    if (w.bytes == nullptr) {
      // Gains and state; an embedding that is only looked up gives a few rows.
      if (p->spec.role != ParameterRole::kEmbedding) {
        out.every_pass += 4.0 * static_cast<double>(p->spec.shape.elements());
      }
      continue;
    }
    const auto bytes =
        static_cast<double>(packed_bytes(context, w.scheme, w.experts, w.outputs, w.inner));
    if (p->spec.role == ParameterRole::kExperts) {
      out.expert += bytes / static_cast<double>(w.experts);
    } else {
      out.every_pass += bytes;
    }
  }
  const ModelShape& shape = parameters.shape();
  for (int l = 0; l < shape.layers; ++l) out.moe_layers += shape.is_moe_layer(l) ? 1 : 0;
  if (out.moe_layers > 0) out.expert /= static_cast<double>(out.moe_layers);
  return out;
}

BatchProfile profile_batch(Job& job, ServingSetup& setup, LimitProbe& probe,
                           const ProfileWorkload& workload, int64_t batch, double peak_flops) {
  EngineOptions options = setup.engine_options();
  options.max_waiting = batch;
  options.prefix_cache = false;  // repetitions read their prompts anew
  Engine engine(setup.tokenizer(), setup.lanes(), options, setup.make_drafter());
  run_once(engine, workload, batch);

  std::vector<BatchTimes> steady, noisy;
  double before = probe.read_bandwidth();
  while (static_cast<int>(steady.size()) < workload.repetitions &&
         static_cast<int>(steady.size() + noisy.size()) < 2 * workload.repetitions) {
    BatchTimes times = run_once(engine, workload, batch);
    times.probe_before = before;
    times.probe_after = before = probe.read_bandwidth();
    (times.noisy() ? noisy : steady).push_back(std::move(times));
  }
  const bool calm = static_cast<int>(steady.size()) == workload.repetitions;
  const auto repeated = static_cast<int64_t>(noisy.size());
  if (!calm) std::move(noisy.begin(), noisy.end(), std::back_inserter(steady));

  const ModelSizes sizes{.shape = setup.lanes().shape(),
                         .weights = weight_bytes(job.context(), *setup.model().parameters),
                         .kv_token_bytes = static_cast<double>(setup.memory().page) / kKvPageKeys};
  BatchProfile out = summarize(steady, sizes, workload, batch);
  out.calm = calm;
  out.repeated = repeated;
  out.prefill_compute_share = out.prefill_flops / peak_flops;
  out.decode_compute_share = out.decode_flops / peak_flops;
  return out;
}

}  // namespace degu
