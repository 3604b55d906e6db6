#include "cli/plan_train.h"

#include <cstdio>
#include <nlohmann/json.hpp>

#include "config/yaml.h"
#include "io/atomic_file.h"

namespace degu {
namespace {

using Json = nlohmann::ordered_json;

Json layout_json(const PlannedLayout& p) {
  const TrainingMemory& m = p.memory;
  const StepSeconds& s = p.seconds;
  return {{"expert_parallel", p.expert_parallel},
          {"micro_batch_sequences", p.micro_batch_sequences},
          {"fits", p.fits},
          {"memory",
           {{"parameters", m.parameters},
            {"gradients", m.gradients},
            {"moments", m.moments},
            {"activations", m.activations},
            {"evaluation", m.evaluation},
            {"scratch", m.scratch},
            {"total", m.total()}}},
          {"step_seconds",
           {{"compute", s.compute},
            {"exchange", s.exchange},
            {"reduction", s.reduction},
            {"update", s.update},
            {"total", s.total()}}}};
}

double share_of_peak(const LayoutPlan& plan, const PlannedLayout& layout, double peak, int ranks) {
  return plan.flops_per_step / layout.seconds.total() / (peak * ranks);
}

void print_layouts(const LayoutPlan& plan, const ClusterSpec& cluster, double peak) {
  const auto gib = [](double bytes) { return bytes / static_cast<double>(int64_t{1} << 30); };
  fmt::print("{:>7} {:>9} {:>11} {:>10} {:>8} {:>11} {:>8} {:>10} {:>9} {:>9} {:>8} {:>8} {:>7}\n",
             "experts", "sequences", "parameters", "gradients", "moments", "activations", "GiB in",
             "compute", "exchange", "reduction", "update", "seconds", "share");
  fmt::print("{:>7} {:>9} {:>11} {:>10} {:>8} {:>11} {:>8} {:>10} {:>9} {:>9} {:>8} {:>8} {:>7}\n",
             "over", "per pass", "", "", "", "", "all", "", "", "", "", "a step", "of peak");
  for (const PlannedLayout& p : plan.layouts) {
    const TrainingMemory& m = p.memory;
    const StepSeconds& s = p.seconds;
    fmt::print(
        "{:>7} {:>9} {:>11.3f} {:>10.3f} {:>8.3f} {:>11.3f} {:>8.3f} {:>10.4g} {:>9.3g} {:>9.3g} "
        "{:>8.3g} {:>8.4g} {:>6.1f}%{}\n",
        p.expert_parallel, p.micro_batch_sequences, gib(m.parameters), gib(m.gradients),
        gib(m.moments), gib(m.activations + m.evaluation + m.scratch), gib(m.total()), s.compute,
        s.exchange, s.reduction, s.update, s.total(),
        100 * share_of_peak(plan, p, peak, cluster.ranks()), p.fits ? "" : "  does not fit");
  }
  for (const std::string& reason : plan.refused) fmt::print("not possible: {}\n", reason);
}

}  // namespace

void add_plan_train_options(CommandLine& line, PlanTrainArguments& a) {
  line.option("--train", a.config,
              "instead: memory and time of this run's configuration on --cluster");
  line.option("--cluster", a.cluster, "with --train: CLUSTER.yaml of `degu bench comm --out`");
  line.option("--imbalance", a.imbalance,
              "with --train: rows of the busiest rank's experts over the mean")
      .within(1.0, 1e3);
}

ExitCode plan_train(const PlanTrainArguments& a) {
  if (a.cluster.empty()) {
    throw ConfigError("--train {}: give the machines with --cluster CLUSTER.yaml", a.config);
  }
  RunConfig config = load_config<RunConfig>(a.config, a.overrides);
  if (config.model.vocab == 0) {
    throw ConfigError("{}: model.vocab is 0 until the data are read; give --set model.vocab=V",
                      a.config);
  }
  config.model = config.model.resolved();
  const ClusterSpec cluster = load_cluster(a.cluster);
  LayoutAssumptions assumptions{.imbalance = a.imbalance};
  if (a.utilisation > 0) assumptions.utilisation = a.utilisation;
  const LayoutPlan plan = plan_layouts(config, cluster, assumptions);
  if (plan.layouts.empty()) {
    throw ConfigError("{} on {}: no layout is possible; {}", a.config, a.cluster,
                      plan.refused.empty() ? "" : plan.refused.front());
  }
  const PlannedLayout& best = plan.layouts.front();
  const double peak = config.train.precision == Precision::kBf16 ? cluster.device.bf16_flops
                                                                 : cluster.device.fp32_flops;
  const double hours = best.seconds.total() * static_cast<double>(plan.steps) / 3600;
  if (a.json) {
    Json out = {{"config", a.config},
                {"cluster", a.cluster},
                {"ranks", cluster.ranks()},
                {"utilisation", assumptions.utilisation},
                {"imbalance", assumptions.imbalance},
                {"steps", plan.steps},
                {"tokens_per_step", plan.tokens_per_step},
                {"flops_per_step", plan.flops_per_step},
                {"hours", hours},
                {"layouts", Json::array()},
                {"refused", plan.refused}};
    for (const PlannedLayout& layout : plan.layouts) out["layouts"].push_back(layout_json(layout));
    fmt::print("{}\n", out.dump(2));
  } else {
    fmt::print(
        "{} on {} x {} ({}); products at {:.0f} % of the peak, experts' rows {:.2f} of even\n",
        a.config, cluster.ranks(), cluster.device.name, cluster.source,
        100 * assumptions.utilisation, assumptions.imbalance);
    print_layouts(plan, cluster, peak);
    fmt::print("\n{} steps of {} tokens: {:.3g} hours, {:.3g} GiB on each rank\n", plan.steps,
               plan.tokens_per_step, hours, best.memory.total() / static_cast<double>(1 << 30));
  }
  if (!best.fits) {
    throw ConfigError(
        "no layout fits in {:.1f} GiB; smaller passes need a smaller train.unit_sequences, and "
        "more "
        "ranks hold less each",
        cluster.device.memory / static_cast<double>(1 << 30));
  }
  if (!a.out.empty()) {
    config.cluster.expert_parallel = best.expert_parallel;
    if (best.expert_parallel == 1) config.cluster.all_to_all = AllToAll::kAuto;  // nothing travels
    config.train.micro_batch_sequences = best.micro_batch_sequences;
    write_file_atomic(a.out, to_yaml(config));
  }
  return ExitCode::kDone;
}

}  // namespace degu
