#include "scaling/sweep/sweep.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <memory>

#include "base/log.h"
#include "base/random.h"
#include "comm/agree.h"
#include "config/yaml.h"
#include "scaling/sweep/state.h"
#include "shape/accounting.h"

namespace degu::scaling {
namespace {

// Everything a run's result depends on, as one number. Members of a family with a trunk warm up as
// its shortest run does.
std::string config_hash(const RunFamily& family, const PlannedRun& run, const std::string& shared) {
  uint64_t hash = hash_name(to_yaml(run.shape));
  if (family.size() > 1) {
    hash = hash_name(fmt::format("trunk {:.17g}", family.back().budget), hash);
  }
  hash =
      hash_name(fmt::format("{:.17g} {:.17g} {}", run.budget, run.learning_rate, run.seed), hash);
  return fmt::format("{:016x}", hash_name(shared, hash));
}

class Sweep {
 public:
  Sweep(const std::vector<RunFamily>& families, int64_t sequence_length,
        const SweepOptions& options, Communicator& world, const TrainRun& train)
      : families_(families), options_(options), world_(world), train_(train) {
    if (world.size() % options.ranks_per_run != 0) {
      throw ConfigError("sweep.ranks_per_run is {}, which does not divide the {} ranks",
                        options.ranks_per_run, world.size());
    }
    for (const RunFamily& family : families_) {
      for (const PlannedRun& run : family) costs_.push_back(predicted_cost(run, sequence_length));
      first_state_.push_back(states_.size());
      for (const PlannedRun& run : family) {
        RunRecord record = describe_run(run, sequence_length);
        record.config_hash = config_hash(family, run, options.shared_configuration);
        record.status = "waiting";
        record.attempts = 0;
        record.ranks = options.ranks_per_run;
        record.threads = options.threads;
        states_.emplace_back(options.folder, record);
      }
    }
  }

  SweepOutcome go();

 private:
  void recover();
  bool run_family(size_t index, Communicator& group);
  void train_run(const RunFamily& family, size_t i, RunState& state, Communicator& group);
  Board::Totals totals() const;
  void announce(const RunState& state) const;
  void write_table();
  void reload();
  // What a start that died left there is not what is going on.
  void remove_live() const {
    std::error_code ignored;
    std::filesystem::remove_all(options_.folder + "/live", ignored);
  }

