#include "cli/serving_setup.h"

#include <algorithm>
#include <fstream>
#include <nlohmann/json.hpp>

#include "base/log.h"
#include "comm/agree.h"
#include "data/utf8.h"
#include "infer/memory_plan.h"
#include "tensor/device.h"

namespace degu {
namespace {

constexpr double kGib = 1024.0 * 1024.0 * 1024.0;

// Memory that the kernel would give without swapping.
size_t available_bytes() {
  std::ifstream file("/proc/meminfo");
  std::string name;
  size_t kib = 0;
  std::string unit;
  while (file >> name >> kib >> unit) {
    if (name == "MemAvailable:") return kib * 1024;
  }
  throw IoError("/proc/meminfo does not say what memory is available; give --memory in GiB");
}

// Bytes of this process's own data where the model lies, and all that it has there.
size_t data_bytes(const Context& context) {
  return context.device() == DeviceType::kCpu ? anonymous_bytes() : device_memory_used();
}
size_t bytes_now(const Context& context) {
  return context.device() == DeviceType::kCpu ? resident_bytes() : device_memory_used();
}

}  // namespace

void add_sampling_options(CommandLine& line, SamplingParams& sampling) {
  line.option("--temperature", sampling.temperature, "0: always the most likely token");
  line.option("--top-k", sampling.top_k, "draw from the k most likely; 0: all");
  line.option("--top-p", sampling.top_p, "draw from the most likely that hold this mass");
  line.option("--min-p", sampling.min_p,
              "draw from tokens at least this likely, relative to the most likely");
  line.option("--repetition-penalty", sampling.repetition_penalty,
              "divides the positive logits of tokens seen before");
  line.option("--frequency-penalty", sampling.frequency_penalty,
              "taken off a token's logit for each time it was drawn");
  line.option("--presence-penalty", sampling.presence_penalty,
              "taken off the logits of tokens that were drawn");
}

void add_serving_options(CommandLine& line, ServingArguments& a) {
  line.option("--threads", a.threads, "threads per rank; 0: the node's cores over its ranks");
  add_device_option(line, a.device);
  line.option("--context", a.context,
              "most tokens of prompt and answer; 0: the sequence length of training");
  line.option("--kv-tokens", a.kv_tokens,
              "tokens that a rank's cache holds; 0: what --memory leaves");
  line.option(
      "--memory", a.memory_gib,
      "GiB for a rank's weights, workspace and cache; 0: half of what is available, on a GPU "
      "nine tenths");
  line.option("--kv", a.kv_type, "type of cached keys and values: auto (as activations) or int8")
      .among({"auto", "int8"});
  line.option("--pass-tokens", a.pass_tokens, "most new tokens of a rank in one pass").positive();
  line.option("--max-running", a.max_running, "most sequences of a rank in one batch").positive();
  line.flag("--prefix-cache,!--no-prefix-cache", a.prefix_cache,
            "keep pages for prompts that begin alike");
  line.flag("--graphs,!--no-graphs", a.graphs,
            "capture decode passes as CUDA graphs, on a GPU that has all experts");
  line.flag("--bos,!--no-bos", a.bos, "begin prompts with the tokenizer's BOS");
  line.option("--speculate", a.speculate, "draft tokens: off, ngram or draft (with --draft)")
      .among({"off", "ngram", "draft"});
  line.option("--draft", a.draft, "checkpoint of a smaller model with the same tokenizer");
  line.option("--depth", a.depth, "most drafts per sequence and pass").within(0, kMaxDraftDepth);
  line.flag("--fixed-depth", a.fixed_depth, "always --depth, instead of what estimates advise");
  add_placement_options(line, a.placement);
}

std::vector<int32_t> encode_prompt(const Tokenizer& tokenizer, const std::string& text, bool bos) {
  if (const size_t at = find_bad_utf8(text); at != std::string::npos) {
    throw DataError("the prompt is not UTF-8 text (byte {})", at);
  }
  std::vector<int32_t> tokens;
  if (bos && tokenizer.bos_id() >= 0) tokens.push_back(tokenizer.bos_id());
  const std::vector<int32_t> ids = tokenizer.encode(text);
  tokens.insert(tokens.end(), ids.begin(), ids.end());
  return tokens;
}

nlohmann::ordered_json memory_json(const MemoryPlan& plan, Context& context) {
  return {{"weights", plan.weights},
          {"weights_measured", plan.loaded},
          {"cache", static_cast<size_t>(plan.pages) * plan.page},
          {"cache_per_token", static_cast<double>(plan.page) / kKvPageKeys},
          {"workspace", plan.workspace},
          {"scratch", plan.scratch},
          {"draft", plan.draft},
          {"predicted", plan.total()},
          {"scratch_peak", context.scratch().peak()},
          {"resident", bytes_now(context)}};
}

struct ServingSetup::Draft {
  LoadedModel model;
  std::unique_ptr<ParameterSet> parameters;
  std::unique_ptr<Transformer> transformer;
  std::unique_ptr<ModelRunner> runner;
  std::unique_ptr<LocalLane> lane;

