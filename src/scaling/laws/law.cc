#include "scaling/laws/law.h"

#include <algorithm>
#include <cmath>

namespace degu::scaling {

double Terms::log_sum() const {
  const double top = *std::max_element(z_.begin(), z_.begin() + count_);
  double sum = 0;
  for (int k = 0; k < count_; ++k) sum += std::exp(z_[k] - top);
  return top + std::log(sum);
}

bool Law::affine() const {
  const std::vector<ParamInfo> all = params();
  return std::none_of(all.begin(), all.end(), [](const ParamInfo& p) { return p.saturation; });
}

void Law::require_count(size_t count) const {
  const size_t expected = params().size();
  if (count != expected)
    throw DataError("law {}: {} values given, the law has {} parameters", name(), count, expected);
}

std::vector<double> Law::publish(std::span<const double> internal) const {
  require_count(internal.size());
  const std::vector<ParamInfo> all = params();
  std::vector<double> out(internal.begin(), internal.end());
  for (size_t i = 0; i < out.size(); ++i)
    if (all[i].log_space) out[i] = std::exp(out[i]);
  return out;
}

std::vector<double> Law::internalize(std::span<const double> published) const {
  require_count(published.size());
  const std::vector<ParamInfo> all = params();
  std::vector<double> out(published.begin(), published.end());
  for (size_t i = 0; i < out.size(); ++i) {
    if (!all[i].log_space) continue;
    // 0 stands: a forced fit may have lost a term, whose logarithm is then -infinity.
    if (!(out[i] >= 0))
      throw DataError("law {}: parameter {} is {}, it must not be negative", name(), all[i].name,
                      out[i]);
    out[i] = std::log(out[i]);
  }
  return out;
}

double Law::predict(std::span<const double> published, const LawInput& x) const {
  Terms at;
  terms(x, internalize(published), at);
  return std::exp(at.log_sum());
}

std::vector<std::string> Law::out_of_range(const LawInput& x) const {
  std::vector<std::string> out;
  const ValidityRange valid = range();
  const auto check = [&](const char* what, double value, const Interval& interval) {
    if (!interval.contains(value))
      out.push_back(fmt::format("{} {:.4g} is outside {:.4g} … {:.4g}", what, value, interval.lo,
                                interval.hi));
  };
  check("N", x.n, valid.n);
  check("D", x.d, valid.d);
  check("experts", x.experts, valid.experts);
  check("granularity", x.granularity, valid.granularity);
  return out;
}

std::vector<std::vector<double>> grid_product(const std::vector<std::vector<double>>& values) {
  std::vector<std::vector<double>> out = {{}};
  for (const std::vector<double>& choices : values) {
    std::vector<std::vector<double>> longer;
    longer.reserve(out.size() * choices.size());
    for (const std::vector<double>& prefix : out) {
      for (const double choice : choices) {
        longer.push_back(prefix);
        longer.back().push_back(choice);
      }
    }
    out = std::move(longer);
  }
  return out;
}

SaturatedExperts saturated_experts(double experts, double e_start, double e_max) {
  // u = 1/(1/E_start − 1/E_max);  1/E^ = 1/(E − 1 + u) + 1/E_max
  const double u = 1 / (1 / e_start - 1 / e_max);
  const double v = experts - 1 + u;
  const double inverse = 1 / v + 1 / e_max;
  const double du_start = u * u / (e_start * e_start);
  const double du_max = -u * u / (e_max * e_max);
  // d ln E^ = −d(inverse)/inverse,  d(inverse) = −du/v² − dE_max/E_max²
  return {-std::log(inverse), du_start / (v * v) / inverse,
          (du_max / (v * v) + 1 / (e_max * e_max)) / inverse};
}

}  // namespace degu::scaling