  const std::vector<RunFamily>& families_;
  SweepOptions options_;
  Communicator& world_;
  const TrainRun& train_;
  std::vector<RunState> states_;     // families' runs after each other
  std::vector<double> costs_;        // of each state's run
  std::vector<size_t> first_state_;  // of each family
  std::unique_ptr<Board> board_;
  int64_t trained_ = 0;
  bool interrupted_ = false;
};

// Rank 0 reads what earlier starts left and settles it; the others read the settled files.
void Sweep::recover() {
  run_together(world_, [&] {
    if (world_.rank() != 0) return;
    remove_live();
    for (RunState& state : states_) {
      state.load();
      state.notice_crash(options_.retry_failed);
    }
    write_table();
  });
  reload();
}

void Sweep::reload() {
  run_together(world_, [&] {
    for (RunState& state : states_) state.load();
  });
}

void Sweep::announce(const RunState& state) const {
  const RunRecord& r = state.record();
  board_->clear();
  const auto finished =
      std::count_if(states_.begin(), states_.end(), [](const RunState& s) { return s.finished(); });
  if (r.status == "done") {
    log_any_rank(
        "{:>3}/{} {:<32} loss {:.4f}  {:.3f} bits/byte  {:.3g} tokens  {:.0f} s  {:.0f}% of peak",
        finished, states_.size(), r.run, r.val_loss, r.bits_per_byte, static_cast<double>(r.tokens),
        r.seconds, 100 * r.utilisation);
  } else {
    log_any_rank("{:>3}/{} {:<32} {}: {}", finished, states_.size(), r.run, r.status, r.reason);
  }
}

void Sweep::train_run(const RunFamily& family, size_t i, RunState& state, Communicator& group) {
  RunRecord& record = state.record();
  record.status = "running";
  ++record.attempts;
  run_together(group, [&] {
    if (group.rank() == 0) state.store();
  });
  if (group.rank() == 0) {
    board_->begin(record.run, costs_[static_cast<size_t>(&state - states_.data())]);
  }
  try {
    if (!family[i].problem.empty()) throw ConfigError("{}", family[i].problem);
    const RunMeasurement m = train_(family, i, options_.folder + "/runs/" + record.run, group,
                                    [this](const RunProgress& p) { board_->step(p); });
    if (m.interrupted) {
      record.status = "interrupted";
      --record.attempts;
      interrupted_ = true;
    } else {
      record.status = "done";
      record.tokens = m.tokens;
      record.flops = m.flops;
      record.annealed = m.annealed ? 1 : 0;
      record.val_loss = m.val_loss;
      record.bits_per_byte = m.bits_per_byte;
      record.seconds = m.seconds;
      record.utilisation = m.utilisation;
    }
  } catch (const NumericError& error) {
    record.status = "diverged";
    record.reason = error.what();
  } catch (const ConfigError& error) {
    record.status = "invalid";
    record.reason = error.what();
  } catch (const ShapeError& error) {
    record.status = "invalid";
    record.reason = error.what();
  }
  ++trained_;
  run_together(group, [&] {
    if (group.rank() == 0) state.store();
  });
}

bool Sweep::run_family(size_t index, Communicator& group) {
  for (size_t i = 0; i < families_[index].size() && !interrupted_; ++i) {
    RunState& state = states_[first_state_[index] + i];
    if (state.finished()) continue;
    train_run(families_[index], i, state, group);
    if (group.rank() != 0) continue;
    board_->end();
    for (RunState& other : states_) {
      if (&other != &state) other.load();  // what the other groups have finished meanwhile
    }
    announce(state);
    if (world_.rank() == 0) write_table();
  }
  return !interrupted_;
}

void Sweep::write_table() {
  std::vector<RunRecord> finished;
  for (const RunState& state : states_) {
    if (state.finished()) finished.push_back(state.record());
  }
  write_runs_csv(options_.folder + "/runs.csv", finished);
  write_runs_hdf5(options_.folder + "/runs.h5", finished);
}

Board::Totals Sweep::totals() const {
  Board::Totals totals{.runs = static_cast<int64_t>(states_.size())};
  for (size_t i = 0; i < states_.size(); ++i) {
    if (states_[i].finished()) {
      ++totals.done_before;
    } else {
      totals.cost_to_do += costs_[i];
    }
  }
  return totals;
}

SweepOutcome Sweep::go() {
  recover();
  const int per_run = static_cast<int>(options_.ranks_per_run);
  board_ = std::make_unique<Board>(options_.folder, world_.rank() / per_run,
                                   world_.size() / per_run, totals(), world_.rank() == 0);
  const std::unique_ptr<Communicator> group = world_.split(world_.rank() / per_run, world_.rank());
  const std::unique_ptr<SharedCounter> next = world_.make_counter(0);
  while (true) {
    int64_t family = group->rank() == 0 ? next->fetch_add(1) : 0;
    family = std::stoll(group->broadcast_text(std::to_string(family), 0));
    if (family >= static_cast<int64_t>(families_.size())) break;
    if (!run_family(static_cast<size_t>(family), *group)) break;
  }
  board_.reset();
  world_.barrier();
  reload();
  SweepOutcome outcome;
  outcome.interrupted = max_over_ranks(world_, interrupted_ ? 1 : 0) != 0;
  outcome.trained = trained_;
  for (const RunState& state : states_) outcome.records.push_back(state.record());
  run_together(world_, [&] {
    if (world_.rank() != 0) return;
    remove_live();
    write_table();
  });
  return outcome;
}

}  // namespace

RunRecord describe_run(const PlannedRun& run, int64_t sequence_length) {
  const ModelShape& s = run.shape;
  RunRecord r;
  r.run = run.name;
  r.budget = run.budget;
  r.learning_rate = run.learning_rate;
  r.seed = run.seed;
  if (!run.problem.empty()) return r;
  r.width = s.width;
  r.layers = s.layers;
  if (s.moe.experts > 0) {
    r.experts = s.moe.experts;
    r.top_k = s.moe.top_k;
    r.expert_width = s.moe.expert_width;
    r.shared_experts = s.moe.shared_experts;
  } else {
    r.expert_width = s.ffn_width;
  }
  r.granularity = run.granularity;
  r.n_total = parameter_count(s, ParameterCount::kTotal);
  r.n_active = parameter_count(s, ParameterCount::kActive);
  r.n_total_no_embedding = parameter_count(s, ParameterCount::kTotalNoEmbedding);
  r.n_active_no_embedding = parameter_count(s, ParameterCount::kActiveNoEmbedding);
  r.n_active_with_head = parameter_count(s, ParameterCount::kActiveWithHead);
  r.tokens = static_cast<int64_t>(run.budget / training_flops(s, sequence_length, 1.0));
  r.flops = run.budget;
  return r;
}

SweepOutcome run_sweep(const std::vector<RunFamily>& families, int64_t sequence_length,
                       const SweepOptions& options, Communicator& world, const TrainRun& train) {
  return Sweep(families, sequence_length, options, world, train).go();
}

}  // namespace degu::scaling
