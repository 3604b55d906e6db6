// `degu profile`: what serving a model costs, how fast and how good it is, in several ways side by
// side.
#include <malloc.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>

#include "base/log.h"
#include "base/random.h"
#include "base/timer.h"
#include "cli/command.h"
#include "cli/kernel_bench.h"
#include "cli/profile_levels.h"
#include "cli/profile_report.h"
#include "infer/memory_plan.h"
#include "io/atomic_file.h"
#include "shape/accounting.h"

namespace degu {
namespace {

namespace fs = std::filesystem;

struct ProfileArguments {
  std::vector<std::string> checkpoints;
  std::vector<std::string> levels = {"bf16", "int8", "int4", "speculative"};
  std::string method;
  std::vector<int64_t> batches = {1, 4, 16};
  int64_t prompt_tokens = 0;
  int64_t max_tokens = 0;
  double temperature = 1;
  int repetitions = 3;
  double price_per_hour = 0;
  std::vector<std::string> data;
  int64_t validation_tokens = -1;
  bool quality = true;
  std::string hardware;
  std::string draft;
  std::string kv = "auto";
  int64_t pass_tokens = 256;
  int threads = 0;
  std::string priority = "cost";
  double slack = 0.01;
  std::string out;
  bool json = false;
};

// A folder that is gone at the end, for levels that nobody wants to keep.
class WorkFolder {
 public:
  explicit WorkFolder(const std::string& kept) : path_(kept), temporary_(kept.empty()) {
    if (temporary_) {
      path_ = (fs::temp_directory_path() / fmt::format("degu-profile-{}", ::getpid())).string();
    }
    std::error_code error;
    fs::create_directories(path_, error);
    if (error) throw IoError("{}: {}; name another folder with --out", path_, error.message());
  }
  ~WorkFolder() {
    std::error_code ignored;
    if (temporary_) fs::remove_all(path_, ignored);
  }
  WorkFolder(const WorkFolder&) = delete;
  WorkFolder& operator=(const WorkFolder&) = delete;
  const std::string& path() const { return path_; }

