#include "scaling/sweep/design.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>

#include "base/error.h"
#include "shape/accounting.h"

namespace degu::scaling {
namespace {

bool same_budget(double a, double b) {
  return std::abs(a - b) <= 1e-9 * std::max(a, b);
}

ModelShape shape_of(const ModelShape& base, int64_t width, int64_t layers, int64_t head_width) {
  ModelShape shape = base;
  shape.width = static_cast<int>(width);
  shape.layers = static_cast<int>(layers);
  shape.ffn_width = 0;
  shape.moe = MoeShape{};
  if (width % head_width != 0) {
    throw ConfigError("sweep: width {} is no multiple of sweep.head_width {}", width, head_width);
  }
  shape.heads = static_cast<int>(width / head_width);
  shape.head_width = static_cast<int>(head_width);
  shape.kv_heads = 0;
  return shape.resolved();
}

ModelShape with_member(const ModelShape& dense, const ModelShape& base, const SweepMember& member) {
  if (member.experts == 0) return dense;
  ModelShape shape = dense;
  shape.moe = base.moe;
  shape.moe.experts = static_cast<int>(member.experts);
  shape.moe.top_k = static_cast<int>(member.top_k);
  shape.moe.shared_experts = static_cast<int>(member.shared_experts);
  shape.moe.expert_width =
      static_cast<int>(std::llround(static_cast<double>(dense.ffn_width) / member.granularity));
  return shape.resolved();
}

// The number of parameters N with 6 N D = budget and D = ratio * N.
double centre_parameters(double budget, double ratio) {
  return std::sqrt(budget / (6 * ratio));
}

// The shape whose active parameters without embeddings come closest to `target`.
SweepSize nearest_size(const SweepConfig& config, const RunDefaults& defaults, double target) {
  const IsoFlopDesign& d = config.isoflop;
  const int64_t step = std::max(d.width_multiple, config.head_width);
  SweepSize best;
  double error = INFINITY;
  for (int64_t width = step; width <= 1 << 16; width += step) {
    const int64_t layers =
        std::max<int64_t>(1, std::llround(static_cast<double>(width) / d.width_per_layer));
    const ModelShape shape = shape_of(defaults.model, width, layers, config.head_width);
    const auto n = static_cast<double>(parameter_count(shape, ParameterCount::kActiveNoEmbedding));
    if (std::abs(std::log(n / target)) < error) {
      error = std::abs(std::log(n / target));
      best = {.width = width, .layers = layers, .budgets = {}};
    }
    if (n > 2 * target) break;
  }
  return best;
}

std::vector<SweepSize> sizes_at(const SweepConfig& config, const RunDefaults& defaults,
                                double budget) {
  std::vector<SweepSize> sizes;
  auto add = [&](const SweepSize& size) {
    const bool known = std::any_of(sizes.begin(), sizes.end(), [&](const SweepSize& s) {
      return s.width == size.width && s.layers == size.layers;
    });
    if (!known) sizes.push_back(size);
  };
  if (const IsoFlopDesign& d = config.isoflop; d.sizes_per_budget > 0) {
    const double centre = centre_parameters(budget, d.tokens_per_parameter);
    for (int64_t i = 0; i < d.sizes_per_budget; ++i) {
      const double share =
          d.sizes_per_budget == 1
              ? 0.5
              : static_cast<double>(i) / static_cast<double>(d.sizes_per_budget - 1);
      add(nearest_size(config, defaults, centre * std::pow(d.span, share - 0.5)));
    }
    return sizes;
  }
  for (const SweepSize& size : config.sizes) {
    const bool here =
        size.budgets.empty() || std::any_of(size.budgets.begin(), size.budgets.end(),
                                            [&](double b) { return same_budget(b, budget); });
    if (here) add(size);
  }
  return sizes;
}

bool in_middle(size_t index, size_t count, int64_t middle) {
  if (middle == 0 || static_cast<size_t>(middle) >= count) return true;
  const size_t first = (count - static_cast<size_t>(middle)) / 2;
  return index >= first && index < first + static_cast<size_t>(middle);
}

// Time per token beside its FLOPs, as FLOPs. From sweeps of widths 32 to 96 on Zen 4, one thread a
// run: seconds per token were 1e-5 + FLOPs / 2.4e11.
constexpr double kOverheadFlops = 2.4e6;

// What a trunk is shared by: everything but the budget.
std::string family_name(const PlannedRun& run) {
  return run.name.substr(run.name.find('-'));
}

}  // namespace

void SweepConfig::check() const {
  if (budgets.empty())
    throw ConfigError("sweep.budgets is empty; list the training FLOPs of each group");
  for (double budget : budgets) {
    if (!(budget > 0)) throw ConfigError("sweep.budgets: {} is not positive", budget);
  }
  if (sizes.empty() && isoflop.sizes_per_budget <= 0) {
    throw ConfigError("sweep: neither sizes nor isoflop.sizes_per_budget is given");
  }
  for (const SweepSize& size : sizes) {
    for (double b : size.budgets) {
      if (std::none_of(budgets.begin(), budgets.end(),
                       [&](double c) { return same_budget(b, c); })) {
        throw ConfigError("sweep.sizes: width {} names budget {:g}, which sweep.budgets lacks",
                          size.width, b);
      }
    }
  }
  for (const SweepMember& member : members) {
    if (member.experts > 0 && !(member.granularity > 0)) {
      throw ConfigError("sweep.members: {} has granularity {}; it must be positive", member.name,
                        member.granularity);
    }
  }
  if (ranks_per_run < 1) {
    throw ConfigError("sweep.ranks_per_run is {}; it must be at least 1", ranks_per_run);
  }
}

double predicted_cost(const PlannedRun& run, int64_t sequence_length) {
  if (!run.problem.empty()) return 0;
  return run.budget * (1 + kOverheadFlops / training_flops(run.shape, sequence_length, 1.0));
}

std::vector<RunFamily> design_sweep(const SweepConfig& config, const RunDefaults& defaults) {
  const std::vector<SweepMember> members =
      config.members.empty() ? std::vector<SweepMember>(1) : config.members;
  const std::vector<double> rates = config.learning_rates.empty()
                                        ? std::vector<double>{defaults.learning_rate}
                                        : config.learning_rates;
  const std::vector<int64_t> seeds =
      config.seeds.empty() ? std::vector<int64_t>{defaults.seed} : config.seeds;

  std::vector<PlannedRun> runs;
  for (double budget : config.budgets) {
    const std::vector<SweepSize> sizes = sizes_at(config, defaults, budget);
    for (size_t i = 0; i < sizes.size(); ++i) {
      const ModelShape dense =
          shape_of(defaults.model, sizes[i].width, sizes[i].layers, config.head_width);
      for (const SweepMember& member : members) {
        if (!in_middle(i, sizes.size(), member.middle)) continue;
        for (double rate : rates) {
          for (int64_t seed : seeds) {
            PlannedRun run{
                .name = fmt::format("c{:g}-d{}-l{}-{}-lr{:g}-s{}", budget, sizes[i].width,
                                    sizes[i].layers, member.name, rate, seed),
                .shape = {},
                .budget = budget,
                .learning_rate = rate,
                .seed = seed,
                .granularity = member.experts > 0 ? member.granularity : 1.0,
                .problem = {}};
            try {
              run.shape = with_member(dense, defaults.model, member);
            } catch (const ConfigError& error) {
              run.problem = error.what();
            }
            runs.push_back(std::move(run));
          }
        }
      }
    }
  }
  if (runs.empty()) throw ConfigError("sweep: the grid is empty; no size is trained at any budget");
  if (std::none_of(runs.begin(), runs.end(), [](const auto& r) { return r.problem.empty(); })) {
    throw ConfigError("sweep: no run of the grid can be made; {}: {}", runs[0].name,
                      runs[0].problem);
  }

  std::stable_sort(runs.begin(), runs.end(),
                   [](const PlannedRun& a, const PlannedRun& b) { return a.budget > b.budget; });
  std::vector<RunFamily> families;
  std::map<std::string, size_t> place;
  for (PlannedRun& run : runs) {
    const std::string key = config.share_trunks ? family_name(run) : run.name;
    const auto [found, fresh] = place.emplace(key, families.size());
    if (fresh) families.emplace_back();
    RunFamily& family = families[found->second];
    for (const PlannedRun& other : family) {
      if (other.name == run.name) throw ConfigError("sweep: run {} is in the grid twice", run.name);
    }
    family.push_back(std::move(run));
  }
  auto cost = [&](const RunFamily& family) {
    double sum = 0;
    for (const PlannedRun& run : family) sum += predicted_cost(run, defaults.sequence_length);
    return sum;
  };
  std::stable_sort(families.begin(), families.end(),
                   [&](const RunFamily& a, const RunFamily& b) { return cost(a) > cost(b); });
  return families;
}

}  // namespace degu::scaling
