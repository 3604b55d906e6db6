// `degu plan`: from a fitted law and a budget to the configuration of the model to train.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "base/log.h"
#include "cli/command.h"
#include "cli/plan_serve.h"
#include "cli/plan_train.h"
#include "config/yaml.h"
#include "io/atomic_file.h"
#include "scaling/fit/fit_json.h"
#include "scaling/laws/registry.h"
#include "scaling/plan/frontier.h"
#include "scaling/plan/planner.h"
#include "scaling/sweep/config.h"
#include "train/train_config.h"

namespace degu {
namespace {

using Json = nlohmann::ordered_json;
using namespace scaling;  // NOLINT: this file is the face of that room

struct PlanCommand {
  std::string fit, law, base, hardware, out, json_out, compare, measured;
  double flops = 0, hours = 0, inference_tokens = 0, utilisation = 0, price_per_hour = 0;
  double inference_cost = 1, memory = 0, serve_memory = 0, extrapolation = 10, grow = 8;
  std::vector<int> experts;
  std::vector<std::string> overrides;
  PlanServeArguments serve;
  PlanTrainArguments train;
  bool json = false;
};

// A run's configuration, or a sweep's, whose runs share it.
struct BaseFile {
  SweepConfig sweep;
  RunConfig run;
  void fields(Fields& f) {
    f("sweep", sweep, "the grid of runs");
    run.fields(f);
  }
};

Json parse_json(const std::string& path) {
  try {
    return Json::parse(read_file(path));
  } catch (const nlohmann::json::exception& error) {
    throw DataError("{}: {}", path, error.what());
  }
}

Json number(double value) {
  return std::isfinite(value) ? Json(value) : Json(nullptr);
}

Json model_json(const PlannedModel& m) {
  const ModelShape& s = m.option.shape;
  Json out = {{"experts", m.option.group.label()},
              {"width", s.width},
              {"layers", s.layers},
              {"heads", s.heads},
              {"ffn_width", s.ffn_width}};
  if (s.moe.experts > 0)
    out["moe"] = {{"experts", s.moe.experts},
                  {"top_k", s.moe.top_k},
                  {"expert_width", s.moe.expert_width},
                  {"granularity", m.option.group.granularity},
                  {"shared_experts", s.moe.shared_experts}};
  out["N"] = m.option.n;
  out["n_total"] = m.option.total;
  out["n_active"] = m.option.active;
  out["D"] = m.d;
  out["training_flops"] = m.flops;
  out["flops_per_token"] = m.option.train_flops;
  out["loss"] = m.loss;
  if (std::isfinite(m.loss_lo)) {
    out["loss_interval"] = Json::array({m.loss_lo, m.loss_hi});
    out["measured_interval"] = Json::array({m.measured_lo, m.measured_hi});
  }
  if (m.inference_flops > 0) out["inference_flops"] = m.inference_flops;
  out["hours"] = number(m.hours);
  if (m.money > 0) out["money"] = m.money;
  if (m.inference_money > 0) out["inference_money"] = m.inference_money;
  out["training_bytes"] = m.option.train_bytes;
  out["serving_bytes"] = m.option.serve_bytes;
  return out;
}

std::string quantity(double value) {
  if (!std::isfinite(value)) return "-";
  for (const auto& [scale, letter] :
       {std::pair{1e12, 'T'}, std::pair{1e9, 'G'}, std::pair{1e6, 'M'}, std::pair{1e3, 'k'}})
    if (value >= scale) return fmt::format("{:.3g} {}", value / scale, letter);
  return fmt::format("{:.3g}", value);
}

std::string duration(double hours) {
  if (!std::isfinite(hours)) return "-";
  if (hours >= 1) return fmt::format("{:.1f} h", hours);
  return hours * 60 >= 1 ? fmt::format("{:.1f} min", hours * 60)
                         : fmt::format("{:.1f} s", hours * 3600);
}

void print_row(const std::string& label, const PlannedModel& m, const PlannedModel& best) {
  const ModelShape& s = m.option.shape;
  fmt::print("  {:<46} {:>5} x {:<3} {:<12} {:>8} {:>8} {:>10.3g} {:>8.4f} {:>+8.4f} {:>9} {:>9}\n",
             label, s.width, s.layers, m.option.group.label(), quantity(m.option.n), quantity(m.d),
             m.flops, m.loss, m.loss - best.loss, duration(m.hours),
             m.money > 0 ? fmt::format("{:.2f}", m.money + m.inference_money) : "-");
}

void print_plan(const Plan& plan, const FitResult& fit) {
  fmt::print("law {} on {} runs, N is {}; {} shapes considered\n\n", fit.law, fit.n_points,
             fit.n_definition, plan.considered);
  fmt::print("  {:<46} {:>11} {:<12} {:>8} {:>8} {:>10} {:>8} {:>8} {:>9} {:>9}\n", "",
             "width x depth", "experts", "N", "D", "FLOPs", "loss", "over", "time", "money");
  print_row("best", plan.best, plan.best);
  for (size_t i = 0; i < plan.alternatives.size(); ++i)
    print_row(plan.labels[i], plan.alternatives[i], plan.best);
  const PlannedModel& b = plan.best;
  fmt::print("\npredicted loss {:.4f}", b.loss);
  if (std::isfinite(b.loss_lo))
    fmt::print(", 95 % {:.4f} … {:.4f}; a measured run within {:.4f} … {:.4f}", b.loss_lo,
               b.loss_hi, b.measured_lo, b.measured_hi);
  fmt::print("\n{:.3g} parameters in all, {:.3g} per token, {:.3g} tokens, {:.1f} tokens per N\n",
             b.option.total, b.option.active, b.d, b.d / b.option.n);
  if (plan.draws > 0) {
    fmt::print("over {} resamples of the runs: N {:.3g} … {:.3g}, D {:.3g} … {:.3g};", plan.draws,
               plan.n_lo, plan.n_hi, plan.d_lo, plan.d_hi);
    for (const auto& [label, share] : plan.group_share)
      fmt::print(" {} best in {:.0f} %", label, 100 * share);
    fmt::print("\n");
  }
  if (b.inference_flops > 0)
    fmt::print(
        "lifetime: {:.3g} training + {:.3g} inference FLOPs, {:.2f} % above the cheapest "
        "for this loss\n",
        b.flops, b.inference_flops, 100 * b.lifetime_excess);
  for (const std::string& warning : plan.warnings) fmt::print("warning: {}\n", warning);
}

std::unique_ptr<Law> law_of(const FitResult& fit) {
  if (fit.law == "multipliers") return make_multipliers(fit.groups);
  return make_law(fit.law);
}

template <class T>
std::optional<T> fact(const Json& fit, const char* key, const std::string& file) {
  if (!fit.contains("sweep") || !fit["sweep"].contains(key)) return {};
  try {
    return fit["sweep"][key].get<T>();
  } catch (const nlohmann::json::exception& error) {
    throw DataError("{}: key sweep.{}: {}", file, key, error.what());
  }
}

RunConfig base_config(const PlanCommand& command, const Json& fit) {
  std::string path = command.base;
  if (path.empty()) path = fact<std::string>(fit, "config", command.fit).value_or("");
  if (path.empty() || !std::filesystem::exists(path))
    throw ConfigError(
        "plan: {} is needed for everything but the model's size; give a run's or a sweep's YAML "
        "with "
        "--base",
        path.empty() ? std::string("a base configuration") : path);
  const BaseFile file = load_config<BaseFile>(path, command.overrides);
  RunConfig config = file.run;
  if (!file.sweep.budgets.empty()) {
    // A sweep makes its shapes from width and depth alone.
    ModelShape& m = config.model;
    m.width = static_cast<int>(file.sweep.head_width);
    m.head_width = static_cast<int>(file.sweep.head_width);
    m.heads = 1;
    m.kv_heads = 0;
    m.ffn_width = 0;
  }
  if (const auto rate = fact<double>(fit, "learning_rate", command.fit))
    config.train.optimizer.learning_rate = *rate;
  return config;
}

PlanProblem problem_of(const PlanCommand& command, const Json& json, const Law& law,
                       const FitResult& fit, const RunConfig& base) {
  PlanProblem p;
  p.law = &law;
  p.fit = &fit;
  p.groups = allowed_groups(law, fit, command.experts);
  p.flops = command.flops;
  p.hours = command.hours;
  p.inference_tokens = command.inference_tokens;
  p.inference_cost = command.inference_cost;
  p.train_memory = command.memory;
  p.serve_memory = command.serve_memory;
  p.price_per_hour = command.price_per_hour;
  p.extrapolation = command.extrapolation;
  p.default_utilisation = command.utilisation;
  if (!command.hardware.empty()) {
    const Hardware machine = read_hardware(command.hardware);
    p.peak = base.train.precision == Precision::kBf16 ? machine.bf16_flops : machine.fp32_flops;
    if (!(p.peak > 0))
      throw DataError("{}: no peak for precision {}", command.hardware,
                      enum_name(base.train.precision));
  }
  if (command.utilisation <= 0) {
    std::vector<double> flops, share;
    using Pairs = std::vector<std::pair<double, double>>;
    for (const auto& [x, y] : fact<Pairs>(json, "utilisation", command.fit).value_or(Pairs{})) {
      flops.push_back(x);
      share.push_back(y);
    }
    if (!flops.empty()) p.utilisation = UtilisationCurve(flops, share);
  }
  return p;
}

Json plan_json(const Plan& plan, const FitResult& fit, const PlanCommand& command) {
  Json out = {{"law", fit.law},
              {"fit", command.fit},
              {"n_definition", fit.n_definition},
              {"budget",
               command.flops > 0 ? Json{{"flops", command.flops}} : Json{{"hours", command.hours}}},
              {"inference_tokens", command.inference_tokens},
              {"best", model_json(plan.best)},
              {"alternatives", Json::array()}};
  for (size_t i = 0; i < plan.alternatives.size(); ++i) {
    Json entry = {{"label", plan.labels[i]}};
    entry.update(model_json(plan.alternatives[i]));
    entry["loss_over_best"] = plan.alternatives[i].loss - plan.best.loss;
    out["alternatives"].push_back(std::move(entry));
  }
  if (plan.draws > 0) {
    out["intervals"] = {{"draws", plan.draws},
                        {"N", Json::array({plan.n_lo, plan.n_hi})},
                        {"D", Json::array({plan.d_lo, plan.d_hi})}};
    for (const auto& [label, share] : plan.group_share)
      out["intervals"]["best_share"][label] = share;
  }
  if (command.inference_tokens > 0) out["lifetime_excess"] = plan.best.lifetime_excess;
  out["considered"] = plan.considered;
  out["warnings"] = plan.warnings;
  return out;
}

ExitCode plan_from_fit(const PlanCommand& command) {
  const Json json = parse_json(command.fit);
  const FitResult fit = fit_from_json(json, command.fit);
  const std::unique_ptr<Law> law = law_of(fit);
  RunConfig config = base_config(command, json);
  ShapeSpace space{.base = config.model,
                   .seen = {},
                   .sequence = config.data.sequence_length,
                   .grow = command.grow};
  using Sizes = std::vector<std::pair<int64_t, int64_t>>;
  for (const auto& [width, layers] : fact<Sizes>(json, "sizes", command.fit).value_or(Sizes{}))
    space.seen.push_back({width, layers});
  const PlanProblem problem = problem_of(command, json, *law, fit, config);
  Plan plan = make_plan(problem, space);

  config.model = plan.best.option.shape;
  config.train.steps = 0;
  config.train.flops = 0;
  config.train.tokens =
      round_tokens(plan.best.d, config.train.batch_sequences * config.data.sequence_length);
  const double flops = training_flops(config.model, config.data.sequence_length,
                                      static_cast<double>(config.train.tokens));
  Json out = plan_json(plan, fit, command);
  out["config"] = {{"tokens", config.train.tokens},
                   {"flops", flops},
                   {"over_budget", flops / plan.best.flops - 1}};
  for (const std::string& warning : plan.warnings) log_warn("{}", warning);
  if (!command.out.empty()) {
    write_file_atomic(
        command.out,
        fmt::format("# Planned from {} for {:.4g} training FLOPs: predicted loss {:.4f}.\n{}",
                    command.fit, plan.best.flops, plan.best.loss, to_yaml(config)));
    out["config"]["file"] = command.out;
    log_info("wrote {}", command.out);
  }
  if (!command.json_out.empty()) {
    write_file_atomic(command.json_out, out.dump(1) + "\n");
    log_info("wrote {}", command.json_out);
  }
  if (command.json) {
    fmt::print("{}\n", out.dump(1));
  } else {
    print_plan(plan, fit);
    if (!command.out.empty())
      fmt::print("{}: {} tokens, {:.4g} FLOPs ({:+.2f} % of the budget)\n", command.out,
                 config.train.tokens, flops, 100 * (flops / plan.best.flops - 1));
  }
  return ExitCode::kDone;
}

// With a law's published constants there is no sweep to take shapes from: sizes are continuous.
ExitCode plan_from_constants(const PlanCommand& command) {
  const std::unique_ptr<Law> law = make_law(command.law);
  if (law->published().empty())
    throw ConfigError("--law {}: no published constants; plan from a fit with --fit", command.law);
  if (!law->uses_tokens())
    throw ConfigError("--law {}: tokens do not enter it, so it has no best size for a budget",
                      command.law);
  if (!(command.flops > 0))
    throw ConfigError("--law {}: give the budget with --flops", command.law);
  // Chinchilla's printed constants are not the optimum of their own objective; the refit is.
  const PublishedConstants constants = law->published()[law->name() == "chinchilla" ? 1 : 0];
  const std::unique_ptr<Family> family = family_of(*law);
  std::vector<int> experts = command.experts;
  if (experts.empty()) experts = {static_cast<int>(law->range().experts.lo)};
  Json rows = Json::array();
  for (const int e : experts) {
    // Krajewski's experts count expansion: granularity multiplies them.
    const bool fine = law->name() == "krajewski";
    for (double granularity = 1; granularity <= (fine ? 256 : 1); granularity *= 2) {
      const FrontierProblem problem{.law = law.get(),
                                    .params = constants.values,
                                    .family = family.get(),
                                    .group = {e * granularity, granularity, granularity},
                                    .inference_tokens = command.inference_tokens};
      const FrontierPoint p = command.inference_tokens > 0
                                  ? best_for_lifetime(problem, command.flops)
                                  : best_for_training(problem, command.flops);
      Json row = {{"experts", e * granularity},
                  {"granularity", granularity},
                  {"N", p.model.n},
                  {"n_total", p.model.total},
                  {"D", p.d},
                  {"loss", p.loss},
                  {"training_flops", p.train_flops},
                  {"lifetime_flops", p.lifetime_flops}};
      row["extrapolates"] = law->out_of_range(
          {.n = p.model.n, .d = p.d, .experts = e * granularity, .granularity = granularity});
      rows.push_back(std::move(row));
    }
  }
  std::stable_sort(rows.begin(), rows.end(), [](const Json& a, const Json& b) {
    return a["loss"].get<double>() < b["loss"].get<double>();
  });
  const Json out = {{"law", law->name()},
                    {"constants", constants.label},
                    {"n_definition", enum_name(law->n_definition())},
                    {"budget", {{"flops", command.flops}}},
                    {"inference_tokens", command.inference_tokens},
                    {"best", rows[0]},
                    {"alternatives", rows}};
  if (command.json) {
    fmt::print("{}\n", out.dump(1));
    return ExitCode::kDone;
  }
  fmt::print("{}: {}\nconstants: {}; N counts {}\n", law->source(), law->summary(), constants.label,
             parameter_count_text(law->n_definition()));
  for (const Json& row : rows) {
    fmt::print(
        "  experts {:>5g} granularity {:>3g}: N {:.4g} ({:.4g} in all), D {:.4g}, loss {:.5f}\n",
        row["experts"].get<double>(), row["granularity"].get<double>(), row["N"].get<double>(),
        row["n_total"].get<double>(), row["D"].get<double>(), row["loss"].get<double>());
    for (const Json& text : row["extrapolates"])
      fmt::print("    extrapolation: {}\n", text.get<std::string>());
  }
  return ExitCode::kDone;
}

// The loss of a number, a run's folder or its result.json.
double measured_loss(const std::string& text) {
  char* end = nullptr;
  const double value = std::strtod(text.c_str(), &end);
  if (end != text.c_str() && *end == '\0') return value;
  std::string path = text;
  if (std::filesystem::is_directory(path)) path += "/result.json";
  const Json result = parse_json(path);
  try {
    return result.at("validation").at("loss").get<double>();
  } catch (const nlohmann::json::exception& error) {
    throw DataError("{}: validation.loss: {}; is the run complete?", path, error.what());
  }
}

ExitCode compare(const PlanCommand& command) {
  if (command.measured.empty())
    throw ConfigError("--compare {}: give the measured loss, or the run's folder, with --measured",
                      command.compare);
  const Json plan = parse_json(command.compare);
  const double measured = measured_loss(command.measured);
  try {
    const Json& best = plan.at("best");
    const double predicted = best.at("loss").get<double>();
    Json out = {{"predicted", predicted},
                {"measured", measured},
                {"difference", measured - predicted},
                {"relative", measured / predicted - 1}};
    if (best.contains("measured_interval")) {
      const auto range = best["measured_interval"].get<std::vector<double>>();
      out["interval"] = range;
      out["inside"] = measured >= range.at(0) && measured <= range.at(1);
    }
    if (command.json) {
      fmt::print("{}\n", out.dump(1));
      return ExitCode::kDone;
    }
    fmt::print("predicted {:.4f}, measured {:.4f}: {:+.4f} ({:+.2f} %)", predicted, measured,
               measured - predicted, 100 * (measured / predicted - 1));
    if (out.contains("inside"))
      fmt::print(", {} the 95 % interval {:.4f} … {:.4f}",
                 out["inside"].get<bool>() ? "inside" : "outside", out["interval"][0].get<double>(),
                 out["interval"][1].get<double>());
    fmt::print("\n");
  } catch (const nlohmann::json::exception& error) {
    throw DataError("{}: {}; is it a file that `degu plan --json-out` wrote?", command.compare,
                    error.what());
  }
  return ExitCode::kDone;
}

ExitCode run_plan(const PlanCommand& command) {
  if (!command.compare.empty()) return compare(command);
  if (!command.serve.model.empty()) {
    PlanServeArguments serve = command.serve;
    serve.memory = command.serve_memory;
    serve.out = command.out;
    serve.overrides = command.overrides;
    serve.json = command.json;
    return plan_serve(serve);
  }
  if (!command.train.config.empty()) {
    PlanTrainArguments train = command.train;
    train.utilisation = command.utilisation;
    train.out = command.out;
    train.overrides = command.overrides;
    train.json = command.json;
    return plan_train(train);
  }
  if (command.fit.empty() == command.law.empty())
    throw ConfigError(
        "plan needs one of --fit FIT.json (from `degu fit --out`) and --law NAME "
        "(published constants)");
  return command.fit.empty() ? plan_from_constants(command) : plan_from_fit(command);
}

}  // namespace

Action attach_plan(CommandLine& line) {
  const auto command = std::make_shared<PlanCommand>();
  PlanCommand& c = *command;
  line.option("--fit", c.fit, "FIT.json of `degu fit --out`");
  line.option("--law", c.law, "instead: a law with its published constants, sizes continuous");
  line.option("--flops", c.flops, "training budget in FLOPs").positive();
  line.option("--hours", c.hours, "or in hours on the machine of --hardware").positive();
  line.option("--hardware", c.hardware, "HW.yaml of `degu bench kernels --out`");
  line.option("--utilisation", c.utilisation,
              "share of the peak; default: as the fitted runs measured it")
      .within(0.0, 1.0);
  line.option("--inference-tokens", c.inference_tokens,
              "tokens the model will read or write in its life")
      .non_negative();
  line.option("--inference-cost", c.inference_cost,
              "cost of an inference FLOP relative to a training FLOP")
      .non_negative();
  line.option("--memory", c.memory,
              "bytes for weights, gradients and optimizer in training, on one rank")
      .positive();
  line.option("--serve-memory", c.serve_memory,
              "bytes for weights and one sequence's keys and values when serving")
      .positive();
  line.option("--experts", c.experts,
              "numbers of experts to choose among, 1: dense; default: all measured")
      .comma_separated()
      .repeatable();
  line.option("--price-per-hour", c.price_per_hour, "of the machine, in any currency")
      .non_negative();
  line.option("--base", c.base,
              "run or sweep YAML for all but the size; default: the fitted sweep's own");
  line.option("--set", c.overrides, "key=value over the base, e.g. train.seed=2").repeatable();
  line.option("--grow", c.grow, "widths considered up to this factor beyond the fitted runs'")
      .within(1.0, 1e3);
  line.option("--extrapolation", c.extrapolation,
              "warn beyond this factor of the largest run's FLOPs");
  line.option("--out", c.out,
              "write the planned run's YAML; with --serve: the placement of experts");
  line.option("--json-out", c.json_out, "write the plan as JSON, for --compare");
  add_plan_serve_options(line, c.serve);
  add_plan_train_options(line, c.train);
  line.option("--compare", c.compare, "a plan's JSON: compare its prediction with --measured");
  line.option("--measured", c.measured, "a loss, a run's folder or its result.json");
  line.flag("--json", c.json, "print one JSON object");
  return [command] { return run_plan(*command); };
}

}  // namespace degu
