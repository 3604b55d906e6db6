// `degu bench speculation`: what drafting costs or brings, against plain decoding of the same
// requests, in turns.
//
// A pair is one batch of prompts, answered with drafts and without, the first of the two by turns.
// Each way keeps one engine for all pairs of a case, as a server would, so what its estimates cost
// while they learn is measured with the rest. Timed are the steps after every prompt was read. A
// step that takes more than kLate times the median of its answer was held up by another process: on
// both sides it counts as kLate medians, and is told in `late_steps`.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <array>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>
#include <numeric>
#include <string>
#include <vector>

#include "base/log.h"
#include "base/random.h"
#include "base/timer.h"
#include "cli/bench_model.h"
#include "cli/serving_setup.h"
#include "data/reader.h"
#include "data/token_dataset.h"

namespace degu {
namespace {

using Json = nlohmann::ordered_json;
using Prompt = std::vector<int32_t>;

constexpr int kResamples = 2000;
constexpr double kLate = 20;
constexpr double kBar = 0.97;  // plain over speculative time: 3 % of cost

struct Options {
  std::string checkpoint;
  ServingArguments serving;
  std::vector<std::string> data;
  std::vector<std::string> kinds = {"code", "text", "random"};
  std::vector<double> temperatures = {0, 1};
  std::vector<int64_t> streams = {1};
  int64_t prompt_tokens = 64;
  int64_t max_tokens = 128;
  int64_t pairs = 20;
  int64_t seed = 1;
  bool json = false;
};

// Accessors of made-up records: lines that repeat with other names, as generated code does.
std::string code_text(const RandomStream& stream, uint64_t number) {
  constexpr std::array<const char*, 8> kNames = {"width", "height", "depth",  "offset",
                                                 "count", "limit",  "stride", "index"};
  std::string text;
  for (uint64_t i = 0; i < 64; ++i) {
    const char* name = kNames[stream.below(64 * number + i, kNames.size())];
    text += fmt::format("  int get_{0}() const {{ return {0}_; }}\n", name);
    text += fmt::format("  void set_{0}(int {0}) {{ {0}_ = {0}; }}\n", name);
  }
  return text;
}

class Prompts {
 public:
  Prompts(const Options& options, const LoadedModel& model) : options_(options), model_(model) {
    const bool text =
        std::find(options.kinds.begin(), options.kinds.end(), "text") != options.kinds.end();
    if (!text) return;
    DataConfig data = model.config.data;
    if (!options.data.empty()) {
      data.paths = options.data;
      data.mixture.clear();
    }
    data.sequence_length = options.prompt_tokens;
    data.validation_tokens = options.prompt_tokens * options.pairs * most_streams();
    dataset_ = std::make_unique<TokenDataset>(data.paths);
    if (dataset_->tokenizer().sha256() != model.tokenizer.sha256()) {
      throw DataError("the shards of --data were made with another tokenizer than the model's");
    }
    validation_ = std::make_unique<ValidationSet>(*dataset_, data);
  }

  Prompt make(const std::string& kind, int64_t number) const {
    const auto length = static_cast<size_t>(options_.prompt_tokens);
    Prompt prompt;
    if (kind == "text") {
      SequenceBatch batch;
      validation_->read(number % validation_->sequences(), 1, batch);
      prompt = batch.tokens_T;
    } else if (kind == "code") {
      const RandomStream stream(static_cast<uint64_t>(options_.seed), "bench speculation code");
      const std::string text = code_text(stream, static_cast<uint64_t>(number));
      prompt = encode_prompt(model_.tokenizer, text, /*bos=*/true);
    } else {
      const RandomStream stream(static_cast<uint64_t>(options_.seed), "bench speculation random");
      const auto first = static_cast<uint64_t>(number) * length;
      const auto vocab = static_cast<uint64_t>(model_.config.model.vocab);
      for (uint64_t i = 0; i < length; ++i) {
        prompt.push_back(static_cast<int32_t>(stream.below(first + i, vocab)));
      }
    }
    prompt.resize(std::min(prompt.size(), length));
    return prompt;
  }

 private:
  int64_t most_streams() const {
    return *std::max_element(options_.streams.begin(), options_.streams.end());
  }

