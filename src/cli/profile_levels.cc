#include "cli/profile_levels.h"

#include <algorithm>
#include <filesystem>
#include <memory>

#include "base/log.h"
#include "compress/method.h"
#include "compress/quantize.h"
#include "io/atomic_file.h"
#include "io/sha256.h"

namespace degu {
namespace {

constexpr std::string_view kSpeculative = "speculative";
constexpr std::string_view kSuffix = "+speculative";

std::string scheme_of_level(const std::string& level) {
  if (level == "int8") return "w8a8";
  if (level == "int4") return "w4a8";
  if (scheme_named(level)) return level;
  throw ConfigError(
      "--levels {}: no such level; bf16, int8, int4, fp8, speculative, a scheme's name, or one of "
      "these with +speculative",
      level);
}

// The quantized copy stands under `folder`, made from this very checkpoint in this way.
void ensure_quantized(Job& job, LoadedModel& model, Scheme scheme, const std::string& method,
                      const TokenDataset* calibration, const std::string& folder) {
  const std::string source = sha256_of_file(model.folder + "/manifest.json") + " " +
                             std::string(scheme_info(scheme).name) + " " + method + "\n";
  const std::string note = folder + ".from";
  if (std::filesystem::exists(note) && std::filesystem::exists(folder + "/manifest.json") &&
      read_file(note) == source) {
    log_info("{}: is there", folder);
    return;
  }
  std::filesystem::remove(note);
  std::filesystem::create_directories(std::filesystem::path(folder).parent_path());
  QuantizeOptions options;
  options.policy.scheme = scheme;
  options.method = method;
  std::unique_ptr<TokenDataset> own;
  if (quantization_method(method).calibrated) {
    options.calibration.data = model.config.data;
    if (calibration == nullptr) {
      try {
        own = std::make_unique<TokenDataset>(model.config.data.paths);
      } catch (const IoError& error) {
        throw IoError(
            "{}: {} needs text to calibrate on: {}; name shards with --data, or take "
            "--method rtn",
            model.folder, method, error.what());
      }
    }
    options.calibration.dataset = own ? own.get() : calibration;
    if (!own) options.calibration.data.mixture.clear();
  }
  quantize_checkpoint(job.context(), job.world(), model.reader, folder, options);
  audit_checkpoint(CheckpointReader(folder), options.policy);  // all that was meant to be is
  write_file_atomic(note, source);
}

}  // namespace

std::vector<LevelRequest> parse_levels(const std::vector<std::string>& names) {
  std::vector<LevelRequest> out;
  std::vector<std::string> plain;
  for (const std::string& name : names) {
    if (!name.ends_with(kSuffix) && name != kSpeculative) plain.push_back(name);
  }
  for (std::string name : names) {
    if (name == kSpeculative) {
      const bool int8 = std::find(plain.begin(), plain.end(), "int8") != plain.end();
      name = int8 ? "int8" : plain.empty() ? "bf16" : plain.front();
      name += kSuffix;
    }
    LevelRequest request{.level = name, .scheme = {}, .speculative = name.ends_with(kSuffix)};
    if (request.speculative) name.resize(name.size() - kSuffix.size());
    request.scheme = scheme_of_level(name);
    const bool twice = std::any_of(out.begin(), out.end(), [&](const LevelRequest& r) {
      return r.scheme == request.scheme && r.speculative == request.speculative;
    });
    if (twice) throw ConfigError("--levels names {} twice", request.level);
    out.push_back(std::move(request));
  }
  if (out.empty()) throw ConfigError("--levels is empty; name one, e.g. bf16,int8");
  return out;
}

std::vector<ProfileLevel> prepare_levels(Job& job, LoadedModel& model,
                                         const std::vector<LevelRequest>& requests,
                                         const LevelOptions& options) {
  std::vector<ProfileLevel> levels;
  const auto add = [&](ProfileLevel level) {
    level.shares_quality =
        level.speculative && std::any_of(levels.begin(), levels.end(), [&](const ProfileLevel& l) {
          return l.folder == level.folder;
        });
    const bool there = std::any_of(levels.begin(), levels.end(), [&](const ProfileLevel& l) {
      return l.folder == level.folder && l.speculative == level.speculative;
    });
    if (!there) levels.push_back(std::move(level));
  };
  const std::optional<QuantizationInfo> held = quantization_of(model.reader);
  const Scheme own = training_scheme(activation_type(model.config.train.precision));
  if (held) {
    log_info("{}: holds {} codes already; it is profiled as it is", model.folder,
             scheme_info(held->scheme).name);
  }
  for (const LevelRequest& request : requests) {
    const Scheme scheme = *scheme_named(request.scheme);
    ProfileLevel level{.level = request.level,
                       .scheme = request.scheme,
                       .method = {},
                       .folder = model.folder,
                       .speculative = request.speculative};
    if (held) {
      level.scheme = scheme_info(held->scheme).name;
      level.method = held->method;
      level.level = level.scheme + (request.speculative ? std::string(kSuffix) : "");
    } else if (scheme != own) {
      if (scheme == Scheme::kFp32) {
        throw ConfigError("{}: was trained in bf16; there is no fp32 level of it", model.folder);
      }
      const std::string method =
          options.method.empty() ? std::string(default_method(scheme).name) : options.method;
      level.folder = options.out + "/" + request.scheme;
      if (scheme_info(scheme).quantized()) {
        level.method = method;
        level.folder += "-" + method;
      }
      ensure_quantized(job, model, scheme, level.method.empty() ? "rtn" : method,
                       options.calibration, level.folder);
    }
    add(std::move(level));
  }
  return levels;
}

}  // namespace degu
