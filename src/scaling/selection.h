// From a run table to what a law is fitted to: which column is N, which rows take part, and why the
// others do not.
#pragma once

#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "scaling/fit/objective.h"
#include "scaling/laws/multipliers.h"
#include "scaling/run_table.h"

namespace degu::scaling {

// "N=Model Size,C=Training FLOP,L=loss,D=1.3e11" as key → column, or a number that holds for every
// row. Keys: N D C L (parameters, tokens, training FLOPs, loss in nats), E K G S (experts, top-k,
// granularity, shared experts), U (unique tokens), budget, run. ConfigError for another key.
using ColumnMap = std::map<std::string, std::string>;
ColumnMap parse_columns(std::string_view text);

struct SelectionOptions {
  ColumnMap columns;
  std::vector<std::string> where;  // "column op value", op one of == != < <= > >=; all must hold
  int drop_highest_loss = 0;       // after everything else
  std::string last_by,
      last_order;  // of the rows equal in `last_by` keep the one with the largest `last_order`
  bool include_unannealed = false;
  bool all_learning_rates =
      false;  // else of runs that differ in their rate only the best rate's stay
  ParameterCount n_definition = ParameterCount::kTotal;
  bool dense_only = false;  // rows with experts are left out
  bool needs_tokens = true;
};

struct Excluded {
  int row;
  std::string place;  // file:line
  std::string what;   // the run's name, or its N, D and loss
  std::string reason;
};

struct Selection {
  std::vector<Observation> data;
  std::vector<double> flops;        // C of each observation: the table's, or 6 N D
  std::vector<double> budget;       // the budget column; empty when there is none
  std::vector<std::string> run;     // names, for curves of one run; the line when there is none
  std::vector<ExpertGroup> groups;  // dense first; Observation::x.group indexes it
  std::vector<Excluded> excluded;
  std::vector<std::string> notes;  // which column or arithmetic gave what
  ColumnMap used;                  // key → column or expression
  // Standard deviation of the loss among runs that differ only in their seed, when there are such.
  std::optional<double> seed_sigma;
  size_t size() const { return data.size(); }
};

// DataError for a missing column or a bad value (file:line, column, value).
Selection select_runs(const RunTable& table, const SelectionOptions& options);

}  // namespace degu::scaling