  const Options& options_;
  const LoadedModel& model_;
  std::unique_ptr<TokenDataset> dataset_;
  std::unique_ptr<ValidationSet> validation_;
};

struct Answered {
  std::vector<std::vector<int32_t>> tokens;  // per prompt
  double seconds = 0;                        // of the steps after every prompt was read
  int64_t timed_tokens = 0;
  int64_t late_steps = 0;
  double per_token() const { return seconds / static_cast<double>(timed_tokens); }
};

Answered answer(Engine& engine, const Options& options, const std::vector<Prompt>& prompts,
                double temperature) {
  Answered out;
  out.tokens.resize(prompts.size());
  size_t begun = 0;
  int64_t tokens = 0;
  std::string error;
  for (size_t i = 0; i < prompts.size(); ++i) {
    Request request{.prompt = prompts[i],
                    .max_tokens = options.max_tokens,
                    .sampling = {},
                    .stop = {},
                    .ignore_eos = true};
    request.sampling.temperature = temperature;
    request.sampling.seed = static_cast<uint64_t>(options.seed) + i;
    engine.submit(std::move(request), [&, i](Event&& event) {
      begun += out.tokens[i].empty() && !event.tokens.empty();
      for (const TokenRecord& t : event.tokens) out.tokens[i].push_back(t.token);
      tokens += static_cast<int64_t>(event.tokens.size());
      if (event.finish == FinishReason::kFailed) error = event.error;
    });
  }
  while (begun < prompts.size() && engine.step()) {
  }
  const int64_t before = tokens;
  std::vector<double> steps;
  for (bool more = true; more;) {
    const Timer timer;
    more = engine.step();
    steps.push_back(timer.seconds());
  }
  std::vector<double> sorted = steps;
  std::sort(sorted.begin(), sorted.end());
  const double most = kLate * sorted[sorted.size() / 2];
  for (double step : steps) {
    out.seconds += std::min(step, most);
    out.late_steps += step > most;
  }
  if (!error.empty()) throw NumericError("{}", error);
  out.timed_tokens = tokens - before;
  return out;
}

struct Case {
  std::string kind;
  double temperature = 0;
  int64_t streams = 1;
  std::string drafter;  // ngram or draft