 private:
  std::string path_;
  bool temporary_;
};

// The held-out text that all models are measured on, and the prompts.
struct ProfileText {
  std::unique_ptr<TokenDataset> dataset;
  DataConfig config;
  std::unique_ptr<ValidationSet> windows;
  std::vector<std::vector<int32_t>> prompts;
  std::string prompts_from;
};

void random_prompts(ProfileText& text, int64_t count, int64_t length, int64_t vocab) {
  const RandomStream stream(0, "profile prompts");
  for (int64_t i = 0; i < count; ++i) {
    std::vector<int32_t>& prompt = text.prompts.emplace_back();
    for (int64_t t = 0; t < length; ++t) {
      const auto index = static_cast<uint64_t>(i * length + t);
      prompt.push_back(static_cast<int32_t>(stream.below(index, static_cast<uint64_t>(vocab))));
    }
  }
  text.prompts_from = "random tokens";
}

void held_out_prompts(ProfileText& text, int64_t count, int64_t length) {
  DataConfig config = text.config;
  config.sequence_length = length;
  const ValidationSet set(*text.dataset, config);
  SequenceBatch batch;
  for (int64_t i = 0; i < count; ++i) {
    set.read(i % set.sequences(), 1, batch);
    text.prompts.push_back(batch.tokens_T);
  }
  text.prompts_from = set.sequences() >= count
                          ? "held-out text"
                          : fmt::format("held-out text, {} windows in turn", set.sequences());
}

// Sizes that the command line left open, from the shortest context among the models.
void settle_sizes(ProfileArguments& a, const std::vector<LoadedModel>& models) {
  int64_t context = models.front().config.data.sequence_length;
  for (const LoadedModel& m : models) context = std::min(context, m.config.data.sequence_length);
  if (a.prompt_tokens == 0) a.prompt_tokens = std::max<int64_t>(1, context / 2);
  if (a.max_tokens == 0) {
    a.max_tokens = std::max<int64_t>(2, std::min<int64_t>(128, context - a.prompt_tokens));
  }
  std::sort(a.batches.begin(), a.batches.end());
  a.batches.erase(std::unique(a.batches.begin(), a.batches.end()), a.batches.end());
}

ProfileText read_text(const ProfileArguments& a, const std::vector<LoadedModel>& models) {
  ProfileText text;
  const int64_t most = a.batches.back();
  if (!a.quality && a.data.empty()) {
    int64_t vocab = models.front().config.model.vocab;
    for (const LoadedModel& m : models) vocab = std::min<int64_t>(vocab, m.config.model.vocab);
    random_prompts(text, most, a.prompt_tokens, vocab);
    return text;
  }
  text.config = models.front().config.data;
  if (!a.data.empty()) {
    text.config.paths = a.data;
    text.config.mixture.clear();
  }
  if (a.validation_tokens >= 0) text.config.validation_tokens = a.validation_tokens;
  for (const LoadedModel& m : models) {
    text.config.sequence_length =
        std::min(text.config.sequence_length, m.config.data.sequence_length);
  }
  text.dataset = std::make_unique<TokenDataset>(text.config.paths);
  for (const LoadedModel& m : models) {
    if (m.tokenizer.sha256() != text.dataset->tokenizer().sha256()) {
      throw DataError(
          "{}: the held-out text was made with another tokenizer than the model's; profile models "
          "of different tokenizers one by one, each with its own --data",
          m.folder);
    }
  }
  held_out_prompts(text, most, a.prompt_tokens);
  if (a.quality) text.windows = std::make_unique<ValidationSet>(*text.dataset, text.config);
  return text;
}

// "run/checkpoints/step-…" and "run" are both called "run".
std::string label_of(const std::string& given) {
  fs::path path = fs::path(given).lexically_normal();
  if (!path.has_filename()) path = path.parent_path();
  if (path.filename().string().starts_with("step-") && path.has_parent_path()) {
    path = path.parent_path();
    if (path.filename() == "checkpoints" && path.has_parent_path()) path = path.parent_path();
  }
  return path.filename().string();
}

std::vector<std::string> labels_of(const std::vector<std::string>& given) {
  std::vector<std::string> labels;
  labels.reserve(given.size());
  for (const std::string& path : given) labels.push_back(label_of(path));
  std::vector<std::string> unique = labels;
  std::sort(unique.begin(), unique.end());
  if (std::adjacent_find(unique.begin(), unique.end()) != unique.end()) return given;
  return labels;
}

DType arithmetic_of(const ParameterSet& parameters, const std::string& scheme) {
  if (scheme_info(*scheme_named(scheme)).integer_activations()) return DType::kI8;
  return parameters.activation();
}

ServingArguments serving_of(const ProfileArguments& a, bool speculative) {
  ServingArguments s;
  s.threads = a.threads;
  s.context = a.prompt_tokens + a.max_tokens;
  s.kv_tokens = a.batches.back() * kv_pages_for(s.context) * kKvPageKeys;
  s.kv_type = a.kv;
  s.pass_tokens = std::max(a.pass_tokens, a.batches.back());
  s.max_running = static_cast<int>(a.batches.back());
  s.prefix_cache = false;
  if (speculative) s.speculate = a.draft.empty() ? "ngram" : "draft";
  if (speculative) s.draft = a.draft;
  return s;
}

DocumentLosses losses_of(Job& job, const LoadedModel& model, const ProfileText& text) {
  const StepPlan plan{
      .sequence_length = text.config.sequence_length,
      .unit_sequences = 1,
      .micro_sequences = 8,
      .balance_sequences = 1,
      .capacity_sequences = std::max(1, model.config.train.balance.capacity_group_sequences)};
  return document_losses(job.context(), {*model.parameters, *model.model}, plan, *text.windows);
}

ProfileQuality quality_of(const DocumentLosses& losses, const DocumentLosses* reference,
                          const std::string& reference_name) {
  ProfileQuality q{.tokens = losses.tokens(),
                   .documents = static_cast<int64_t>(losses.documents.size()),
                   .loss = losses.loss(),
                   .perplexity = perplexity(losses),
                   .bits_per_byte = bits_per_byte(losses)};
  if (reference != nullptr) {
    q.reference = reference_name;
    q.perplexity_change = perplexity_change(losses, *reference);
  }
  return q;
}

// Measures levels one after another; each has a process-wide context of its own, so that what one
// took is free before the next.
class Profiler {
 public:
  Profiler(const ProfileArguments& arguments, const ProfileText& text, ProfileReport& report)
      : a_(arguments), text_(text), report_(report), probe_(arguments.threads) {}

