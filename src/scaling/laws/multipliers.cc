#include "scaling/laws/multipliers.h"

#include <cmath>
#include <utility>

#include "scaling/laws/registry.h"

namespace degu::scaling {
namespace {

enum Param { kE, kA, kB, kAlpha, kBeta, kFirstGroup };

class Multipliers final : public Law {
 public:
  explicit Multipliers(std::vector<ExpertGroup> groups) : groups_(std::move(groups)) {
    if (groups_.empty()) throw ConfigError("law multipliers: no group of runs given");
  }
  std::string_view name() const override { return "multipliers"; }
  std::string_view summary() const override {
    return "L = E + A/(m_g N)^alpha + B/D^beta, one multiplier m_g per (E, K, granularity)";
  }
  std::string_view source() const override { return "small-sample form, docs/laws.md"; }
  ParameterCount n_definition() const override { return ParameterCount::kActive; }
  ValidityRange range() const override {
    // Nothing is published: what holds is the range of the data it was fitted to.
    return {.n = {}, .d = {}, .experts = {1, 1e9}, .granularity = {1e-9, 1e9}};
  }
  std::vector<ParamInfo> params() const override {
    std::vector<ParamInfo> out = {{"E", true}, {"A", true}, {"B", true}, {"alpha"}, {"beta"}};
    for (size_t g = 1; g < groups_.size(); ++g) out.push_back({"m " + groups_[g].label(), true});
    return out;
  }
  void terms(const LawInput& x, std::span<const double> theta, Terms& out) const override {
    out.reset(3);
    out.add(0, x.group == 0 ? static_cast<int>(kA) : kFirstGroup + x.group - 1, 1, theta);
    out.add(0, kAlpha, -std::log(x.n), theta);
    out.add(1, kB, 1, theta);
    out.add(1, kBeta, -std::log(x.d), theta);
    out.add(2, kE, 1, theta);
  }
  std::vector<double> publish(std::span<const double> internal) const override {
    std::vector<double> out = Law::publish(internal);
    for (size_t i = kFirstGroup; i < out.size(); ++i)
      out[i] = std::exp((internal[kA] - internal[i]) / internal[kAlpha]);
    return out;
  }
  std::vector<double> internalize(std::span<const double> published) const override {
    std::vector<double> out = Law::internalize(published);
    for (size_t i = kFirstGroup; i < out.size(); ++i)
      out[i] = out[kA] - out[kAlpha] * std::log(published[i]);
    return out;
  }
  // Chinchilla's grid, every group starting as the reference does.
  std::vector<std::vector<double>> starts() const override {
    std::vector<std::vector<double>> out = make_chinchilla()->starts();
    for (std::vector<double>& start : out) start.resize(params().size(), start[kA]);
    return out;
  }
  double default_delta() const override { return 1e-3; }

 private:
  std::vector<ExpertGroup> groups_;
};

}  // namespace

std::string ExpertGroup::label() const {
  if (dense()) return "dense";
  const std::string routed = fmt::format("E{:g} K{:g} G{:g}", experts, top_k, granularity);
  return shared > 0 ? fmt::format("{} S{:g}", routed, shared) : routed;
}

std::unique_ptr<Law> make_multipliers(std::vector<ExpertGroup> groups) {
  return std::make_unique<Multipliers>(std::move(groups));
}

std::unique_ptr<Law> make_multipliers() {
  return make_multipliers(std::vector<ExpertGroup>{{}});
}

}  // namespace degu::scaling