  std::string name() const {
    return fmt::format("{} drafts, {} prompts, temperature {}, {} streams", drafter, kind,
                       temperature, streams);
  }
};

double ratio_of(const std::vector<double>& plain, const std::vector<double>& drafted,
                const std::vector<size_t>& chosen) {
  double above = 0, below = 0;
  for (size_t i : chosen) {
    above += plain[i];
    below += drafted[i];
  }
  return above / below;
}

// Sums, not medians: what estimates cost on their way comes in few passes, and counts.
void add_ratio(const std::vector<double>& plain, const std::vector<double>& drafted, int64_t seed,
               Json& out) {
  std::vector<size_t> chosen(plain.size());
  std::iota(chosen.begin(), chosen.end(), size_t{0});
  out["ratio"] = ratio_of(plain, drafted, chosen);
  const RandomStream stream(static_cast<uint64_t>(seed), "bench speculation bootstrap");
  std::vector<double> ratios;
  uint64_t drawn = 0;
  for (int r = 0; r < kResamples; ++r) {
    for (size_t& i : chosen) i = stream.below(drawn++, plain.size());
    ratios.push_back(ratio_of(plain, drafted, chosen));
  }
  std::sort(ratios.begin(), ratios.end());
  out["lo"] = ratios[static_cast<size_t>(0.025 * kResamples)];
  out["hi"] = ratios[static_cast<size_t>(0.975 * kResamples)];
  const auto mean = [](const std::vector<double>& v) {
    return std::accumulate(v.begin(), v.end(), 0.0) / static_cast<double>(v.size());
  };
  out["plain_seconds_per_token"] = mean(plain);
  out["seconds_per_token"] = mean(drafted);
}

void add_drafts(const EngineStats& stats, Json& out) {
  const auto sum = [](const auto& counts) {
    return static_cast<double>(std::accumulate(counts.begin(), counts.end(), int64_t{0}));
  };
  const double proposed = sum(stats.drafts_proposed);
  const double accepted = sum(stats.drafts_accepted);
  out["acceptance"] = proposed > 0 ? Json(accepted / proposed) : Json();
  // Every look of a sequence at a pass gives one token and the drafts that stood.
  out["mean_depth"] = proposed / (static_cast<double>(stats.completion_tokens) - accepted);
}

Json measure(const Case& c, const Options& options, ServingSetup& setup, const Prompts& prompts) {
  EngineOptions plain = setup.engine_options();
  plain.prefix_cache = false;  // two engines take turns on the same pages
  plain.max_waiting = c.streams;
  plain.speculation = {};
  EngineOptions drafted = plain;
  drafted.speculation = {.depth = options.serving.depth, .adaptive = !options.serving.fixed_depth};
  std::unique_ptr<Drafter> drafter =
      c.drafter == "draft" ? setup.make_drafter() : std::make_unique<NgramDrafter>();
  Engine without(setup.tokenizer(), setup.lanes(), plain);
  Engine with(setup.tokenizer(), setup.lanes(), drafted, std::move(drafter));

  std::vector<double> plain_seconds, drafted_seconds;
  int64_t tokens = 0;
  int64_t late_steps = 0;
  for (int64_t pair = 0; pair < options.pairs; ++pair) {
    std::vector<Prompt> batch;
    for (int64_t s = 0; s < c.streams; ++s) {
      batch.push_back(prompts.make(c.kind, pair * c.streams + s));
    }
    Answered a, b;
    const auto run_plain = [&] { a = answer(without, options, batch, c.temperature); };
    if (pair % 2 == 0) run_plain();
    b = answer(with, options, batch, c.temperature);
    if (pair % 2 == 1) run_plain();
    if (a.tokens != b.tokens) {
      throw NumericError("{}: pair {} has another text with drafts than without", c.name(), pair);
    }
    plain_seconds.push_back(a.per_token());
    drafted_seconds.push_back(b.per_token());
    tokens += a.timed_tokens;
    late_steps += a.late_steps + b.late_steps;
  }
  Json out = {{"kind", c.kind},          {"temperature", c.temperature}, {"streams", c.streams},
              {"drafter", c.drafter},    {"pairs", options.pairs},       {"tokens", tokens},
              {"late_steps", late_steps}};
  add_ratio(plain_seconds, drafted_seconds, options.seed, out);
  add_drafts(with.stats(), out);
  return out;
}

void print(const Json& cases) {
  fmt::print("{:<8} {:>5} {:>8} {:>7} {:>10} {:>18} {:>11} {:>11} {:>11}\n", "prompts", "temp.",
             "streams", "drafts", "ratio", "95 % interval", "acceptance", "mean depth", "ms/token");
  for (const Json& c : cases) {
    fmt::print(
        "{:<8} {:>5} {:>8} {:>7} {:>10.3f} {:>18} {:>11} {:>11.2f} {:>11.3f}\n",
        c["kind"].get<std::string>(), c["temperature"].get<double>(), c["streams"].get<int64_t>(),
        c["drafter"].get<std::string>(), c["ratio"].get<double>(),
        fmt::format("[{:.3f}, {:.3f}]", c["lo"].get<double>(), c["hi"].get<double>()),
        c["acceptance"].is_null() ? "-" : fmt::format("{:.2f}", c["acceptance"].get<double>()),
        c["mean_depth"].get<double>(), 1e3 * c["seconds_per_token"].get<double>());
    std::fflush(stdout);
  }
  fmt::print(
      "ratio: plain over speculative time per token; the bar is {} at the interval's "
      "lower end\n",
      kBar);
}

ExitCode bench_speculation(Options options) {
  options.serving.context = options.prompt_tokens + options.max_tokens;
  options.serving.max_running =
      static_cast<int>(*std::max_element(options.streams.begin(), options.streams.end()));
  Job job(options.serving.threads, options.serving.device);
  ServingSetup setup(job, options.checkpoint, options.serving);
  if (!setup.leads()) {
    setup.follow();
    return ExitCode::kDone;
  }
  const Prompts prompts(options, setup.model());
  std::vector<std::string> drafters = {"ngram"};
  if (!options.serving.draft.empty()) drafters.emplace_back("draft");
  Json cases = Json::array();
  bool within = true;
  for (const std::string& drafter : drafters) {
    for (const std::string& kind : options.kinds) {
      for (double temperature : options.temperatures) {
        for (int64_t streams : options.streams) {
          const Case c{kind, temperature, streams, drafter};
          cases.push_back(measure(c, options, setup, prompts));
          log_info("{}: {:.3f} of plain speed's time", c.name(),
                   1 / cases.back()["ratio"].get<double>());
          within = within && cases.back()["lo"].get<double>() >= kBar;
        }
      }
    }
  }
  if (options.json) {
    const Json out = {{"checkpoint", setup.model().folder},
                      {"threads", job.context().threads()},
                      {"bar", kBar},
                      {"within_bar", within},
                      {"cases", cases}};
    fmt::print("{}\n", out.dump(2));
  } else {
    print(cases);
  }
  return ExitCode::kDone;
}

}  // namespace

Action attach_bench_speculation(CommandLine& line) {
  auto o = std::make_shared<Options>();
  line.option("checkpoint", o->checkpoint, "a checkpoint, or the folder of a run").required();
  line.option("--draft", o->serving.draft,
              "also drafts of this smaller model with the same tokenizer");
  line.option("--depth", o->serving.depth, "most drafts per sequence and pass")
      .within(0, kMaxDraftDepth);
  line.flag("--fixed-depth", o->serving.fixed_depth,
            "always --depth, instead of what estimates advise");
  line.option("--kinds", o->kinds, "prompts: code, text (validation shards), random")
      .comma_separated()
      .among({"code", "text", "random"});
  line.option("--data", o->data, "prepared data; default: what the model was trained on");
  line.option("--temperatures", o->temperatures, "of the sampling, a list: 0,1")
      .comma_separated()
      .non_negative();
  line.option("--streams", o->streams, "sequences decoded together, a list: 1,4")
      .comma_separated()
      .positive();
  line.option("--prompt-tokens", o->prompt_tokens, "tokens of a prompt, at most").positive();
  line.option("--max-tokens", o->max_tokens, "tokens of an answer").within(2, 1 << 20);
  line.option("--pairs", o->pairs, "batches of prompts, each answered both ways").positive();
  line.option("--seed", o->seed, "of prompts, samples and resamples");
  line.option("--threads", o->serving.threads, "threads per rank; 0: the node's cores");
  add_device_option(line, o->serving.device);
  line.flag("--json", o->json, "one JSON object on standard output");
  return [o] { return bench_speculation(*o); };
}

}  // namespace degu