  void measure(const std::string& checkpoint, const std::string& label,
               const std::vector<ProfileLevel>& levels) {
    DocumentLosses first;
    std::string first_name;
    for (const ProfileLevel& level : levels) {
      LevelProfile profile = start(checkpoint, label, level);
      log_info("{}: measuring", profile.name);
      ::malloc_trim(0);
      const size_t before = resident_bytes();
      Job job(a_.threads);
      ServingSetup setup(job, level.folder, serving_of(a_, level.speculative));
      serve(job, setup, level, profile, before);
      if (text_.windows && level.shares_quality) {
        for (const LevelProfile& other : report_.levels) {
          if (other.folder != level.folder || other.checkpoint != checkpoint) continue;
          profile.quality = other.quality;
          profile.same_bits_as = other.name;
        }
      } else if (text_.windows) {
        const DocumentLosses losses = losses_of(job, setup.model(), text_);
        profile.quality = quality_of(losses, first_name.empty() ? nullptr : &first, first_name);
        if (first_name.empty()) {
          first = losses;
          first_name = profile.name;
        }
      }
      report_.levels.push_back(std::move(profile));
    }
  }

 private:
  LevelProfile start(const std::string& checkpoint, const std::string& label,
                     const ProfileLevel& level) const {
    LevelProfile profile;
    profile.name = label + " " + level.level;
    profile.checkpoint = checkpoint;
    profile.folder = level.folder;
    profile.level = level.level;
    profile.scheme = level.scheme;
    profile.method = level.method;
    profile.speculation = !level.speculative ? "off" : a_.draft.empty() ? "ngram" : a_.draft;
    return profile;
  }

  void serve(Job& job, ServingSetup& setup, const ProfileLevel& level, LevelProfile& profile,
             size_t before) {
    const ModelShape& shape = setup.lanes().shape();
    profile.parameters = parameter_count(shape, ParameterCount::kTotal);
    profile.active = parameter_count(shape, ParameterCount::kActive);
    profile.memory = setup.memory();
    const DType arithmetic = arithmetic_of(*setup.model().parameters, level.scheme);
    profile.peak_flops = probe_.peak_flops(arithmetic);
    const ProfileWorkload workload{.prompts = text_.prompts,
                                   .max_tokens = a_.max_tokens,
                                   .temperature = a_.temperature,
                                   .repetitions = a_.repetitions};
    for (const int64_t batch : a_.batches) {
      profile.batches.push_back(
          profile_batch(job, setup, probe_, workload, batch, profile.peak_flops));
      const BatchProfile& b = profile.batches.back();
      if (!b.steady()) {
        log_warn(
            "{}, batch {}: noisy; read bandwidth {:.1f} to {:.1f} GB/s, decode {:.0f} to {:.0f} "
            "tokens/s",
            profile.name, batch, b.probe_low / 1e9, b.probe_high / 1e9, b.decode_low,
            b.decode_high);
      }
    }
    profile.peak_flops_after = probe_.peak_flops(arithmetic);
    profile.scratch_peak = job.context().scratch().peak();
    const size_t after = resident_bytes();
    profile.resident = after > before ? after - before : 0;
  }

