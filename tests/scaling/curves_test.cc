// Approach 1 on curves: read, smoothed, and fitted back to the law that made them.
#include "scaling/curves.h"

#include <catch2/catch.hpp>
#include <cmath>
#include <filesystem>
#include <fstream>

#include "base/random.h"
#include "scaling/fit/fit.h"
#include "scaling/laws/registry.h"
#include "tests/support/temporary_folder.h"

namespace degu::scaling {
namespace {

class SweepFolder : public degu::test::TemporaryFolder {
 public:
  static double law(double n, double d) {
    return 1.8 + 60 / std::pow(n, .4) + 300 / std::pow(d, .4);
  }

  // Runs of many sizes, each with a curve of the law's losses and `noise` on each step.
  void write(double noise, bool validations) {
    const RandomStream random(7, "curves_test");
    std::vector<RunRecord> runs;
    for (int k = 0; k < 14; ++k) {
      RunRecord r;
      r.run = "r" + std::to_string(k);
      r.n_total = r.n_active = std::llround(2e4 * std::pow(1.5, k));
      const int64_t steps = 4000;
      const int64_t per_step = std::llround(2.0 * double(r.n_total) / 100);
      r.tokens = steps * per_step;
      r.flops = 6.0 * double(r.n_total) * double(r.tokens);
      r.val_loss = law(double(r.n_total), double(r.tokens));
      std::filesystem::create_directories(path() + "/runs/" + r.run);
      std::ofstream out(path() + "/runs/" + r.run + "/metrics.jsonl");
      out.precision(17);
      for (int64_t step = 9; step < steps; step += 10) {
        const double d = double((step + 1) * per_step);
        const double l =
            law(double(r.n_total), d) + noise * random.normal(uint64_t(k * 100000 + step));
        out << "{\"step\": " << step << ", \"tokens\": " << d << ", \"loss\": " << l << "}\n";
        if (step == 19) out << "{\"step\": 19, \"tokens\": 1, \"loss\": null, \"skipped\": true}\n";
        if (validations && step % 200 == 199)
          out << "{\"step\": " << step << ", \"tokens\": " << d
              << ", \"validation\": {\"loss\": " << law(double(r.n_total), d) << "}}\n";
      }
      runs.push_back(r);
    }
    RunRecord diverged = runs[0];
    diverged.run = "gone";  // has no curve and needs none
    diverged.status = "diverged";
    runs.push_back(diverged);
    write_runs_csv(path() + "/runs.csv", runs);
  }
};

FitResult envelope_fit(const RunTable& table, EdgePolicy edge) {
  SelectionOptions options;
  options.include_unannealed = true;
  options.n_definition = ParameterCount::kTotal;
  FitOptions fit;
  fit.approach = 1;
  fit.edge = edge;
  return fit_law(*make_chinchilla(), select_runs(table, options), fit);
}

TEST_CASE("approach 1 finds the exponents in curves that its runs' ends cannot give") {
  SweepFolder folder;
  folder.write(0, true);
  const double expected = .5;  // beta / (alpha + beta)
  for (const CurveKind kind : {CurveKind::kTraining, CurveKind::kValidation}) {
    const RunTable table = read_curves(folder.path(), kind);
    CHECK(table.rows() > 14 * 15);
    const FitResult fit = envelope_fit(table, EdgePolicy::kDrop);
    INFO("a " << fit.params[0] << ", b " << fit.params[1]);
    CHECK(std::abs(fit.params[0] - expected) < .02);
    CHECK(std::abs(fit.params[0] + fit.params[1] - 1) < .01);
    CHECK_THAT(fit.warnings.at(0), Catch::Contains("left out"));
    // The smallest size stays the best below its own optimum, for want of a smaller one.
    const FitResult biased = envelope_fit(table, EdgePolicy::kRefuse);
    CHECK(biased.params[0] < fit.params[0]);
    CHECK_THAT(biased.warnings.at(0), Catch::Contains("--edge drop"));
  }
}

TEST_CASE("smoothing takes the noise of batches out and leaves the curve where it was") {
  SweepFolder folder;
  folder.write(.1, false);
  const RunTable table = read_curves(folder.path(), CurveKind::kTraining);
  double squares = 0, mean = 0;
  for (size_t row = 0; row < table.rows(); ++row) {
    const double error =
        table.number(row, "val_loss") -
        SweepFolder::law(table.number(row, "n_total"), table.number(row, "tokens"));
    squares += error * error / double(table.rows());
    mean += error / double(table.rows());
  }
  CHECK(std::sqrt(squares) < .04);
  CHECK(std::abs(mean) < .006);
  CHECK_THROWS_WITH(read_curves(folder.path(), CurveKind::kValidation),
                    Catch::Contains("train.evaluate_every"));
  std::ofstream(folder.path() + "/runs/r3/metrics.jsonl", std::ios::app) << "{\"step\": 40";
  CHECK_THROWS_WITH(read_curves(folder.path(), CurveKind::kTraining),
                    Catch::Contains("r3/metrics.jsonl:402:"));
}

TEST_CASE("only the end of an annealed run is annealed") {
  SweepFolder folder;
  folder.write(0, false);
  const RunTable table = read_curves(folder.path(), CurveKind::kTraining);
  int annealed = 0;
  for (size_t row = 0; row < table.rows(); ++row) annealed += int(table.number(row, "annealed"));
  CHECK(annealed == 14);
}

}  // namespace
}  // namespace degu::scaling
