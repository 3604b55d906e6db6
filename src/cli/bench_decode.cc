// `degu bench decode`: load, prefill and decode of one checkpoint, in passes of the runner that
// serving uses, with the read bandwidth of memory probed beside each decode.
//
// Tokens are random: a pass costs what it costs whatever they are, and text of an untrained model
// that fed on itself would soon visit the same experts again and again.
#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <vector>

#include "base/random.h"
#include "base/timer.h"
#include "cli/bench_model.h"
#include "cli/job.h"
#include "infer/memory_plan.h"
#include "infer/runner.h"
#include "io/atomic_file.h"
#include "kernels/api/probe.h"
#include "model/load.h"
#include "tensor/device.h"
#include "tensor/trace.h"
#include "train/run.h"

namespace degu {
namespace {

using Json = nlohmann::ordered_json;

constexpr int64_t kProbeBytes = int64_t{512} << 20;  // 16 of the largest caches at hand

struct Options {
  std::string checkpoint;
  int64_t prompt = 512;
  int64_t tokens = 64;
  int64_t depth = 0;
  std::vector<int64_t> streams = {1, 16};
  int rounds = 3;
  std::string kv = "auto";
  std::string trace;
  bool probe = true;
  bool graphs = true;
  int threads = 0;
  DeviceType device = DeviceType::kCpu;
  bool json = false;
};

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

double read_bandwidth(Context& context) {
  const ProbeStream stream{StreamKind::kRead, kProbeBytes};
  BandwidthProbe probe(context, {&stream, 1});
  std::vector<double> rates(7);
  for (double& rate : rates) rate = probe.run();
  return median(rates);
}

// What a pass must read at least: weights in use and cached keys and values.
class PassBytes {
 public:
  PassBytes(const ModelShape& shape, const ParameterSet& parameters, DType kv)
      : shape_(shape), kv_(kv) {
    for (const auto& p : parameters.all()) {
      if (p->spec.role == ParameterRole::kEmbedding && !shape.tied_head) continue;
      const Scheme scheme = quantizable(p->spec.role) ? p->forward.scheme : Scheme::kFp32;
      const double bytes =
          scheme_info(scheme).bits / 8 * static_cast<double>(p->spec.shape.elements());
      (p->spec.role == ParameterRole::kExperts ? experts_ : dense_) += bytes;
    }
    experts_ /= std::max(1, shape.layers - shape.moe.first_dense_layers) *
                std::max(1.0, static_cast<double>(shape.moe.experts));
  }

  double of(const PassPlan& plan, const PassOutput& output) const {
    double bytes = dense_;
    for (const AnyView& expert_TK : output.expert_LTK) {
      const auto* expert = static_cast<const int32_t*>(expert_TK.data);
      const std::set<int32_t> distinct(expert, expert + expert_TK.elements());
      bytes += experts_ * static_cast<double>(distinct.size());
    }
    for (const SequenceRows& s : plan.sequences) {
      bytes +=
          static_cast<double>((s.first_position + s.rows()) * 2 * shape_.layers * shape_.kv_heads *
                              shape_.head_width * static_cast<int64_t>(size_of(kv_)));
    }
    return bytes;
  }

 private:
  ModelShape shape_;
  DType kv_;
  double dense_ = 0;
  double experts_ = 0;  // of one expert in one layer
};

struct Decode {
  int64_t streams = 0;
  double tokens_per_second = 0;
  double bytes_per_pass = 0;
  double bandwidth = 0;  // bytes of the passes over their seconds
  double probe_before = 0;
  double probe_after = 0;

