#include "train/metrics.h"

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "io/atomic_file.h"

namespace degu {
namespace {

// The lines of `text` that belong to steps before `resume_step`; a torn last line goes too.
std::string earlier_lines(const std::string& text, int64_t resume_step) {
  std::string kept;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = text.find('\n', begin);
    if (end == std::string::npos) break;
    const std::string line = text.substr(begin, end + 1 - begin);
    const nlohmann::json parsed = nlohmann::json::parse(line, nullptr, /*allow_exceptions=*/false);
    const bool keep = parsed.is_object() && parsed.contains("step") && parsed["step"].is_number() &&
                      parsed["step"].get<int64_t>() < resume_step;
    if (keep) kept += line;
    begin = end + 1;
  }
  return kept;
}

}  // namespace

MetricsLog::MetricsLog(const std::string& path, int64_t resume_step) : path_(path) {
  std::string kept;
  if (resume_step > 0 && std::filesystem::exists(path)) {
    kept = earlier_lines(read_file(path), resume_step);
  }
  write_file_atomic(path, kept);
  file_.reset(std::fopen(path.c_str(), "a"));
  if (!file_) throw IoError("{}: cannot be opened for writing: {}", path, std::strerror(errno));
}

void MetricsLog::write(const nlohmann::json& line) {
  const std::string text = line.dump() + "\n";
  if (std::fwrite(text.data(), 1, text.size(), file_.get()) != text.size() ||
      std::fflush(file_.get()) != 0) {
    throw IoError("{}: cannot be written: {}", path_, std::strerror(errno));
  }
}

nlohmann::json to_json(const StepResult& r) {
  nlohmann::json layers = nlohmann::json::array();
  for (const LayerHealth& h : r.layers) {
    layers.push_back({{"load_max_over_mean", h.load_max_over_mean},
                      {"load_entropy", h.load_entropy},
                      {"dead_experts", h.dead_experts},
                      {"dropped", h.dropped},
                      {"extra_rounds", h.extra_rounds},
                      {"load", h.load_E}});
  }
  nlohmann::json line = {{"step", r.step},
                         {"loss", r.loss},
                         {"aux_loss", r.aux_loss},
                         {"z_loss", r.z_loss},
                         {"gradient_norm", r.gradient_norm},
                         {"learning_rate", r.learning_rate},
                         {"skipped", r.skipped}};
  if (!layers.empty()) line["layers"] = layers;
  return line;
}

nlohmann::json to_json(const ValidationResult& r) {
  nlohmann::json domains = nlohmann::json::object();
  for (const DomainLoss& d : r.domains) {
    domains[d.name] = {{"loss", d.loss}, {"bits_per_byte", d.bits_per_byte}, {"tokens", d.tokens}};
  }
  return {{"loss", r.loss}, {"bits_per_byte", r.bits_per_byte}, {"domains", domains}};
}

}  // namespace degu