  const ProfileArguments& a_;
  const ProfileText& text_;
  ProfileReport& report_;
  LimitProbe probe_;
};

Priority priority_named(const std::string& name) {
  const auto names = enum_names(Priority{});
  return static_cast<Priority>(std::find(names.begin(), names.end(), name) - names.begin());
}

ProfileReport empty_report(const ProfileArguments& a, const ProfileText& text) {
  ProfileReport report;
  if (a.hardware.empty()) {
    Context context({.threads = a.threads, .scratch_bytes = size_t{1} << 30});
    report.hardware = measure_hardware(context);
    report.hardware_source = "probed";
  } else {
    report.hardware = load_hardware(a.hardware);
    report.hardware_source = a.hardware;
  }
  report.price_per_hour = a.price_per_hour;
  report.prompt_tokens = a.prompt_tokens;
  report.max_tokens = a.max_tokens;
  report.temperature = a.temperature;
  report.prompts = text.prompts_from;
  report.kv = a.kv;
  report.data = text.config.paths;
  report.sequence_length = text.windows ? text.config.sequence_length : 0;
  report.priority = priority_named(a.priority);
  report.slack = a.slack;
  return report;
}

ExitCode profile(ProfileArguments a) {
  const Timer timer;
  const std::vector<LevelRequest> requests = parse_levels(a.levels);
  std::vector<LoadedModel> models;  // opened, their weights not read
  models.reserve(a.checkpoints.size());
  for (const std::string& path : a.checkpoints) models.emplace_back(path);
  settle_sizes(a, models);
  const ProfileText text = read_text(a, models);
  ProfileReport report = empty_report(a, text);
  const WorkFolder folder(a.out);
  const std::vector<std::string> labels = labels_of(a.checkpoints);
  Profiler profiler(a, text, report);
  for (size_t i = 0; i < models.size(); ++i) {
    std::string place = labels[i];
    std::replace(place.begin(), place.end(), '/', '_');
    std::vector<ProfileLevel> levels;
    {
      Job job(a.threads);
      levels = prepare_levels(job, models[i], requests,
                              {.method = a.method,
                               .calibration = a.data.empty() ? nullptr : text.dataset.get(),
                               .out = folder.path() + "/levels/" + place});
    }
    profiler.measure(a.checkpoints[i], labels[i], levels);
  }
  report.seconds = timer.seconds();
  const std::string json = to_json(report).dump(2) + "\n";
  if (!a.out.empty()) write_file_atomic(a.out + "/profile.json", json);
  if (a.json) {
    std::fputs(json.c_str(), stdout);
  } else {
    print_report(report);
    if (!a.out.empty()) std::printf("written: %s/profile.json\n", a.out.c_str());
  }
  return ExitCode::kDone;
}

void add_workload_options(CommandLine& line, ProfileArguments& a) {
  line.option("--prompt-tokens", a.prompt_tokens,
              "tokens of every prompt; 0: half the shortest training sequence length")
      .non_negative();
  line.option("--max-tokens", a.max_tokens,
              "tokens of every answer, at least 2; 0: the rest of that length, at most 128")
      .non_negative();
  line.option("--batch", a.batches, "requests that arrive and run together")
      .comma_separated()
      .positive();
  line.option("--temperature", a.temperature, "0: greedy; 1: as the model says").non_negative();
  line.option("--repetitions", a.repetitions, "of each batch size, after one for warming up")
      .within(1, 1000);
  line.option("--kv", a.kv, "type of cached keys and values: auto (as activations) or int8")
      .among({"auto", "int8"});
  line.option("--pass-tokens", a.pass_tokens, "most new tokens in one pass").positive();
  line.option("--draft", a.draft,
              "draft model of the speculative levels; default: n-grams of the text so far");
}

}  // namespace

Action attach_profile(CommandLine& line) {
  auto a = std::make_shared<ProfileArguments>();
  line.option("checkpoints", a->checkpoints, "checkpoints, or folders of runs").required();
  line.option("--levels", a->levels,
              "bf16, int8, int4, fp8, a scheme's name, each also with +speculative; "
              "speculative alone: over int8")
      .comma_separated();
  line.option("--method", a->method, "of the quantizer, as `degu quantize --method`");
  add_workload_options(line, *a);
  line.option("--price-per-hour", a->price_per_hour, "of the machine, in any currency")
      .required()
      .non_negative();
  line.option("--data", a->data,
              "prepared data for quality and prompts; default: what the first model was "
              "trained on");
  line.option("--validation-tokens", a->validation_tokens, "tokens per domain; 0: all")
      .non_negative();
  line.flag("--quality,!--no-quality", a->quality,
            "measure perplexity; without it and --data, prompts are random tokens");
  line.option("--hardware", a->hardware,
              "HW.yaml of `degu bench kernels --out`; default: probed first");
  line.option("--threads", a->threads, "threads; 0: the cores this process may run on")
      .non_negative();
  line.option("--priority", a->priority, "what the recommendation is for")
      .among({"quality", "latency", "cost"});
  line.option("--quality-slack", a->slack,
              "for latency and cost: bits per byte may be worse than the best by this share")
      .within(0.0, 10.0);
  line.option("--out", a->out, "folder for profile.json and the quantized checkpoints");
  line.flag("--json", a->json, "print the profile as one JSON object");
  return [a] {
    if (a->max_tokens == 1) {
      throw ConfigError("--max-tokens 1: there is no time between tokens to measure; 2 or more");
    }
    return profile(*a);
  };
}

}  // namespace degu
