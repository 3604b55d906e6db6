// `degu quantize`: a trained checkpoint as codes and scales, with an audit of what each tensor
// takes.
#include "compress/quantize.h"

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>

#include "base/log.h"
#include "base/progress.h"
#include "cli/command.h"
#include "cli/loaded_model.h"
#include "compress/method.h"

namespace degu {
namespace {

struct Options {
  std::string checkpoint;
  std::string scheme;
  std::string method;
  std::vector<std::string> keep;
  std::vector<std::string> calibration;
  int64_t calibration_tokens = 131072;
  int64_t min_expert_tokens = 0;
  std::string expert_fallback = "all-tokens";
  double damping = MethodOptions{}.damping;
  bool activation_order = MethodOptions{}.activation_order;
  std::string out;
  int threads = 0;
  bool json = false;
};

std::string held(const TensorAudit& tensor) {
  return tensor.fixed ? "fp32 (always)" : std::string(scheme_info(tensor.stored).name);
}

void print_audit(const Audit& audit) {
  fmt::print("{:<36} {:<14} {:>12} {:>12} {:>7}\n", "tensor", "held as", "elements", "bytes",
             "bits");
  for (const TensorAudit& t : audit.tensors) {
    fmt::print("{:<36} {:<14} {:>12} {:>12} {:>7.3f}\n", t.name, held(t), t.elements, t.bytes,
               t.bits());
  }
  fmt::print("{:<36} {:<14} {:>12} {:>12} {:>7.3f}\n", "all", "", audit.elements(), audit.bytes(),
             audit.mean_bits());
  if (audit.mean_quantized_bits() > 0) {
    fmt::print("quantized tensors alone: {:.3f} bits per weight\n", audit.mean_quantized_bits());
  }
  fmt::print("data files: {} bytes\n", audit.file_bytes);
}

// One line per MoE layer: how evenly calibration reached its experts.
void print_coverage(const QuantizeReport& report) {
  if (report.calibration_tokens == 0) return;
  fmt::print("\ncalibrated on {} tokens ({}); tokens that reached each expert:\n",
             report.calibration_tokens, report.method);
  if (report.coverage.empty()) fmt::print("no experts\n");
  if (!report.coverage.empty()) {
    fmt::print("{:<6} {:>8} {:>10} {:>10} {:>10} {:>10} {:>10}\n", "layer", "experts", "least",
               "median", "most", "minimum", "fell back");
  }
  for (const ExpertCoverage& c : report.coverage) {
    std::vector<int64_t> tokens = c.tokens_E;
    std::sort(tokens.begin(), tokens.end());
    fmt::print("{:<6} {:>8} {:>10} {:>10} {:>10} {:>10} {:>10}\n", c.layer, tokens.size(),
               tokens.front(), tokens[tokens.size() / 2], tokens.back(), c.minimum,
               std::count(c.fell_back_E.begin(), c.fell_back_E.end(), 1));
  }
}

nlohmann::ordered_json calibration_json(const QuantizeReport& report, const Options& options) {
  nlohmann::ordered_json out;
  out["tokens"] = report.calibration_tokens;
  out["expert_fallback"] = options.expert_fallback;
  out["layers"] = nlohmann::ordered_json::array();
  for (const ExpertCoverage& c : report.coverage) {
    nlohmann::ordered_json layer = {{"layer", c.layer}, {"minimum", c.minimum}};
    for (size_t e = 0; e < c.tokens_E.size(); ++e) {
      layer["experts"].push_back({{"tokens", c.tokens_E[e]}, {"fell_back", c.fell_back_E[e] != 0}});
    }
    out["layers"].push_back(layer);
  }
  return out;
}

nlohmann::ordered_json audit_json(const Audit& audit, const QuantizeReport& report,
                                  const Options& options) {
  nlohmann::ordered_json out;
  out["checkpoint"] = options.out;
  out["scheme"] = options.scheme;
  out["method"] = report.method;
  out["elements"] = audit.elements();
  out["bytes"] = audit.bytes();
  out["file_bytes"] = audit.file_bytes;
  out["mean_bits"] = audit.mean_bits();
  out["mean_quantized_bits"] = audit.mean_quantized_bits();
  for (const TensorAudit& t : audit.tensors) {
    out["tensors"].push_back({{"name", t.name},
                              {"scheme", scheme_info(t.stored).name},
                              {"elements", t.elements},
                              {"bytes", t.bytes},
                              {"bits", t.bits()}});
  }
  if (report.calibration_tokens > 0) out["calibration"] = calibration_json(report, options);
  return out;
}

// The shards of calibration: those named, or what the model was trained on.
CalibrationOptions calibration_options(const Options& options, const CheckpointReader& reader,
                                       std::unique_ptr<TokenDataset>& dataset) {
  const RunConfig config = checkpoint_config(reader);
  CalibrationOptions calibration;
  calibration.data = config.data;
  if (!options.calibration.empty()) {
    calibration.data.paths = options.calibration;
    calibration.data.mixture.clear();
  }
  try {
    dataset = std::make_unique<TokenDataset>(calibration.data.paths);
  } catch (const IoError& error) {
    throw IoError("calibration: {}; name prepared shards with --calibration, or take --method rtn",
                  error.what());
  }
  const Tokenizer tokenizer =
      Tokenizer::from_bytes(reader.attachment("tokenizer.model"), reader.folder());
  if (dataset->tokenizer().sha256() != tokenizer.sha256()) {
    throw DataError(
        "calibration: {} was prepared with another tokenizer than the model's; prepare it with the "
        "model's",
        calibration.data.paths.front());
  }
  calibration.dataset = dataset.get();
  calibration.tokens = options.calibration_tokens;
  calibration.min_expert_tokens = options.min_expert_tokens;
  calibration.fallback_all_tokens = options.expert_fallback == "all-tokens";
  return calibration;
}

ExitCode quantize(const Options& options) {
  Job job(options.threads);
  QuantizeOptions quantize;
  for (const std::string& text : options.keep) {
    quantize.policy.keep.push_back(KeepRule::parse(text));
  }
  quantize.policy.scheme = *scheme_named(options.scheme);
  quantize.method = options.method;
  quantize.method_options = {.damping = options.damping,
                             .activation_order = options.activation_order};
  const std::string folder = checkpoint_folder(options.checkpoint);
  if (std::filesystem::weakly_canonical(folder) == std::filesystem::weakly_canonical(options.out)) {
    throw ConfigError("--out {} is the checkpoint itself; name another folder", options.out);
  }
  CheckpointReader reader(folder);
  reader.share(job.world().size() > 1);
  const QuantizationMethod& method = options.method.empty() ? default_method(quantize.policy.scheme)
                                                            : quantization_method(options.method);
  std::unique_ptr<TokenDataset> dataset;
  if (method.calibrated) quantize.calibration = calibration_options(options, reader, dataset);
  std::unique_ptr<Progress> bar;
  if (job.world().rank() == 0) {
    quantize.progress = [&](int64_t done, int64_t total, const std::string& note) {
      if (!bar) bar = std::make_unique<Progress>(fmt::format("quantize ({})", method.name), total);
      bar->set(done, note);
    };
  }
  const QuantizeReport report =
      quantize_checkpoint(job.context(), job.world(), reader, options.out, quantize);
  bar.reset();
  if (report.layers_resumed > 0) {
    log_info("{} layers were taken from an earlier start", report.layers_resumed);
  }
  if (job.world().rank() != 0) return ExitCode::kDone;
  const Audit audit = audit_checkpoint(CheckpointReader(options.out), quantize.policy);
  if (options.json) {
    fmt::print("{}\n", audit_json(audit, report, options).dump(2));
  } else {
    print_audit(audit);
    print_coverage(report);
  }
  return ExitCode::kDone;
}

std::string method_help() {
  std::string text = "how codes are chosen; default: awq for 4-bit schemes, rtn for others";
  for (const QuantizationMethod& method : quantization_methods()) {
    text += fmt::format("; {}: {}", method.name, method.summary);
  }
  return text;
}

}  // namespace

Action attach_quantize(CommandLine& line) {
  auto options = std::make_shared<Options>();
  std::vector<std::string> schemes;
  for (const SchemeInfo& info : kSchemes) {
    if (info.scheme != Scheme::kFp32) schemes.emplace_back(info.name);
  }
  std::vector<std::string> methods;
  for (const QuantizationMethod& method : quantization_methods()) methods.emplace_back(method.name);
  line.option("checkpoint", options->checkpoint, "a checkpoint, or the folder of a run").required();
  line.option("--scheme", options->scheme, "how weights are held and what they are multiplied with")
      .required()
      .among(schemes);
  line.option("--method", options->method, method_help()).among(methods);
  line.option(
      "--keep", options->keep,
      "PATTERN or PATTERN=SCHEME: hold tensors whose name the regular expression matches "
      "in bf16, or in that scheme; may be repeated. Routers and norms stay fp32; embedding and "
      "head "
      "take 8-bit codes under a 4-bit scheme unless a rule names them");
  line.option("--calibration", options->calibration,
              "prepared shards whose training split awq and gptq measure on; default: what the "
              "model was trained on");
  line.option("--calibration-tokens", options->calibration_tokens,
              "tokens to measure on, rounded up to whole sequences")
      .positive();
  line.option("--min-expert-tokens", options->min_expert_tokens,
              "an expert that fewer calibration tokens reach falls back, with a warning; 0: the "
              "widest input of an expert, below which its Hessian is singular")
      .non_negative();
  line.option("--expert-fallback", options->expert_fallback,
              "all-tokens: such an expert is fitted to all calibration tokens; rtn: it is rounded "
              "to nearest")
      .among({"all-tokens", "rtn"});
  line.option("--damping", options->damping,
              "gptq: share of the Hessian's mean diagonal that is added to its diagonal")
      .within(1e-6, 10.0);
  line.flag("--act-order,!--no-act-order", options->activation_order,
            "gptq: round the columns with the largest inputs first");
  line.option("--out", options->out,
              "folder of the new checkpoint; partial results lie in <out>.layers")
      .required();
  line.option("--threads", options->threads, "threads; 0: the cores this process may run on");
  line.flag("--json", options->json, "print the audit as one JSON object");
  return [options] { return quantize(*options); };
}

}  // namespace degu