  double share() const { return 2 * bandwidth / (probe_before + probe_after); }
};

// What serving takes, known before the first pass; operators' scratch is set aside whole on a GPU.
struct PlannedBytes {
  size_t weights = 0, cache = 0, workspace = 0, scratch = 0;
  size_t total() const { return weights + cache + workspace + scratch; }
};

class Bench {
 public:
  explicit Bench(const Options& options)
      : options_(options), context_({.threads = options.threads, .device = options.device}) {
    const Timer timer;
    reader_ = std::make_unique<CheckpointReader>(options.checkpoint);
    const RunConfig config = checkpoint_config(*reader_);
    shape_ = config.model;
    parameters_ =
        load_for_inference(context_, *reader_, shape_, activation_type(config.train.precision),
                           {0, shape_.moe.experts});
    load_seconds_ = timer.seconds();
    load_peak_ = peak_bytes();
    model_ = std::make_unique<Transformer>(*parameters_);
    const int64_t most = *std::max_element(options.streams.begin(), options.streams.end());
    const PassLimits limits{.rows = std::max(options.prompt, most), .logit_rows = most};
    const int64_t pages = std::max(kv_pages_for(options.prompt), most * pages_per_stream());
    kv_ = options.kv == "int8" ? DType::kI8 : parameters_->activation();
    planned_ = {
        .weights = parameters_->bytes(),
        .cache = static_cast<size_t>(pages) * KvMemory::bytes_per_page(context_, shape_, kv_),
        .workspace = ModelRunner::workspace_bytes(*parameters_, *model_, limits),
        .scratch = context_.device() == DeviceType::kCpu
                       ? scratch_bytes(context_.threads(), *parameters_, limits, /*ranks=*/1)
                       : context_.scratch().capacity()};
    runner_ = std::make_unique<ModelRunner>(context_, *parameters_, *model_, limits, kv_,
                                            static_cast<int32_t>(pages), options.graphs);
  }

  Json run() {
    Json out;
    out["threads"] = context_.threads();
    out["isa"] = isa_name(context_.isa());
    out["device"] = enum_name(context_.device());
    out["load_seconds"] = load_seconds_;
    out["load_peak_bytes"] = load_peak_;
    out["file_bytes"] = file_bytes();
    prefill(1);  // wakes threads, touches memory
    std::vector<double> seconds(static_cast<size_t>(options_.rounds));
    for (double& each : seconds) each = prefill(1);
    out["prefill"] = {{"tokens", options_.prompt},
                      {"tokens_per_second", static_cast<double>(options_.prompt) / median(seconds)},
                      {"seconds", seconds}};
    for (int64_t streams : options_.streams) decode(streams, std::min<int64_t>(4, options_.tokens));
    const auto weights = static_cast<int64_t>(parameters_->bytes());
    const auto cache = static_cast<int64_t>(runner_->memory().bytes());
    out["weight_bytes"] = weights;
    out["cache_bytes"] = cache;
    out["peak_resident_bytes"] = peak_bytes();
    out["resident_over_weights_and_cache"] =
        static_cast<double>(peak_bytes()) / static_cast<double>(weights + cache);
    Trace trace;
    if (!options_.trace.empty()) context_.set_trace(&trace);
    for (int64_t streams : options_.streams) {
      Json& rounds = out["decode"].emplace_back();
      rounds["streams"] = streams;
      for (int i = 0; i < options_.rounds; ++i) rounds["rounds"].push_back(timed_decode(streams));
    }
    out["memory"] = memory_json();
    if (context_.device() == DeviceType::kCuda) out["graphs"] = graphs_json();
    if (!options_.trace.empty()) write_file_atomic(options_.trace, trace.json(0));
    return out;
  }

 private:
  // The plan, and what there was of it at most: in the process, or on the GPU.
  Json memory_json() const {
    const bool on_host = context_.device() == DeviceType::kCpu;
    return {{"weights", planned_.weights},
            {"cache", planned_.cache},
            {"workspace", planned_.workspace},
            {"scratch", planned_.scratch},
            {"planned", planned_.total()},
            {"taken", on_host ? peak_resident_bytes() : device_memory_peak()}};
  }

  Json graphs_json() const {
    const GraphStats stats = runner_->graph_stats();
    return {{"captured", stats.captured}, {"launched", stats.launched}, {"off", stats.off}};
  }

  // What was in memory at most: of the process, or of the GPU without the scratch set aside there.
  size_t peak_bytes() {
    if (context_.device() == DeviceType::kCpu) return peak_resident_bytes();
    return device_memory_peak() - context_.scratch().capacity();
  }

