#include "scaling/fit/fit_json.h"

#include <cmath>
#include <nlohmann/json.hpp>

namespace degu::scaling {
namespace {

using Json = nlohmann::ordered_json;

// NaN has no JSON; it is left out as null.
Json number(double value) {
  return std::isfinite(value) ? Json(value) : Json(nullptr);
}

Json interval_json(const Interval& range) {
  return Json::array({range.lo, range.hi});
}

Json summary_json(const ParamSummary& s) {
  return {{"mean", s.mean}, {"se", s.se}, {"lo", s.lo}, {"hi", s.hi}};
}

Json point_json(const OptimumPoint& p, bool intervals) {
  Json out = {{"C", p.c}, {"N", p.n}, {"D", p.d}, {"L", number(p.loss)}};
  if (!intervals) return out;
  out["N_lo"] = number(p.n_lo);
  out["N_hi"] = number(p.n_hi);
  out["D_lo"] = number(p.d_lo);
  out["D_hi"] = number(p.d_hi);
  if (std::isfinite(p.loss_lo)) {
    out["L_lo"] = p.loss_lo;
    out["L_hi"] = p.loss_hi;
  }
  return out;
}

Json optimum_json(const Optimum& optimum) {
  Json out = {{"a", optimum.a},
              {"b", optimum.b},
              {"k_N", optimum.k_n},
              {"k_D", optimum.k_d},
              {"n_definition", optimum.n_definition}};
  if (optimum.a_summary) {
    out["a_interval"] = summary_json(*optimum.a_summary);
    out["b_interval"] = summary_json(*optimum.b_summary);
  }
  Json curve = Json::array();
  for (const OptimumPoint& p : optimum.curve)
    curve.push_back(point_json(p, optimum.a_summary.has_value()));
  out["curve"] = std::move(curve);
  return out;
}

Json minimum_json(const IsoflopMinimum& m) {
  return {{"C", m.c},
          {"N", m.n},
          {"D", m.d},
          {"L", m.loss},
          {"points", m.points},
          {"sizes", Json::array({m.n_least, m.n_most})},
          {"at_edge", m.at_edge},
          {"kept", m.kept},
          {"parabola", m.coefficients}};
}

template <class T>
T get(const Json& json, const char* key, const std::string& file) {
  try {
    return json.at(key).get<T>();
  } catch (const nlohmann::json::exception& error) {
    throw DataError("{}: key \"{}\": {}; is it a file that `degu fit --out` wrote?", file, key,
                    error.what());
  }
}

Interval get_interval(const Json& json, const char* key, const std::string& file) {
  const auto pair = get<std::vector<double>>(json, key, file);
  if (pair.size() != 2) throw DataError("{}: key \"{}\" must hold two numbers", file, key);
  return {pair[0], pair[1]};
}

}  // namespace

Json fit_to_json(const FitResult& fit, bool with_draws) {
  Json out;
  out["law"] = fit.law;
  out["approach"] = fit.approach;
  out["n_definition"] = fit.n_definition;
  out["params"] = Json::object();
  for (size_t i = 0; i < fit.params.size(); ++i) out["params"][fit.param_names[i]] = fit.params[i];
  if (!fit.standard_errors.empty()) {
    out["standard_errors"] = Json::object();
    for (size_t i = 0; i < fit.standard_errors.size(); ++i)
      out["standard_errors"][fit.param_names[i]] = number(fit.standard_errors[i]);
  }
  out["objective"] = fit.objective;
  out["n_points"] = fit.n_points;
  if (fit.approach == 3) {
    out["delta"] = number(fit.delta);
    out["starts"] = {{"count", fit.starts},
                     {"arrived", fit.arrived},
                     {"share", static_cast<double>(fit.arrived) / std::max(1, fit.starts)}};
  }
  out["r2"] = number(fit.r2);
  out["rmse_log"] = fit.rmse_log;
  Json params = Json::object();
  for (size_t i = 0; i < fit.bootstrap_params.size(); ++i)
    params[fit.param_names[i]] = summary_json(fit.bootstrap_params[i]);
  if (fit.optimum && fit.optimum->a_summary && fit.approach == 3) {
    params["a"] = summary_json(*fit.optimum->a_summary);
    params["b"] = summary_json(*fit.optimum->b_summary);
  }
  out["bootstrap"] = {{"count", fit.bootstrap},
                      {"failed", fit.bootstrap_failed},
                      {"seed", fit.seed},
                      {"seconds", fit.bootstrap_seconds},
                      {"params", std::move(params)}};
  if (fit.optimum) out["optimum"] = optimum_json(*fit.optimum);
  if (fit.held_out)
    out["held_out"] = {
        {"points", fit.held_out->points},       {"from_flops", fit.held_out->from_flops},
        {"fitted_to", fit.held_out->fitted_to}, {"rmse_log", fit.held_out->rmse_log},
        {"mean_log", fit.held_out->mean_log},   {"worst_log", fit.held_out->worst_log}};
  if (!fit.minima.empty()) {
    out["minima"] = Json::array();
    for (const IsoflopMinimum& m : fit.minima) out["minima"].push_back(minimum_json(m));
  }
  if (!fit.frontier.empty()) {
    out["envelope"] = Json::array();
    for (const OptimumPoint& p : fit.frontier) out["envelope"].push_back(point_json(p, false));
  }
  out["groups"] = Json::array();
  for (const ExpertGroup& g : fit.groups)
    out["groups"].push_back({{"label", g.label()},
                             {"experts", g.experts},
                             {"top_k", g.top_k},
                             {"granularity", g.granularity},
                             {"shared_experts", g.shared}});
  out["ranges"] = {
      {"N", interval_json(fit.n)}, {"D", interval_json(fit.d)}, {"C", interval_json(fit.c)}};
  out["choices"] = fit.choices;
  out["warnings"] = fit.warnings;
  if (with_draws) out["draws"] = fit.draws;
  return out;
}

FitResult fit_from_json(const Json& json, const std::string& file) {
  FitResult out;
  out.law = get<std::string>(json, "law", file);
  out.approach = get<int>(json, "approach", file);
  out.n_definition = get<std::string>(json, "n_definition", file);
  const Json params = get<Json>(json, "params", file);
  for (const auto& [name, value] : params.items()) {
    out.param_names.push_back(name);
    out.params.push_back(get<double>(params, name.c_str(), file));
  }
  out.objective = get<double>(json, "objective", file);
  out.n_points = get<int>(json, "n_points", file);
  out.rmse_log = get<double>(json, "rmse_log", file);
  for (const Json& group : get<Json>(json, "groups", file))
    out.groups.push_back({get<double>(group, "experts", file), get<double>(group, "top_k", file),
                          get<double>(group, "granularity", file),
                          get<double>(group, "shared_experts", file)});
  if (json.contains("held_out")) {
    const Json held = get<Json>(json, "held_out", file);
    out.held_out = HeldOut{.points = get<int>(held, "points", file),
                           .from_flops = get<double>(held, "from_flops", file),
                           .fitted_to = get<double>(held, "fitted_to", file),
                           .rmse_log = get<double>(held, "rmse_log", file),
                           .mean_log = get<double>(held, "mean_log", file),
                           .worst_log = get<double>(held, "worst_log", file)};
  }
  const Json ranges = get<Json>(json, "ranges", file);
  out.n = get_interval(ranges, "N", file);
  out.d = get_interval(ranges, "D", file);
  out.c = get_interval(ranges, "C", file);
  if (json.contains("draws"))
    out.draws = get<std::vector<std::vector<double>>>(json, "draws", file);
  for (const std::vector<double>& draw : out.draws)
    if (draw.size() != out.params.size())
      throw DataError("{}: a draw holds {} values for {} parameters", file, draw.size(),
                      out.params.size());
  return out;
}

}  // namespace degu::scaling
