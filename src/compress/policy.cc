#include "compress/policy.h"

#include <algorithm>

namespace degu {
namespace {

std::regex compile(const std::string& pattern) {
  try {
    return std::regex(pattern, std::regex::ECMAScript | std::regex::optimize);
  } catch (const std::regex_error& error) {
    throw ConfigError("--keep '{}' is not a regular expression: {}", pattern, error.what());
  }
}

}  // namespace

KeepRule KeepRule::parse(const std::string& text) {
  KeepRule rule{.pattern = text};
  if (const size_t equals = text.rfind('='); equals != std::string::npos) {
    rule.pattern = text.substr(0, equals);
    const std::string name = text.substr(equals + 1);
    const std::optional<Scheme> scheme = scheme_named(name);
    if (!scheme || *scheme == Scheme::kFp32) {
      throw ConfigError("--keep '{}': '{}' is no scheme a tensor can be kept in", text, name);
    }
    rule.scheme = *scheme;
  }
  (void)compile(rule.pattern);
  return rule;
}

Scheme table_scheme(Scheme scheme) {
  if (scheme_info(scheme).codes != Codes::kInt4) return scheme;
  return scheme_info(scheme).integer_activations() ? Scheme::kW8A8 : Scheme::kW8A16;
}

std::map<std::string, Scheme> QuantizationPolicy::plan(
    const std::vector<ParameterSpec>& specs) const {
  std::vector<std::regex> patterns;
  for (const KeepRule& rule : keep) patterns.push_back(compile(rule.pattern));
  std::vector<bool> used(keep.size(), false);
  std::map<std::string, Scheme> schemes;
  for (const ParameterSpec& spec : specs) {
    if (!quantizable(spec.role)) continue;
    const bool table = spec.role == ParameterRole::kEmbedding || spec.role == ParameterRole::kHead;
    Scheme& chosen =
        schemes.emplace(spec.name, table ? table_scheme(scheme) : scheme).first->second;
    bool taken = false;
    for (size_t i = 0; i < keep.size(); ++i) {
      if (!std::regex_search(spec.name, patterns[i])) continue;
      used[i] = true;
      if (!taken) chosen = keep[i].scheme;
      taken = true;
    }
  }
  for (size_t i = 0; i < keep.size(); ++i) {
    if (!used[i]) {
      throw ConfigError(
          "--keep '{}' matches no tensor that would be quantized; `degu quantize` lists their "
          "names",
          keep[i].pattern);
    }
  }
  return schemes;
}

}  // namespace degu
