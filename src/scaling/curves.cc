#include "scaling/curves.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "io/atomic_file.h"

namespace degu::scaling {
namespace {

constexpr double kHalfWidth = .4;  // in ln tokens
constexpr double kPointsPerDecade = 20;
constexpr size_t kFirstLine = 10;

struct Curve {
  std::vector<double> log_tokens, log_loss;
};

Curve read_curve(const std::string& path, CurveKind kind) {
  const std::string text = read_file(path);
  Curve curve;
  int line_number = 0;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = std::min(text.find('\n', begin), text.size());
    const std::string_view line(text.data() + begin, end - begin);
    begin = end + 1;
    ++line_number;
    try {
      const nlohmann::json entry = nlohmann::json::parse(line);
      const bool validation = entry.contains("validation");
      if (validation != (kind == CurveKind::kValidation)) continue;
      const double loss = validation ? entry.at("validation").at("loss").get<double>()
                          : entry.at("loss").is_number() ? entry.at("loss").get<double>()
                                                         : NAN;  // a skipped step
      const double tokens = entry.at("tokens").get<double>();
      if (!(loss > 0) || !std::isfinite(loss) || !(tokens > 0)) continue;
      curve.log_tokens.push_back(std::log(tokens));
      curve.log_loss.push_back(std::log(loss));
    } catch (const nlohmann::json::exception& error) {
      throw DataError("{}:{}: {}", path, line_number, error.what());
    }
  }
  return curve;
}

// The line's value at x, or NaN where the points do not determine it.
double local_line(const Curve& curve, double x) {
  double w_sum = 0, wx = 0, wy = 0, wxx = 0, wxy = 0;
  for (size_t i = 0; i < curve.log_tokens.size(); ++i) {
    const double t = curve.log_tokens[i] - x, u = std::abs(t) / kHalfWidth;
    if (u >= 1) continue;
    const double w = std::pow(1 - u * u * u, 3);
    w_sum += w;
    wx += w * t;
    wy += w * curve.log_loss[i];
    wxx += w * t * t;
    wxy += w * t * curve.log_loss[i];
  }
  const double determinant = w_sum * wxx - wx * wx;
  if (!(determinant > 1e-12 * w_sum * w_sum)) return NAN;
  return (wxx * wy - wx * wxy) / determinant;
}

Curve smooth(const Curve& raw) {
  Curve out;
  if (raw.log_tokens.size() <= kFirstLine) return out;
  const double first = raw.log_tokens[kFirstLine - 1], last = raw.log_tokens.back();
  for (int k = 0;; ++k) {
    const double x = last - k * M_LN10 / kPointsPerDecade;
    if (x < first) break;
    const double y = local_line(raw, x);
    if (!std::isfinite(y)) continue;
    out.log_tokens.push_back(x);
    out.log_loss.push_back(y);
  }
  return out;
}

}  // namespace

RunTable read_curves(const std::string& folder, CurveKind kind) {
  if (!std::filesystem::is_directory(folder)) {
    throw IoError("{}: curves are read from a sweep's folder; this is none", folder);
  }
  std::vector<RunRecord> points;
  for (const RunRecord& run : read_runs(folder)) {
    if (run.status != "done") continue;
    const std::string path = folder + "/runs/" + run.run + "/metrics.jsonl";
    Curve curve = read_curve(path, kind);
    if (kind == CurveKind::kTraining) curve = smooth(curve);
    if (kind == CurveKind::kValidation && curve.log_tokens.size() < 2) {
      throw DataError(
          "{}: {} validations; train with --set train.evaluate_every=n, or fit the "
          "training curves",
          path, curve.log_tokens.size());
    }
    for (size_t i = 0; i < curve.log_tokens.size(); ++i) {
      RunRecord point = run;
      const double tokens = std::exp(curve.log_tokens[i]);
      point.tokens = std::llround(tokens);
      point.flops = run.flops * tokens / static_cast<double>(run.tokens);
      point.val_loss = std::exp(curve.log_loss[i]);
      point.annealed = run.annealed != 0 && point.tokens >= run.tokens ? 1 : 0;
      points.push_back(std::move(point));
    }
  }
  if (points.empty()) throw DataError("{}: no finished run with a curve", folder);
  return RunTable::of(folder + "/runs/*/metrics.jsonl", points);
}

}  // namespace degu::scaling
