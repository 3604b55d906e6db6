// Sweeps with a made-up trainer on threads as ranks: who trains what, and what is left behind by
// runs that fail, by crashes and by stops.
#include "scaling/sweep/sweep.h"

#include <algorithm>
#include <atomic>
#include <catch2/catch.hpp>
#include <filesystem>
#include <fstream>
#include <map>
#include <mutex>
#include <set>

#include "base/error.h"
#include "comm/agree.h"
#include "comm/thread_comm.h"
#include "scaling/sweep/state.h"
#include "shape/accounting.h"
#include "tests/support/temporary_folder.h"

namespace degu::scaling {
namespace {

constexpr int64_t kSequence = 64;

using Folder = degu::test::TemporaryFolder;

RunDefaults defaults() {
  RunDefaults d;
  d.model.vocab = 256;
  d.sequence_length = kSequence;
  d.learning_rate = .01;
  return d;
}

SweepConfig small_grid() {
  SweepConfig config;
  config.budgets = {1e9, 3e9, 9e9};
  config.sizes = {{.width = 32, .layers = 1, .budgets = {}},
                  {.width = 64, .layers = 2, .budgets = {}}};
  config.members = {{}, {.name = "e4k2", .experts = 4}};
  return config;
}

// What the made-up trainer saw, on all ranks.
struct Seen {
  std::mutex mutex;
  std::vector<std::string> started;    // by first ranks, in order
  std::map<std::string, int> entered;  // by all ranks
  void enter(const std::string& run, const Communicator& group) {
    const std::lock_guard lock(mutex);
    if (group.rank() == 0) started.push_back(run);
    ++entered[run];
  }
};

RunMeasurement measurement(const PlannedRun& run) {
  return {.tokens = 64000,
          .flops = run.budget,
          .annealed = true,
          .val_loss = 2 + 1e8 / run.budget,
          .bits_per_byte = 1,
          .seconds = 1,
          .utilisation = .5};
}

SweepOutcome sweep(const Folder& folder, const std::vector<RunFamily>& families, int ranks,
                   const TrainRun& train, SweepOptions options = {}) {
  options.folder = folder.path();
  SweepOutcome outcome;
  std::mutex mutex;
  run_as_threads(ranks, [&](Communicator& world) {
    const SweepOutcome own = run_sweep(families, kSequence, options, world, train);
    const std::lock_guard lock(mutex);
    if (world.rank() == 0) outcome = own;
  });
  return outcome;
}

const RunRecord& record_of(const SweepOutcome& outcome, const std::string& name) {
  const auto at = std::find_if(outcome.records.begin(), outcome.records.end(),
                               [&](const RunRecord& r) { return r.run == name; });
  REQUIRE(at != outcome.records.end());
  return *at;
}

TEST_CASE("a grid holds each combination once, the most expensive first") {
  SweepConfig config = small_grid();
  config.learning_rates = {.01, .02};
  config.seeds = {1, 2, 3};
  const std::vector<RunFamily> families = design_sweep(config, defaults());
  CHECK(families.size() == 3 * 2 * 2 * 2 * 3);
  std::set<std::string> names;
  double previous = INFINITY;
  for (const RunFamily& family : families) {
    REQUIRE(family.size() == 1);
    const PlannedRun& run = family[0];
    names.insert(run.name);
    const double cost = predicted_cost(run, kSequence);
    CHECK(cost <= previous);
    CHECK(cost > run.budget);
    previous = cost;
    // The tokens that make the budget, by the exact count.
    const RunRecord record = describe_run(run, kSequence);
    CHECK(training_flops(run.shape, kSequence, double(record.tokens)) ==
          Approx(run.budget).epsilon(1e-3));
    CHECK(record.n_total == parameter_count(run.shape, ParameterCount::kTotal));
    CHECK((record.experts > 1) == (record.n_active < record.n_total));
  }
  CHECK(names.size() == families.size());
  // At one budget the smaller model takes more tokens, hence longer.
  CHECK(families.front()[0].budget == 9e9);
  CHECK(families.front()[0].shape.width == 32);
}

TEST_CASE("an isoFLOP design centres its sizes on the budget") {
  SweepConfig config;
  config.budgets = {1e13, 1e14};
  config.isoflop = {.sizes_per_budget = 5, .span = 9};
  config.head_width = 16;
  for (const RunFamily& family : design_sweep(config, defaults())) {
    const double centre = std::sqrt(family[0].budget / (6 * 20));
    const auto n = double(parameter_count(family[0].shape, ParameterCount::kActiveNoEmbedding));
    CHECK(n > centre / 3 / 1.6);
    CHECK(n < centre * 3 * 1.6);
  }
}

TEST_CASE("grids that cannot be are refused") {
  SweepConfig config = small_grid();
  config.sizes.push_back({.width = 40, .layers = 1, .budgets = {}});
  CHECK_THROWS_WITH(design_sweep(config, defaults()), Catch::Contains("width 40 is no multiple"));
  config = small_grid();
  config.budgets.push_back(1e9);
  CHECK_THROWS_WITH(design_sweep(config, defaults()), Catch::Contains("in the grid twice"));
  config = small_grid();
  config.sizes[0].budgets = {2e9};
  CHECK_THROWS_WITH(config.check(), Catch::Contains("which sweep.budgets lacks"));
}

TEST_CASE("every run is trained once, the longest first, however many ranks there are") {
  const std::vector<RunFamily> families = design_sweep(small_grid(), defaults());
  struct Layout {
    int ranks;
    int64_t per_run;
  };
  for (const Layout layout : {Layout{1, 1}, Layout{2, 1}, Layout{4, 1}, Layout{4, 2}}) {
    INFO(layout.ranks << " ranks, " << layout.per_run << " a run");
    const Folder folder;
    Seen seen;
    const auto groups = static_cast<size_t>(layout.ranks / layout.per_run);
    const SweepOutcome outcome =
        sweep(folder, families, layout.ranks,
              [&](const RunFamily& family, size_t i, const std::string&, Communicator& group,
                  const OnStep& on_step) {
                seen.enter(family[i].name, group);
                group.barrier();
                if (group.rank() == 0) on_step({.step = 1, .steps = 2, .loss = 3});
                usleep(static_cast<useconds_t>(family[i].budget / 1e9 * 2000));
                return measurement(family[i]);
              },
              {.ranks_per_run = layout.per_run});
    REQUIRE(seen.started.size() == families.size());
    CHECK(seen.entered.size() == families.size());
    for (const auto& [name, count] : seen.entered) CHECK(count == layout.per_run);
    // A run starts once all but the other groups' are handed out.
    for (size_t i = 0; i < families.size(); ++i) {
      const auto at = std::find(seen.started.begin(), seen.started.end(), families[i][0].name);
      const auto place = static_cast<size_t>(at - seen.started.begin());
      CHECK(place + groups > i);
      CHECK(place < i + groups);
    }
    for (const RunRecord& r : outcome.records) {
      CHECK(r.status == "done");
      CHECK(r.attempts == 1);
      CHECK(r.ranks == layout.per_run);
    }
    CHECK(read_runs(folder.path()).size() == families.size());
    CHECK(read_runs(folder.path() + "/runs.h5").size() == families.size());
    CHECK_FALSE(std::filesystem::exists(folder.path() + "/live"));

    // A second start finds nothing to do.
    const SweepOutcome again =
        sweep(folder, families, layout.ranks,
              [&](const RunFamily&, size_t, const std::string&, Communicator&,
                  const OnStep&) -> RunMeasurement { throw CommError("trained again"); },
              {.ranks_per_run = layout.per_run});
    CHECK(again.trained == 0);
    CHECK(again.records.size() == families.size());
  }
}

TEST_CASE("a diverged run and a bad configuration are recorded and the sweep goes on") {
  const std::vector<RunFamily> families = design_sweep(small_grid(), defaults());
  const std::string diverging = families[1][0].name, impossible = families[2][0].name;
  for (const int64_t per_run : {1, 2}) {
    const Folder folder;
    const SweepOutcome outcome =
        sweep(folder, families, 4,
              [&](const RunFamily& family, size_t i, const std::string&, Communicator& group,
                  const OnStep&) {
                // A value that one rank alone finds bad is bad for all after the exchange.
                const bool bad = max_over_ranks(group, family[i].name == diverging &&
                                                           group.rank() == group.size() - 1) != 0;
                if (bad) throw NumericError("10 steps in a row had gradients that are not finite");
                if (family[i].name == impossible)
                  throw ConfigError("heads is 3, must divide width");
                group.barrier();
                return measurement(family[i]);
              },
              {.ranks_per_run = per_run});
    CHECK_FALSE(outcome.interrupted);
    for (const RunRecord& r : outcome.records) {
      const std::string expected = r.run == diverging    ? "diverged"
                                   : r.run == impossible ? "invalid"
                                                         : "done";
      CHECK(r.status == expected);
    }
    CHECK_THAT(record_of(outcome, diverging).reason, Catch::Contains("not finite"));
    CHECK_THAT(record_of(outcome, impossible).reason, Catch::Contains("heads is 3"));
  }
}

TEST_CASE("a combination that cannot be is recorded without being trained") {
  SweepConfig config = small_grid();
  config.members.push_back({.name = "e4k5", .experts = 4, .top_k = 5});
  const Folder folder;
  int trained = 0;
  const TrainRun train = [&](const RunFamily& family, size_t i, const std::string&, Communicator&,
                             const OnStep&) {
    ++trained;
    return measurement(family[i]);
  };
  const SweepOutcome outcome = sweep(folder, design_sweep(config, defaults()), 1, train);
  CHECK(trained == 12);
  const RunRecord& bad = record_of(outcome, "c3e+09-d64-l2-e4k5-lr0.01-s1");
  CHECK(bad.status == "invalid");
  CHECK_THAT(bad.reason, Catch::Contains("moe.top_k is 5"));
  CHECK(sweep(folder, design_sweep(config, defaults()), 1, train).trained == 0);
  config.members = {config.members.back()};
  CHECK_THROWS_WITH(design_sweep(config, defaults()), Catch::Contains("no run of the grid"));
}

TEST_CASE("a crash ends the job; a run that crashed twice is marked failed") {
  const std::vector<RunFamily> families = design_sweep(small_grid(), defaults());
  const std::string victim = families[3][0].name;
  const Folder folder;
  int trained = 0;
  const TrainRun crashing = [&](const RunFamily& family, size_t i, const std::string&,
                                Communicator&, const OnStep&) {
    if (family[i].name == victim) throw IoError("the disk is full");
    ++trained;
    return measurement(family[i]);
  };
  CHECK_THROWS_AS(sweep(folder, families, 1, crashing), IoError);
  CHECK(trained == 3);
  CHECK_THROWS_AS(sweep(folder, families, 1, crashing), IoError);
  CHECK(trained == 3);
  const SweepOutcome outcome = sweep(folder, families, 1, crashing);
  CHECK(record_of(outcome, victim).status == "failed");
  CHECK(record_of(outcome, victim).attempts == 2);
  CHECK_THAT(record_of(outcome, victim).reason, Catch::Contains("twice"));
  CHECK(trained == static_cast<int>(families.size()) - 1);

  // Failed stays failed, unless one asks.
  sweep(folder, families, 1, crashing);
  CHECK(trained == static_cast<int>(families.size()) - 1);
  const SweepOutcome retried =
      sweep(folder, families, 1,
            [](const RunFamily& family, size_t i, const std::string&, Communicator&,
               const OnStep&) { return measurement(family[i]); },
            {.retry_failed = true});
  CHECK(record_of(retried, victim).status == "done");
  CHECK(record_of(retried, victim).attempts == 1);
  CHECK(retried.trained == 1);
}

TEST_CASE("attempts are counted once per start") {
  const Folder folder;
  RunRecord fresh;
  fresh.run = "a";
  fresh.config_hash = "1";
  fresh.status = "waiting";
  fresh.attempts = 0;
  RunState state(folder.path(), fresh);
  state.load();  // no file: nothing to know
  state.notice_crash(false);
  CHECK(state.record().status == "waiting");
  for (int attempt = 1; attempt <= 2; ++attempt) {
    state.record().status = "running";
    state.record().attempts = attempt;
    state.store();
    // A start that sees the crash and dies before it trains counts nothing.
    for (int start = 0; start < 3; ++start) {
      RunState next(folder.path(), fresh);
      next.load();
      next.notice_crash(false);
      CHECK(next.record().attempts == attempt);
      CHECK(next.record().status == (attempt == 1 ? "waiting" : "failed"));
      CHECK(next.finished() == (attempt == 2));
    }
  }
  RunState other(folder.path(), fresh);
  other.record().config_hash = "2";
  CHECK_THROWS_WITH(other.load(), Catch::Contains("another configuration"));
}

TEST_CASE("a stop on request leaves a run to resume and counts no attempt") {
  const std::vector<RunFamily> families = design_sweep(small_grid(), defaults());
  const Folder folder;
  std::atomic<int> trained{0};
  const SweepOutcome stopped = sweep(
      folder, families, 2,
      [&](const RunFamily& family, size_t i, const std::string&, Communicator&, const OnStep&) {
        if (++trained > 4) return RunMeasurement{.interrupted = true};
        return measurement(family[i]);
      });
  CHECK(stopped.interrupted);
  CHECK(read_runs(folder.path()).size() == 4);
  int left = 0;
  for (const RunRecord& r : stopped.records) {
    if (r.status == "interrupted") {
      ++left;
      CHECK(r.attempts == 0);
    }
  }
  CHECK(left == 2);
  const SweepOutcome outcome =
      sweep(folder, families, 2,
            [&](const RunFamily& family, size_t i, const std::string&, Communicator&,
                const OnStep&) { return measurement(family[i]); });
  for (const RunRecord& r : outcome.records) CHECK(r.status == "done");
  CHECK(read_runs(folder.path()).size() == families.size());
}

TEST_CASE("with shared trunks a family is one size's budgets, the largest first") {
  SweepConfig config = small_grid();
  config.share_trunks = true;
  const std::vector<RunFamily> families = design_sweep(config, defaults());
  REQUIRE(families.size() == 4);
  for (const RunFamily& family : families) {
    REQUIRE(family.size() == 3);
    for (size_t i = 0; i < 3; ++i) CHECK(family[i].budget == (i == 0 ? 9e9 : i == 1 ? 3e9 : 1e9));
  }
  // One group trains a family in order; a trunk changes the warm-up, so the runs are others.
  const Folder folder;
  Seen seen;
  const TrainRun train = [&](const RunFamily& family, size_t i, const std::string&,
                             Communicator& group, const OnStep&) {
    seen.enter(family[i].name, group);
    return measurement(family[i]);
  };
  sweep(folder, families, 1, train);
  size_t at = 0;
  for (const RunFamily& family : families)
    for (const PlannedRun& run : family) CHECK(seen.started.at(at++) == run.name);
  CHECK_THROWS_WITH(sweep(folder, design_sweep(small_grid(), defaults()), 1, train),
                    Catch::Contains("another configuration"));
}

TEST_CASE("ranks must divide into groups") {
  const Folder folder;
  CHECK_THROWS_WITH(sweep(folder, design_sweep(small_grid(), defaults()), 3,
                          [](const RunFamily& family, size_t i, const std::string&, Communicator&,
                             const OnStep&) { return measurement(family[i]); },
                          {.ranks_per_run = 2}),
                    Catch::Contains("does not divide the 3 ranks"));
}

TEST_CASE("the live table") {
  GroupStatus a{.run = "c1e9-d64",
                .progress = {.step = 30, .steps = 120, .loss = 4.5, .tokens_per_second = 43210},
                .cost = 8,
                .runs_done = 2,
                .cost_done = 10};
  GroupStatus back;
  REQUIRE(from_line(to_line(a), back));
  CHECK(back.run == a.run);
  CHECK(back.progress.steps == 120);
  CHECK(back.cost_done == 10);
  CHECK_FALSE(from_line(to_line(a).substr(0, 40), back));  // torn
  CHECK_FALSE(from_line("", back));
  GroupStatus idle;
  REQUIRE(from_line(to_line(GroupStatus{.runs_done = 1, .cost_done = 8}), idle));
  CHECK(idle.run.empty());
  // 10 + 8/4 + 8 of 40 in 60 seconds: as long again.
  const std::vector<std::string> lines = board_lines({a, idle}, 9, 1, 40, 60);
  REQUIRE(lines.size() == 2);
  CHECK(lines[0] == "sweep: 4 of 9 runs done, 1 running, 4 waiting, about 1 min 0 s left");
  CHECK_THAT(lines[1], Catch::Contains("c1e9-d64") && Catch::Contains("[====            ]") &&
                           Catch::Contains(" 25 %  loss 4.5000  43,210 tokens/s"));
}

}  // namespace
}  // namespace degu::scaling