  explicit Draft(const std::string& path) : model(path) {}
};

ServingSetup::~ServingSetup() = default;

ServingSetup::ServingSetup(Job& job, const std::string& checkpoint,
                           const ServingArguments& arguments)
    : job_(job), arguments_(arguments), model_(checkpoint) {
  if (arguments_.speculate == "draft" && arguments_.draft.empty()) {
    throw ConfigError("--speculate draft needs a draft model; give --draft CKPT");
  }
  if (arguments_.speculate == "off" && !arguments_.draft.empty()) arguments_.speculate = "draft";
  require_servable(model_.config.model);
  const int ranks = job.world().size();
  if (ranks > 1 && model_.config.model.moe.experts == 0) {
    throw ConfigError("a dense model has no experts to spread over {} ranks; run it on one", ranks);
  }
  const size_t before = data_bytes(job.context());
  model_.load(job, ranks, arguments_.placement);
  const size_t after = data_bytes(job.context());
  memory_.loaded = after > before ? after - before : 0;
  kv_type_ = arguments_.kv_type == "int8" ? DType::kI8 : model_.parameters->activation();
  context_ = arguments_.context > 0 ? arguments_.context : model_.config.data.sequence_length;
  if (context_ > model_.config.data.sequence_length) {
    log_warn("the context of {} tokens is longer than the {} the model was trained on", context_,
             model_.config.data.sequence_length);
  }
  limits_ = {.rows = arguments_.pass_tokens, .logit_rows = arguments_.pass_tokens};
  if (arguments_.speculate == "draft" && leads()) load_draft();
  plan_memory();
  runner_ = std::make_unique<ModelRunner>(job.context(), *model_.parameters, *model_.model, limits_,
                                          kv_type_, memory_.pages, arguments_.graphs);
  if (!leads()) return;
  if (ranks > 1) {
    lanes_ = std::make_unique<GroupLanes>(model_.mesh->ep(), job.context(), *runner_);
  } else {
    lanes_ = std::make_unique<LocalLane>(job.context(), *runner_);
  }
}

void ServingSetup::plan_memory() {
  memory_.weights = model_.parameters->bytes();
  memory_.workspace = ModelRunner::workspace_bytes(*model_.parameters, *model_.model, limits_);
  if (leads() && job_.world().size() > 1) {
    memory_.workspace +=
        GroupLanes::gather_bytes(model_.config.model, limits_, job_.world().size());
  }
  const bool on_host = job_.context().device() == DeviceType::kCpu;
  memory_.scratch = on_host ? scratch_bytes(job_.context().threads(), *model_.parameters, limits_,
                                            job_.world().size())
                            : job_.context().scratch().capacity();
  memory_.page = KvMemory::bytes_per_page(job_.context(), model_.config.model, kv_type_);
  int64_t pages = kv_pages_for(arguments_.kv_tokens);
  if (arguments_.kv_tokens == 0) {
    // More than this many contexts at once nobody can use.
    const int64_t most = (arguments_.max_running + 8) * (kv_pages_for(context_) + 1);
    pages = std::min(pages_in_memory(), most);
  }
  pages = min_over_ranks(job_.world(), pages);
  memory_.pages = static_cast<int32_t>(pages);
  if (pages < kv_pages_for(context_)) {
    throw ConfigError(
        "the cache has {} pages of {} tokens, too few for one context of {}; raise --memory or "
        "--kv-tokens, or lower --context",
        pages, kKvPageKeys, context_);
  }
  log_memory();
}

int64_t ServingSetup::pages_in_memory() const {
  double left = 0;
  if (arguments_.memory_gib > 0) {
    left = arguments_.memory_gib * kGib - static_cast<double>(memory_.total());
  } else if (job_.context().device() == DeviceType::kCpu) {
    // The weights, which are in memory already, count twice: on the safe side.
    left = 0.5 * static_cast<double>(available_bytes()) / job_.world().size() -
           static_cast<double>(memory_.total());
  } else {  // weights, scratch and draft model are on the GPU already
    left = 0.9 * static_cast<double>(device_memory_free(job_.context().device())) -
           static_cast<double>(memory_.workspace);
  }
  return std::max<int64_t>(0, static_cast<int64_t>(left / static_cast<double>(memory_.page)));
}

// A line per rank, what was predicted beside what is measured; written by rank 0.
void ServingSetup::log_memory() {
  const auto mib = [](size_t bytes) { return static_cast<double>(bytes) / (1024.0 * 1024.0); };
  const std::string line = fmt::format(
      "weights {:.1f} MiB ({:.1f} measured), workspace up to {:.1f}, scratch up to {:.1f}, cache "
      "{} tokens in {:.1f}, draft {:.1f}; {:.1f} in all, {:.1f} in memory now",
      mib(memory_.weights), mib(memory_.loaded), mib(memory_.workspace), mib(memory_.scratch),
      memory_.pages * kKvPageKeys, mib(static_cast<size_t>(memory_.pages) * memory_.page),
      mib(memory_.draft), mib(memory_.total()), mib(bytes_now(job_.context())));
  const std::vector<std::string> lines = job_.world().gather_text(line);
  for (size_t r = 0; r < lines.size(); ++r) {
    log_info("memory{}: {}", lines.size() > 1 ? fmt::format(" of rank {}", r) : "", lines[r]);
  }
}

void ServingSetup::load_draft() {
  draft_ = std::make_unique<Draft>(arguments_.draft);
  Draft& d = *draft_;
  if (d.model.tokenizer.sha256() != model_.tokenizer.sha256()) {
    throw ConfigError("{}: the draft model has another tokenizer than {}", d.model.folder,
                      model_.folder);
  }
  d.parameters = d.model.load_whole(job_.context());
  d.transformer = std::make_unique<Transformer>(*d.parameters);
  const auto pages = static_cast<int32_t>((arguments_.max_running) * (kv_pages_for(context_) + 1));
  const PassLimits limits{.rows = limits_.rows, .logit_rows = arguments_.max_running};
  d.runner = std::make_unique<ModelRunner>(job_.context(), *d.parameters, *d.transformer, limits,
                                           d.parameters->activation(), pages, arguments_.graphs);
  d.lane = std::make_unique<LocalLane>(job_.context(), *d.runner);
  memory_.draft = d.parameters->bytes() +
                  ModelRunner::workspace_bytes(*d.parameters, *d.transformer, limits) +
                  d.runner->memory().bytes();
}

EngineOptions ServingSetup::engine_options() const {
  return {.context = context_,
          .max_running = arguments_.max_running,
          .prefix_cache = arguments_.prefix_cache,
          .speculation = {.depth = arguments_.speculate == "off" ? 0 : arguments_.depth,
                          .adaptive = !arguments_.fixed_depth}};
}

std::unique_ptr<Drafter> ServingSetup::make_drafter() {
  if (arguments_.speculate == "off") return nullptr;
  if (arguments_.speculate == "ngram") return std::make_unique<NgramDrafter>();
  return std::make_unique<ModelDrafter>(*draft_->lane, lanes_->shape().vocab);
}

void ServingSetup::follow() {
  GroupLanes::follow(model_.mesh->ep(), job_.context(), *runner_);
}

}  // namespace degu
