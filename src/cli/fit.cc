// `degu fit`: a scaling law from a table of runs.
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <limits>
#include <memory>
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "base/log.h"
#include "base/timer.h"
#include "cli/command.h"
#include "io/atomic_file.h"
#include "scaling/curves.h"
#include "scaling/fit/fit.h"
#include "scaling/fit/fit_json.h"
#include "scaling/laws/registry.h"
#include "scaling/run_table.h"
#include "scaling/selection.h"

namespace degu {
namespace {

using Json = nlohmann::ordered_json;
using namespace scaling;  // NOLINT: this file is the face of that room

struct FitCommand {
  std::string runs, law = "chinchilla", columns, holdout, last, also_n, out, curves;
  std::string envelope = "hull", interpolation = "parabola", edge, delta;
  std::vector<std::string> where;
  int drop_highest_loss = 0;
  bool all_learning_rates = false;
  bool include_unannealed = false, include_experts = false, json = false, list_laws = false;
  FitOptions options;
};

template <NamedEnum E>
E choice(const char* option, const std::string& text) {
  static constexpr auto names = enum_names(E{});
  std::string known;
  for (size_t i = 0; i < names.size(); ++i) {
    if (names[i] == text) return static_cast<E>(i);
    known += (i ? ", " : "") + std::string(names[i]);
  }
  throw ConfigError("{} {}: it is one of {}", option, text, known);
}

std::unique_ptr<Law> law_for(const FitCommand& command, const Selection& selection) {
  if (command.law == "multipliers") return make_multipliers(selection.groups);
  return make_law(command.law);
}

SelectionOptions selection_options(const FitCommand& command, const Law& law) {
  SelectionOptions out;
  out.columns = parse_columns(command.columns);
  out.where = command.where;
  out.drop_highest_loss = command.drop_highest_loss;
  out.include_unannealed = command.include_unannealed;
  out.all_learning_rates = command.all_learning_rates;
  out.n_definition = law.n_definition();
  out.dense_only = !law.covers_experts() && !command.include_experts;
  out.needs_tokens = law.uses_tokens();
  if (!command.last.empty()) {
    const size_t colon = command.last.find(':');
    if (colon == std::string::npos)
      throw ConfigError(
          "--last {}: write it as the column of the run's name:the column of its order",
          command.last);
    out.last_by = command.last.substr(0, colon);
    out.last_order = command.last.substr(colon + 1);
  }
  return out;
}

Json excluded_json(const Selection& selection) {
  Json out = Json::array();
  for (const Excluded& e : selection.excluded)
    out.push_back({{"place", e.place}, {"run", e.what}, {"reason", e.reason}});
  return out;
}

// The exponents once more under another definition of N: at small sizes the definition dominates.
void add_other_definition(const FitCommand& command, const RunTable& table, const Law& law,
                          const Selection& selection, Json& out) {
  std::string column = command.also_n;
  const std::string used = selection.used.at("N");
  if (column.empty()) {
    for (const ParameterCount other :
         {ParameterCount::kActiveNoEmbedding, ParameterCount::kTotal, ParameterCount::kActive}) {
      const std::string name{enum_names(other)[size_t(other)]};
      if (!table.has(name) || name == used) continue;
      column = name;
      break;
    }
    if (column.empty()) return;
  }
  SelectionOptions again = selection_options(command, law);
  again.columns["N"] = column;
  const Selection other = select_runs(table, again);
  FitOptions options = command.options;
  options.holdout = false;
  try {
    const FitResult fit = fit_law(*law_for(command, other), other, options);
    const Json json = fit_to_json(fit, false);
    if (!json.contains("optimum")) return;
    Json entry = json["optimum"];
    entry["n_definition"] = column;
    entry["params"] = json["params"];
    entry["r2"] = json["r2"];
    out["optimum_other_n"] = std::move(entry);
  } catch (const NumericError& error) {
    out["warnings"].push_back(fmt::format("under {}: {}", column, error.what()));
  }
}

// What the planner needs of a degu table: the sizes seen, how fast they ran, the learning rate of
// the best of the largest runs, and the configuration they share.
void add_sweep_facts(const RunTable& table, const Selection& selection, Json& out) {
  std::set<std::pair<int64_t, int64_t>> sizes;
  Json speed = Json::array();
  double largest = 0, best_loss = 0, best_rate = 0;
  for (size_t i = 0; i < selection.size(); ++i) {
    const Observation& o = selection.data[i];
    const size_t row = static_cast<size_t>(o.row);
    if (table.has("width") && table.has("layers"))
      sizes.emplace(static_cast<int64_t>(table.number(row, "width")),
                    static_cast<int64_t>(table.number(row, "layers")));
    if (table.has("utilisation") && table.number(row, "utilisation") > 0)
      speed.push_back({selection.flops[i] / o.x.d, table.number(row, "utilisation")});
    if (!table.has("learning_rate")) continue;
    const bool larger = selection.flops[i] > 1.05 * largest;
    if (!larger && (selection.flops[i] < largest / 1.05 || o.loss >= best_loss)) continue;
    largest = std::max(largest, selection.flops[i]);
    best_loss = o.loss;
    best_rate = table.number(row, "learning_rate");
  }
  Json facts = Json::object();
  if (!sizes.empty()) facts["sizes"] = sizes;
  if (!speed.empty()) facts["utilisation"] = std::move(speed);
  if (best_rate > 0) facts["learning_rate"] = best_rate;
  const auto config = std::filesystem::path(table.path()).parent_path() / "sweep.yaml";
  if (std::filesystem::exists(config)) facts["config"] = config.string();
  if (!facts.empty()) out["sweep"] = std::move(facts);
}

std::string interval_text(const Json& summary) {
  return fmt::format("{:>11.5g} {:>11.4g}   {:.5g} … {:.5g}", summary["mean"].get<double>(),
                     summary["se"].get<double>(), summary["lo"].get<double>(),
                     summary["hi"].get<double>());
}

void print_params(const Json& fit) {
  const Json& boot = fit["bootstrap"]["params"];
  fmt::print("  {:<14} {:>13} {:>11} {}\n", "parameter", "value", "std. error",
             boot.empty() ? ""
                          : fmt::format("  bootstrap mean, s.e., 95 % interval ({} resamples)",
                                        fit["bootstrap"]["count"].get<int>()));
  for (const auto& [name, value] : fit["params"].items()) {
    std::string error = "-";
    if (fit.contains("standard_errors") && fit["standard_errors"][name].is_number())
      error = fmt::format("{:.4g}", fit["standard_errors"][name].get<double>());
    fmt::print("  {:<14} {:>13.7g} {:>11}   {}\n", name, value.get<double>(), error,
               boot.contains(name) ? interval_text(boot[name]) : "");
  }
}

void print_optimum(const Json& optimum, const char* title) {
  fmt::print("{} under N = {}: N* = {:.4g} C^{:.4f}, D* = {:.4g} C^{:.4f}\n", title,
             optimum["n_definition"].get<std::string>(), optimum["k_N"].get<double>(),
             optimum["a"].get<double>(), optimum["k_D"].get<double>(), optimum["b"].get<double>());
  if (optimum.contains("a_interval"))
    fmt::print("  95 % intervals: a {:.4f} … {:.4f}, b {:.4f} … {:.4f}\n",
               optimum["a_interval"]["lo"].get<double>(), optimum["a_interval"]["hi"].get<double>(),
               optimum["b_interval"]["lo"].get<double>(),
               optimum["b_interval"]["hi"].get<double>());
}

void print_report(const Json& fit, const Law& law) {
  fmt::print("{}, approach {}: {}\n", law.source(), fit["approach"].get<int>(),
             fit["approach"] == 3 ? law.summary() : "N* = k_N C^a, D* = k_D C^b");
  fmt::print("{} runs, N is column {}; the law counts {}\n", fit["n_points"].get<int>(),
             fit["columns"]["N"].get<std::string>(), parameter_count_text(law.n_definition()));
  for (const Json& note : fit["notes"]) fmt::print("  {}\n", note.get<std::string>());
  if (!fit["excluded"].empty()) fmt::print("{} rows left out:\n", fit["excluded"].size());
  size_t shown = 0;
  for (const Json& e : fit["excluded"]) {
    if (++shown > 40) {
      fmt::print("  … and {} more (all of them with --json)\n", fit["excluded"].size() - 40);
      break;
    }
    fmt::print("  {}: {}: {}\n", e["place"].get<std::string>(), e["run"].get<std::string>(),
               e["reason"].get<std::string>());
  }
  for (const auto& [name, value] : fit["choices"].items())
    fmt::print("  {}: {}\n", name, value.get<std::string>());
  fmt::print("\n");
  print_params(fit);
  fmt::print("\nobjective {:.12g}, R² {:.5f}, rms error of the logarithm {:.4g}\n",
             fit["objective"].get<double>(), fit["r2"].is_number() ? fit["r2"].get<double>() : NAN,
             fit["rmse_log"].get<double>());
  if (fit.contains("starts"))
    fmt::print("{} of {} starts arrived there ({:.0f} %)\n", fit["starts"]["arrived"].get<int>(),
               fit["starts"]["count"].get<int>(), 100 * fit["starts"]["share"].get<double>());
  if (fit.contains("minima"))
    for (const Json& m : fit["minima"])
      fmt::print("  budget {:.4g}: N* {:.4g}, D* {:.4g}, loss {:.4f} from {} runs{}\n",
                 m["C"].get<double>(), m["N"].get<double>(), m["D"].get<double>(),
                 m["L"].get<double>(), m["points"].get<int>(),
                 m["kept"].get<bool>() ? "" : ", left out");
  if (fit.contains("optimum")) print_optimum(fit["optimum"], "optimum");
  if (fit.contains("optimum_other_n")) print_optimum(fit["optimum_other_n"], "the same");
  if (fit.contains("held_out")) {
    const Json& held = fit["held_out"];
    fmt::print(
        "held out: {} runs from {:.3g} FLOPs up, rms error of ln L {:.4g}, mean {:+.4g}, worst "
        "{:.4g}\n",
        held["points"].get<int>(), held["from_flops"].get<double>(), held["rmse_log"].get<double>(),
        held["mean_log"].get<double>(), held["worst_log"].get<double>());
  }
  for (const Json& warning : fit["warnings"])
    fmt::print("warning: {}\n", warning.get<std::string>());
}

ExitCode list_laws() {
  for (const LawFactory make : law_table()) {
    const std::unique_ptr<Law> law = make();
    fmt::print("{:<14} {}\n{:<14} {}; N is {}\n", law->name(), law->summary(), "", law->source(),
               parameter_count_text(law->n_definition()));
  }
  return ExitCode::kDone;
}

RunTable read_table(FitCommand& command) {
  if (command.curves.empty()) return RunTable::read(command.runs);
  if (command.options.approach != 1)
    throw ConfigError("--curves is for approach 1; the others take the runs' ends");
  if (command.curves != "training" && command.curves != "validation")
    throw ConfigError("--curves {}: it is one of training, validation", command.curves);
  // The points before the end are what is asked for, and the envelope picks among rates itself.
  command.include_unannealed = true;
  command.all_learning_rates = true;
  return read_curves(command.runs,
                     command.curves == "training" ? CurveKind::kTraining : CurveKind::kValidation);
}

ExitCode run_fit(FitCommand& command) {
  if (command.list_laws) return list_laws();
  if (command.runs.empty())
    throw ConfigError("fit needs a run table, a sweep's folder or a CSV; see degu fit --help");
  FitOptions& options = command.options;
  options.envelope = choice<Envelope>("--envelope", command.envelope);
  options.interpolation = choice<Interpolation>("--interpolation", command.interpolation);
  if (command.edge.empty()) command.edge = command.curves.empty() ? "refuse" : "drop";
  options.edge = choice<EdgePolicy>("--edge", command.edge);
  if (!command.holdout.empty() && command.holdout != "largest")
    throw ConfigError("--holdout {}: the one way to hold out is `largest`", command.holdout);
  options.holdout = !command.holdout.empty();
  if (command.delta == "inf") {
    options.delta = std::numeric_limits<double>::infinity();
  } else if (!command.delta.empty()) {
    options.delta = std::strtod(command.delta.c_str(), nullptr);
    if (!(options.delta > 0))
      throw ConfigError("--delta {}: a positive number, or inf for least squares", command.delta);
  }
  if (options.threads == 0)
    options.threads = static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));