  int64_t pages_per_stream() const { return kv_pages_for(options_.depth + options_.tokens + 1); }

  int64_t file_bytes() const {
    int64_t bytes = 0;
    for (const auto& entry : std::filesystem::directory_iterator(reader_->folder())) {
      if (entry.path().extension() == ".h5") bytes += static_cast<int64_t>(entry.file_size());
    }
    return bytes;
  }

  int32_t token() {
    return static_cast<int32_t>(tokens_.below(drawn_++, static_cast<uint64_t>(shape_.vocab)));
  }

  // Rows [first, first + count) of stream number `stream`, in pages of its own.
  SequenceRows rows(int64_t stream, int64_t first, int64_t count, int64_t pages) {
    SequenceRows s{.first_position = first, .logits_from = count - 1};
    for (int64_t i = 0; i < count; ++i) s.tokens.push_back(token());
    for (int64_t p = 0; p < kv_pages_for(first + count); ++p) {
      s.pages.push_back(static_cast<int32_t>(stream * pages + p));
      if (p >= kv_pages_for(first)) s.fresh.push_back(s.pages.back());
    }
    return s;
  }

  double prefill(int64_t logits) {
    PassPlan plan;
    plan.sequences.push_back(rows(0, 0, options_.prompt, kv_pages_for(options_.prompt)));
    plan.sequences[0].logits_from = options_.prompt - logits;
    const Timer timer;
    runner_->run(plan);
    return timer.seconds();
  }

  // `count` passes with a token of each stream; what came before stands in the cache.
  Decode decode(int64_t streams, int64_t count) {
    for (int64_t s = 0; s < streams && options_.depth > 0; ++s) {
      for (int64_t done = 0; done < options_.depth;) {
        const int64_t piece = std::min(options_.prompt, options_.depth - done);
        PassPlan plan;
        plan.sequences.push_back(rows(s, done, piece, pages_per_stream()));
        runner_->run(plan);
        done += piece;
      }
    }
    const PassBytes pass_bytes(shape_, *parameters_, kv_);
    double seconds = 0;
    double bytes = 0;
    for (int64_t i = 0; i < count; ++i) {
      PassPlan plan;
      for (int64_t s = 0; s < streams; ++s) {
        plan.sequences.push_back(rows(s, options_.depth + i, 1, pages_per_stream()));
      }
      const Timer timer;
      const PassOutput output = runner_->run(plan);
      seconds += timer.seconds();
      bytes += pass_bytes.of(plan, output);
    }
    return {.streams = streams,
            .tokens_per_second = static_cast<double>(streams * count) / seconds,
            .bytes_per_pass = bytes / static_cast<double>(count),
            .bandwidth = bytes / seconds};
  }

  Json timed_decode(int64_t streams) {
    const double before = options_.probe ? read_bandwidth(context_) : 0;
    decode(streams, std::min<int64_t>(2, options_.tokens));
    Decode result = decode(streams, options_.tokens);
    result.probe_before = before;
    result.probe_after = options_.probe ? read_bandwidth(context_) : 0;
    Json out;
    out["tokens_per_second"] = result.tokens_per_second;
    out["bytes_per_pass"] = result.bytes_per_pass;
    out["bandwidth"] = result.bandwidth;
    if (!options_.probe) return out;
    out["probes"] = {result.probe_before, result.probe_after};
    out["share_of_probe"] = result.share();
    return out;
  }

