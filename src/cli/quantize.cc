// `degu quantize`: a trained checkpoint as codes and scales, with an audit of what each tensor
// takes.
#include "compress/quantize.h"

#include <cstdio>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>

#include "cli/command.h"
#include "cli/loaded_model.h"
#include "compress/method.h"

namespace degu {
namespace {

struct Options {
  std::string checkpoint;
  std::string scheme;
  std::string method = "rtn";
  std::vector<std::string> keep;
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

nlohmann::ordered_json audit_json(const Audit& audit, const Options& options) {
  nlohmann::ordered_json out;
  out["checkpoint"] = options.out;
  out["scheme"] = options.scheme;
  out["method"] = options.method;
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
  return out;
}

ExitCode quantize(const Options& options) {
  Job job(options.threads);
  QuantizeOptions quantize;
  quantize.method = options.method;
  for (const std::string& text : options.keep) {
    quantize.policy.keep.push_back(KeepRule::parse(text));
  }
  quantize.policy.scheme = *scheme_named(options.scheme);
  const std::string folder = checkpoint_folder(options.checkpoint);
  if (std::filesystem::weakly_canonical(folder) == std::filesystem::weakly_canonical(options.out)) {
    throw ConfigError("--out {} is the checkpoint itself; name another folder", options.out);
  }
  CheckpointReader reader(folder);
  quantize_checkpoint(job.context(), reader, options.out, quantize);
  const Audit audit = audit_checkpoint(CheckpointReader(options.out), quantize.policy);
  if (options.json) {
    fmt::print("{}\n", audit_json(audit, options).dump(2));
  } else {
    print_audit(audit);
  }
  return ExitCode::kDone;
}

std::string method_help() {
  std::string text = "how codes are chosen";
  for (const QuantizationMethod& method : quantization_methods()) {
    text += fmt::format("; {}: {}", method.name, method.summary);
  }
  return text;
}

}  // namespace

Action attach_quantize(CLI::App& app) {
  auto options = std::make_shared<Options>();
  std::vector<std::string> schemes;
  for (const SchemeInfo& info : kSchemes) {
    if (info.scheme != Scheme::kFp32) schemes.emplace_back(info.name);
  }
  std::vector<std::string> methods;
  for (const QuantizationMethod& method : quantization_methods()) methods.emplace_back(method.name);
  app.add_option("checkpoint", options->checkpoint, "a checkpoint, or the folder of a run")
      ->required();
  app.add_option("--scheme", options->scheme,
                 "how weights are held and what they are multiplied with")
      ->required()
      ->check(CLI::IsMember(schemes));
  app.add_option("--method", options->method, method_help())->check(CLI::IsMember(methods));
  app.add_option(
      "--keep", options->keep,
      "PATTERN or PATTERN=SCHEME: hold tensors whose name the regular expression matches "
      "in bf16, or in that scheme; may be repeated");
  app.add_option("--out", options->out, "folder of the new checkpoint")->required();
  app.add_option("--threads", options->threads, "threads; 0: the cores this process may run on");
  app.add_flag("--json", options->json, "print the audit as one JSON object");
  return [options] { return quantize(*options); };
}

}  // namespace degu
