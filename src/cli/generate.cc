#include <cstdio>
#include <fstream>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>

#include "base/log.h"
#include "base/timer.h"
#include "cli/command.h"
#include "cli/loaded_model.h"
#include "cli/serving_setup.h"
#include "infer/engine.h"
#include "io/atomic_file.h"
#include "train/route_file.h"

namespace degu {
namespace {

struct GenerateArguments {
  std::string checkpoint;
  std::vector<std::string> prompt;
  std::string prompts_file;
  int64_t max_tokens = 128;
  SamplingParams sampling;
  int64_t seed = 0;
  std::vector<std::string> stop;
  bool ignore_eos = false;
  bool echo = false;
  std::string routes;
  bool json = false;
  ServingArguments serving;
};

std::vector<std::string> read_prompts(const GenerateArguments& a) {
  std::vector<std::string> prompts = a.prompt;
  if (!a.prompts_file.empty()) {
    std::ifstream file(a.prompts_file);
    if (!file) throw IoError("{}: cannot be read; --prompts takes a file", a.prompts_file);
    for (std::string line; std::getline(file, line);) prompts.push_back(line);
  }
  if (prompts.empty()) {
    throw ConfigError("there is nothing to go on from; give --prompt TEXT or --prompts FILE");
  }
  return prompts;
}

struct Answer {
  std::string text;
  std::vector<TokenRecord> tokens;
  std::optional<FinishReason> finish;
  std::string error;
  Usage usage;
};

nlohmann::json to_json(const std::string& prompt, const Answer& answer,
                       const GenerateArguments& a) {
  nlohmann::json out = {
      {"prompt", prompt},
      {"text", answer.text},
      {"finish", std::string(enum_names(FinishReason{})[static_cast<size_t>(*answer.finish)])},
      {"usage",
       {{"prompt_tokens", answer.usage.prompt_tokens},
        {"cached_tokens", answer.usage.cached_tokens},
        {"completion_tokens", answer.usage.completion_tokens},
        {"preemptions", answer.usage.preemptions},
        {"queue_seconds", answer.usage.queue_seconds},
        {"first_token_seconds", answer.usage.first_token_seconds},
        {"seconds", answer.usage.seconds}}}};
  if (!answer.error.empty()) out["error"] = answer.error;
  for (const TokenRecord& t : answer.tokens) {
    out["tokens"].push_back(t.token);
    if (a.sampling.logprobs < 0) continue;
    out["logprobs"].push_back(t.logprob ? nlohmann::json(*t.logprob) : nlohmann::json());
    nlohmann::json top = nlohmann::json::array();
    for (const TokenLogprob& each : t.top) top.push_back({each.token, each.logprob});
    out["top_logprobs"].push_back(top);
  }
  return out;
}

void write_routes(const std::string& path, const std::vector<Answer>& answers, int top_k) {
  std::string text;
  for (size_t i = 0; i < answers.size(); ++i) {
    RouteLine line{.text = static_cast<int64_t>(i), .experts_LK = {}};
    for (const TokenRecord& t : answers[i].tokens) {
      line.token = t.token;
      line.experts_LK = t.experts_LK;
      text += to_text(line, top_k);
      ++line.position;
    }
  }
  write_file_atomic(path, text);
}

nlohmann::json to_json(const EngineStats& s, double seconds) {
  nlohmann::json out = {{"seconds", seconds},
                        {"passes", s.passes},
                        {"prompt_tokens", s.prompt_tokens},
                        {"cached_tokens", s.cached_tokens},
                        {"completion_tokens", s.completion_tokens},
                        {"tokens_per_second", static_cast<double>(s.completion_tokens) / seconds},
                        {"preemptions", s.preemptions},
                        {"distinct_experts", s.distinct_experts}};
  for (size_t d = 0; d < s.drafts_proposed.size() && s.drafts_proposed[d] > 0; ++d) {
    out["drafts_proposed"].push_back(s.drafts_proposed[d]);
    out["drafts_accepted"].push_back(s.drafts_accepted[d]);
  }
  return out;
}

// `answers` must outlive the engine, which fills them.
void run_all(Engine& engine, const std::vector<std::string>& prompts, const Tokenizer& tokenizer,
             const GenerateArguments& a, std::vector<Answer>& answers) {
  const bool live = prompts.size() == 1 && !a.json;
  for (size_t i = 0; i < prompts.size(); ++i) {
    Request request{.prompt = encode_prompt(tokenizer, prompts[i], a.serving.bos),
                    .max_tokens = a.max_tokens,
                    .sampling = a.sampling,
                    .stop = a.stop,
                    .ignore_eos = a.ignore_eos,
                    .echo = a.echo || !a.routes.empty(),
                    .routes = !a.routes.empty()};
    request.sampling.seed = static_cast<uint64_t>(a.seed);
    engine.submit(std::move(request), [&answers, i, live](Event&& event) {
      Answer& answer = answers[i];
      const std::string text = event.text();
      if (live && !text.empty()) {
        std::fwrite(text.data(), 1, text.size(), stdout);
        std::fflush(stdout);
      }
      answer.text += text;
      std::move(event.tokens.begin(), event.tokens.end(), std::back_inserter(answer.tokens));
      answer.finish = event.finish;
      answer.error = event.error;
      answer.usage = event.usage;
    });
  }
  while (engine.step()) {
  }
  if (live) std::printf("\n");
}

ExitCode generate(const GenerateArguments& a) {
  Job job(a.serving.threads, a.serving.device);
  ServingSetup setup(job, a.checkpoint, a.serving);
  if (!setup.leads()) {
    setup.follow();
    return ExitCode::kDone;
  }
  const std::vector<std::string> prompts = read_prompts(a);
  EngineOptions options = setup.engine_options();
  options.max_waiting = static_cast<int64_t>(prompts.size());
  std::vector<Answer> answers(prompts.size());
  Engine engine(setup.tokenizer(), setup.lanes(), options, setup.make_drafter());
  const Timer timer;
  run_all(engine, prompts, setup.tokenizer(), a, answers);
  const double seconds = timer.seconds();
  const EngineStats stats = engine.stats();
  if (!a.routes.empty()) write_routes(a.routes, answers, setup.lanes().shape().moe.top_k);
  if (a.json) {
    nlohmann::json out = {{"answers", nlohmann::json::array()},
                          {"stats", to_json(stats, seconds)},
                          {"memory", memory_json(setup.memory(), job.context())}};
    for (size_t i = 0; i < prompts.size(); ++i) {
      out["answers"].push_back(to_json(prompts[i], answers[i], a));
    }
    const auto replace = nlohmann::json::error_handler_t::replace;
    std::printf("%s\n", out.dump(2, ' ', false, replace).c_str());
  } else if (prompts.size() > 1) {
    for (size_t i = 0; i < prompts.size(); ++i) {
      std::printf("--- %zu: %s\n%s\n", i + 1, prompts[i].c_str(), answers[i].text.c_str());
    }
  }
  log_info("{} tokens in {:.2f} s: {:.1f} tokens/s over {} passes", stats.completion_tokens,
           seconds, static_cast<double>(stats.completion_tokens) / seconds, stats.passes);
  for (const Answer& answer : answers) {
    if (*answer.finish == FinishReason::kFailed) throw NumericError("{}", answer.error);
  }
  return ExitCode::kDone;
}

}  // namespace

Action attach_generate(CommandLine& line) {
  auto a = std::make_shared<GenerateArguments>();
  line.option("checkpoint", a->checkpoint, "a checkpoint, or the folder of a run").required();
  line.option("--prompt", a->prompt, "text to go on from; may be repeated");
  line.option("--prompts", a->prompts_file, "file with one prompt per line");
  line.option("--max-tokens", a->max_tokens, "most tokens of an answer");
  add_sampling_options(line, a->sampling);
  line.option("--seed", a->seed, "of the sampling noise; the same seed gives the same text");
  line.option("--stop", a->stop, "the text ends before this string; may be repeated");
  line.option("--logprobs", a->sampling.logprobs,
              "with --json: log-probabilities, and those of so many alternatives");
  line.flag("--ignore-eos", a->ignore_eos, "go on after the end-of-sequence token");
  line.flag("--echo", a->echo, "the prompt is part of the answer");
  line.option("--routes", a->routes,
              "write the experts of every token to this file (JSON lines); implies --echo");
  line.flag("--json", a->json, "print answers and statistics as one JSON object");
  add_serving_options(line, a->serving);
  return [a] { return generate(*a); };
}

}  // namespace degu
