// The table of finished runs that fits and plots read: a sweep's own, or anyone's.
//
// A table is columns by name. `RunTable::read` takes a CSV (plain or gzip), degu's HDF5 table, or a
// sweep's folder (its runs.csv). The columns that degu itself writes are the fields of `RunRecord`:
// that list is the only one.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "config/fields.h"

namespace degu::scaling {

struct RunRecord {
  std::string run;          // name within the sweep
  std::string config_hash;  // of the resolved configuration
  std::string status = "done";
  int64_t width = 0, layers = 0;
  int64_t experts = 1, top_k = 1, expert_width = 0;
  double granularity = 1;
  int64_t shared_experts = 0;
  int64_t n_total = 0, n_active = 0, n_total_no_embedding = 0, n_active_no_embedding = 0,
          n_active_with_head = 0;
  int64_t tokens = 0, unique_tokens = 0;
  double flops = 0, budget = 0;
  double learning_rate = 0;
  int64_t seed = 0, annealed = 1;
  double val_loss = 0, bits_per_byte = 0;
  double seconds = 0, utilisation = 0;
  int64_t ranks = 1, threads = 1;
  int64_t attempts = 1;
  std::string reason;

  void fields(Fields& f) {
    f("run", run, "name of the run within its sweep");
    f("config_hash", config_hash, "hash of the resolved configuration");
    f("status", status, "done, diverged, failed, invalid; only `done` is fitted");
    f("width", width, "residual width D");
    f("layers", layers, "blocks");
    f("experts", experts, "routed experts per MoE block; 1: dense");
    f("top_k", top_k, "experts each token visits; 1: dense");
    f("expert_width", expert_width, "hidden width of one expert (of the feed-forward when dense)");
    f("granularity", granularity, "feed-forward width / expert width; 1: dense");
    f("shared_experts", shared_experts, "experts every token visits");
    f("n_total", n_total, "all parameters");
    f("n_active", n_active, "all but unvisited experts");
    f("n_total_no_embedding", n_total_no_embedding, "all experts, neither embedding nor head");
    f("n_active_no_embedding", n_active_no_embedding, "one token's, neither embedding nor head");
    f("n_active_with_head", n_active_with_head, "one token's, embedding and unembedding once each");
    f("tokens", tokens, "training tokens");
    f("unique_tokens", unique_tokens, "distinct tokens among them; 0: all");
    f("flops", flops, "training FLOPs by degu's exact count");
    f("budget", budget, "FLOPs of the isoFLOP budget the run belongs to; 0: none");
    f("learning_rate", learning_rate, "peak learning rate (at the base width under muP)");
    f("seed", seed, "seed of initialisation and data order");
    f("annealed", annealed, "1: the learning rate was decayed to its end before val_loss");
    f("val_loss", val_loss, "validation loss at the end, nats per token");
    f("bits_per_byte", bits_per_byte, "the same per byte of text");
    f("seconds", seconds, "wall-clock time of training");
    f("utilisation", utilisation, "share of the measured peak of the cores it ran on");
    f("ranks", ranks, "ranks the run was spread over");
    f("threads", threads, "threads per rank");
    f("attempts", attempts, "times it was started");
    f("reason", reason, "why it is not done");
  }
};

// "run", "config_hash", … in the order of the table.
std::vector<std::string> run_columns();

// Writes `path` (CSV) whole or not at all.
void write_runs_csv(const std::string& path, std::span<const RunRecord> runs);
// The same columns as one HDF5 dataset each: docs/formats.
void write_runs_hdf5(const std::string& path, std::span<const RunRecord> runs);
// Back from either. DataError when a column is missing or a value does not parse.
std::vector<RunRecord> read_runs(const std::string& path);

class RunTable {
 public:
  static RunTable read(const std::string& path);
  // Of records that came from `path`, which places name.
  static RunTable of(const std::string& path, std::span<const RunRecord> runs);

  const std::string& path() const { return path_; }  // of the file that was read
  size_t rows() const { return cells_.size(); }
  const std::vector<std::string>& columns() const { return columns_; }
  bool has(std::string_view column) const { return find(column) >= 0; }
  // DataError naming the file and the nearest column when there is none of that name.
  const std::string& text(size_t row, std::string_view column) const;
  // DataError with file:line, column and value when it is not a number.
  double number(size_t row, std::string_view column) const;
  bool empty(size_t row, std::string_view column) const { return text(row, column).empty(); }
  std::string place(size_t row) const;     // "file:line"
  uint64_t hash() const { return hash_; }  // of names and cells

 private:
  int find(std::string_view column) const;
  int require(std::string_view column) const;
  void set_hash();
  std::string path_;
  std::vector<std::string> columns_;
  std::vector<std::vector<std::string>> cells_;
  std::vector<int> lines_;  // empty for HDF5: places then say the row
  uint64_t hash_ = 0;
};

}  // namespace degu::scaling