  const RunTable table = read_table(command);
  const std::unique_ptr<Law> asked = make_law(command.law);  // names the N to read
  const Selection selection = select_runs(table, selection_options(command, *asked));
  const std::unique_ptr<Law> law = law_for(command, selection);
  for (const Excluded& e : selection.excluded)
    log_debug("{}: {}: left out: {}", e.place, e.what, e.reason);
  const Timer timer;
  const FitResult fit = fit_law(*law, selection, options);
  const double seconds = timer.seconds();

  Json out = fit_to_json(fit, !command.out.empty());
  out["columns"] = selection.used;
  out["notes"] = selection.notes;
  out["excluded"] = excluded_json(selection);
  out["seconds"] = seconds;
  if (!command.curves.empty()) {
    out["choices"]["curves"] =
        command.curves == "training"
            ? "training losses, smoothed by a line in ln tokens within e^.4, 20 points a decade"
            : "validation losses as measured";
  }
  if (selection.seed_sigma) out["seed_sigma"] = *selection.seed_sigma;
  out["table"] = {{"path", table.path()}, {"hash", fmt::format("{:016x}", table.hash())}};
  add_sweep_facts(table, selection, out);
  if (fit.optimum) add_other_definition(command, table, *law, selection, out);
  for (const Json& warning : out["warnings"]) log_warn("{}", warning.get<std::string>());
  if (!command.out.empty()) {
    write_file_atomic(command.out, out.dump(1) + "\n");
    log_info("wrote {}", command.out);
    out.erase("draws");
  }
  if (command.json) {
    fmt::print("{}\n", out.dump(1));
  } else {
    print_report(out, *law);
  }
  return ExitCode::kDone;
}

}  // namespace