  const Options& options_;
  Context context_;
  std::unique_ptr<CheckpointReader> reader_;
  ModelShape shape_;
  std::unique_ptr<ParameterSet> parameters_;
  std::unique_ptr<Transformer> model_;
  std::unique_ptr<ModelRunner> runner_;
  DType kv_ = DType::kBF16;
  PlannedBytes planned_;
  double load_seconds_ = 0;
  size_t load_peak_ = 0;
  RandomStream tokens_{1, "bench decode"};
  uint64_t drawn_ = 0;
};

void print(const Json& out) {
  const auto gib = [&](const char* key) { return out[key].get<double>() / (1 << 30); };
  fmt::print("load      {:.2f} s for {:.2f} GiB, {:.2f} GiB resident at most\n",
             out["load_seconds"].get<double>(), gib("file_bytes"), gib("load_peak_bytes"));
  fmt::print("resident  {:.2f} GiB: {:.3f} of weights and cache\n", gib("peak_resident_bytes"),
             out["resident_over_weights_and_cache"].get<double>());
  const Json& memory = out["memory"];
  fmt::print("memory    {:.2f} GiB planned, {:.2f} GiB taken at most\n",
             memory["planned"].get<double>() / (1 << 30),
             memory["taken"].get<double>() / (1 << 30));
  fmt::print("prefill   {:.0f} tokens/s over {} tokens\n",
             out["prefill"]["tokens_per_second"].get<double>(),
             out["prefill"]["tokens"].get<int64_t>());
  for (const Json& decode : out["decode"]) {
    for (const Json& round : decode["rounds"]) {
      fmt::print("decode    {:>8.1f} tokens/s, {} streams; {:.2f} GB/s",
                 round["tokens_per_second"].get<double>(), decode["streams"].get<int64_t>(),
                 round["bandwidth"].get<double>() / 1e9);
      if (round.contains("probes")) {
        fmt::print(" where a plain read has {:.2f} before and {:.2f} after: {:.3f}",
                   round["probes"][0].get<double>() / 1e9, round["probes"][1].get<double>() / 1e9,
                   round["share_of_probe"].get<double>());
      }
      fmt::print("\n");
    }
  }
  if (!out.contains("graphs")) return;
  const Json& graphs = out["graphs"];
  const GraphStats stats{.captured = graphs["captured"].get<int64_t>(),
                         .launched = graphs["launched"].get<int64_t>(),
                         .off = graphs["off"].get<std::string>()};
  fmt::print("graphs    {}\n", stats.text());
}

ExitCode bench_decode(const Options& options) {
  const Json out = Bench(options).run();
  if (options.json) {
    fmt::print("{}\n", out.dump(2));
  } else {
    print(out);
  }
  return ExitCode::kDone;
}

}  // namespace

Action attach_bench_decode(CommandLine& line) {
  auto options = std::make_shared<Options>();
  line.option("checkpoint", options->checkpoint, "a checkpoint").required();
  line.option("--prompt", options->prompt, "tokens of the prefill").positive();
  line.option("--tokens", options->tokens, "passes of a decode").positive();
  line.option("--depth", options->depth, "tokens in each stream's cache before its decode")
      .non_negative();
  line.option("--streams", options->streams, "sequences decoded together, a list: 1,16")
      .comma_separated()
      .positive();
  line.option("--rounds", options->rounds, "measurements of each").positive();
  line.option("--kv", options->kv, "type of cached keys and values: auto or int8")
      .among({"auto", "int8"});
  line.option("--trace", options->trace,
              "write a span per operator of the decodes here, which run without graphs");
  line.flag("--probe,!--no-probe", options->probe, "read bandwidth before and after decodes");
  line.flag("--graphs,!--no-graphs", options->graphs, "capture decode passes as CUDA graphs");
  line.option("--threads", options->threads, "threads; 0: the cores this process may run on");
  add_device_option(line, options->device);
  line.flag("--json", options->json, "one JSON object on standard output");
  return [options] { return bench_decode(*options); };
}

Action attach_bench_memory(CommandLine& line) {
  auto threads = std::make_shared<int>(0);
  auto json = std::make_shared<bool>(false);
  line.option("--threads", *threads, "threads; 0: the cores this process may run on");
  line.flag("--json", *json, "one JSON object on standard output");
  return [threads, json] {
    Context context({.threads = *threads});
    const double rate = read_bandwidth(context);
    if (*json) {
      fmt::print("{}\n", Json{{"read_bandwidth", rate}, {"threads", context.threads()}}.dump());
    } else {
      fmt::print("{:.2f} GB/s\n", rate / 1e9);
    }
    return ExitCode::kDone;
  };
}

}  // namespace degu
