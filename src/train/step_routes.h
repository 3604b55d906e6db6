// The experts of a whole training run: recorded as it trains (`train.record_routes`), and replayed
// (`train.replay_routes`). Sequences are numbered through the run, step * batch + place in the
// batch, so that files do not depend on the layout of ranks.
#pragma once

#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "comm/communicator.h"
#include "train/replay.h"
#include "train/route_file.h"
#include "train/step_plan.h"

namespace degu {

// One step's batch and the experts that its tokens took.
class StepRoutes {
 public:
  StepRoutes(const ModelShape& shape, const StepPlan& plan);

  void begin();
  // After the forward pass over `batch`, whose first sequence is number `first` of the step's.
  void record(Context& context, int64_t first, const SequenceBatch& batch,
              const Activations& activations);
  // What the ranks recorded, on all of them. Collective.
  void share(Context& context, Communicator& world);
  // As lines of a file of routes.
  std::string lines(int64_t step) const;

 private:
  int64_t sequences_, length_, layers_, top_k_;
  // By token of the batch: 1 + token id, then experts by MoE layer and slot.
  std::vector<int32_t> rows_;
  int64_t row_width() const { return 1 + layers_ * top_k_; }
};

// <run>/routes.jsonl, on rank 0.
class RouteLog {
 public:
  // Keeps the first `lines` lines of the file, which will be written again from there; with 0 the
  // file starts empty. DataError when it has fewer: those steps were not recorded.
  RouteLog(const std::string& path, int64_t lines);
  void write(const std::string& lines);

 private:
  struct Close {
    void operator()(std::FILE* file) const { std::fclose(file); }
  };
  std::string path_;
  std::unique_ptr<std::FILE, Close> file_;
};

// The routes of a run, read step by step. Every rank reads the file, and of it parses its own
// sequences.
class RouteReplay {
 public:
  // Errors as RouteReader.
  RouteReplay(std::string path, const ModelShape& shape, const StepPlan& plan);

  // Reads the routes of a rank's passes over step `step`: batches[m] begins with sequence firsts[m]
  // of the step's. DataError with file:line when the file ends before, has other tokens in another
  // order, or tokens whose experts nobody recorded.
  void read(int64_t step, std::span<const SequenceBatch> batches, std::span<const int64_t> firsts);
  const std::vector<RecordedRoutes>& routes() const { return routes_; }  // by pass

 private:
  void read_sequence(int64_t number, const SequenceBatch& batch, int64_t place,
                     RecordedRoutes& out);
  [[noreturn]] void too_short(int64_t number) const;

  std::string path_;
  ModelShape shape_;
  int64_t sequences_, length_;
  std::unique_ptr<RouteReader> reader_;
  RouteLine line_;
  std::vector<RecordedRoutes> routes_;
};

}  // namespace degu