Action attach_fit(CommandLine& line) {
  const auto command = std::make_shared<FitCommand>();
  FitCommand& c = *command;
  FitOptions& o = c.options;
  line.option("runs", c.runs, "a run table (CSV, gzip CSV, degu's HDF5) or a sweep's folder");
  line.option("--law", c.law, "the law; --list-laws names them");
  line.flag("--list-laws", c.list_laws, "print the laws and stop");
  line.option("--approach", o.approach,
              "1: envelope of the runs, 2: isoFLOP minima, 3: the law's formula")
      .within(1, 3);
  line.option("--columns", c.columns,
              "where to find what, as N=\"Model Size\",D=…,C=…,L=…,E=…,K=…,G=…; a number holds for "
              "every row; without D: D = C/(6N)")
      .repeatable();
  line.option("--where", c.where, "only rows for which `column op value` holds (repeatable)")
      .repeatable();
  line.option("--drop-highest-loss", c.drop_highest_loss, "leave out this many highest losses")
      .non_negative();
  line.option("--last", c.last, "of each run keep its last row, as run_column:order_column");
  line.flag("--include-unannealed", c.include_unannealed,
            "also rows whose learning rate was not decayed");
  line.flag("--all-learning-rates", c.all_learning_rates,
            "also runs that a run of another learning rate beats");
  line.flag("--include-experts", c.include_experts,
            "also rows with experts in a law for dense models");
  line.option("--bootstrap", o.bootstrap, "resamples for intervals; 0: none").non_negative();
  line.option("--seed", o.seed, "of the bootstrap");
  line.option("--holdout", c.holdout, "largest: predict the largest budget from the others");
  line.option("--also-n", c.also_n, "column of a second definition of N for the exponents");
  line.option("--delta", c.delta,
              "Huber threshold on ln L; inf: least squares; default: the law's own");
  line.option("--curves", c.curves,
              "approach 1: training or validation, the runs' curves instead of their ends");
  line.option("--envelope", c.envelope, "approach 1: hull or bins");
  line.option("--window", o.window, "approach 2: sizes within this factor of the best")
      .within(1.0, 1e12);
  line.option("--interpolation", c.interpolation, "approach 2: parabola or akima");
  line.option("--edge", c.edge,
              "approach 2, a minimum on the edge of the sizes: refuse (default), drop the "
              "budget, or force; approach "
              "1: drop leaves such points out (the default with --curves)");
  line.option("--threads", o.threads, "0: all cores; the result does not depend on it")
      .non_negative();
  line.flag("--force", o.force, "fit what would be refused, with a warning");
  line.option("--out", c.out, "write FIT.json, which `degu plan` reads");
  line.flag("--json", c.json, "print one JSON object");
  return [command] { return run_fit(*command); };
}

}  // namespace degu
