#include "scaling/selection.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <set>
#include <tuple>
#include <utility>

#include "base/error.h"

namespace degu::scaling {
namespace {

std::string_view trimmed(std::string_view text) {
  while (!text.empty() && (text.front() == ' ' || text.front() == '\t')) text.remove_prefix(1);
  while (!text.empty() && (text.back() == ' ' || text.back() == '\t')) text.remove_suffix(1);
  return text;
}

std::optional<double> as_number(std::string_view text) {
  text = trimmed(text);
  double value = 0;
  const auto [end, code] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (text.empty() || code != std::errc() || end != text.data() + text.size()) return {};
  return value;
}

struct Condition {
  std::string column, op, value;

  explicit Condition(std::string_view text) {
    constexpr std::array<std::string_view, 7> kOps = {"==", "!=", "<=", ">=", "<", ">", "="};
    for (const std::string_view candidate : kOps) {
      const size_t at = text.find(candidate);
      if (at == std::string_view::npos || at == 0) continue;
      column = trimmed(text.substr(0, at));
      op = candidate == "=" ? "==" : candidate;
      value = trimmed(text.substr(at + candidate.size()));
      return;
    }
    throw ConfigError("--where \"{}\": write it as: column op value, op one of == != < <= > >=",
                      text);
  }

  bool holds(const RunTable& table, size_t row) const {
    const std::string& cell = table.text(row, column);
    const std::optional<double> a = as_number(cell), b = as_number(value);
    if (op == "==" || op == "!=") {
      const bool equal = a && b ? *a == *b : trimmed(cell) == value;
      return equal == (op == "==");
    }
    if (!b)
      throw ConfigError("--where: {} {} \"{}\" needs a number on the right", column, op, value);
    const double left = table.number(row, column);
    return op == "<" ? left < *b : op == "<=" ? left <= *b : op == ">" ? left > *b : left >= *b;
  }
};

// Where each quantity comes from, settled once per table.
class Sources {
 public:
  Sources(const RunTable& table, const SelectionOptions& options) : table_(table) {
    const std::string n_column{enum_names(options.n_definition)[size_t(options.n_definition)]};
    settle("N", options.columns, {n_column});
    settle("D", options.columns, {"tokens"});
    settle("C", options.columns, {"flops"});
    settle("L", options.columns, {"val_loss", "loss"});
    settle("E", options.columns, {"experts"});
    settle("K", options.columns, {"top_k"});
    settle("G", options.columns, {"granularity"});
    settle("S", options.columns, {"shared_experts"});
    settle("U", options.columns, {"unique_tokens"});
    settle("budget", options.columns, {"budget"});
    settle("run", options.columns, {"run"});
    if (!has("L"))
      throw DataError("{}: no column of losses; name it with --columns L=…", table.path());
    if (!has("N") && !(has("C") && has("D")))
      throw DataError("{}: no column \"{}\" for N; name it with --columns N=…", table.path(),
                      n_column);
    if (options.needs_tokens && !has("D") && !(has("C") && has("N")))
      throw DataError("{}: neither tokens nor FLOPs; name one with --columns D=… or C=…",
                      table.path());
  }

  bool has(const std::string& key) const { return used_.contains(key); }
  const ColumnMap& used() const { return used_; }

  // The quantity in this row; `missing` where there is no column or the cell is empty.
  double value(const std::string& key, size_t row, double missing) const {
    const auto at = used_.find(key);
    if (at == used_.end()) return missing;
    if (const auto constant = constants_.find(key); constant != constants_.end())
      return constant->second;
    return table_.empty(row, at->second) ? missing : table_.number(row, at->second);
  }

 private:
  void settle(const std::string& key, const ColumnMap& given,
              std::initializer_list<std::string> defaults) {
    if (const auto at = given.find(key); at != given.end()) {
      if (table_.has(at->second)) {
        used_[key] = at->second;
      } else if (const std::optional<double> constant = as_number(at->second)) {
        used_[key] = at->second;
        constants_[key] = *constant;
      } else {
        table_.text(0, at->second);  // throws with the nearest name
      }
      return;
    }
    for (const std::string& name : defaults) {
      if (!table_.has(name)) continue;
      used_[key] = name;
      return;
    }
  }

  const RunTable& table_;
  ColumnMap used_;
  std::map<std::string, double> constants_;
};

class Selector {
 public:
  Selector(const RunTable& table, const SelectionOptions& options)
      : table_(table), options_(options), sources_(table, options) {
    for (const std::string& text : options.where) conditions_.emplace_back(text);
  }

  Selection run() {
    out_.used = sources_.used();
    std::vector<size_t> rows = keep_last();
    for (const size_t row : rows) take(row);
    keep_best_rates();
    drop_highest();
    if (out_.data.empty())
      throw DataError("{}: none of its {} rows is left; see the reasons above", table_.path(),
                      table_.rows());
    set_groups();
    out_.seed_sigma = seed_sigma();
    if (!sources_.has("C")) out_.used["C"] = "6 N D";
    if (!sources_.has("D") && options_.needs_tokens) out_.used["D"] = "C/(6 N)";
    if (!sources_.has("N")) out_.used["N"] = "C/(6 D)";
    return std::move(out_);
  }

 private:
  void exclude(size_t row, std::string what, std::string reason) {
    out_.excluded.push_back(
        {static_cast<int>(row), table_.place(row), std::move(what), std::move(reason)});
  }
  std::string label(size_t row) const {
    const auto at = sources_.used().find("run");
    return at == sources_.used().end() ? std::string() : table_.text(row, at->second);
  }

  // Rows that pass --where, and of each `last_by` the last. Rows dropped here are counted, not
  // listed: a table of curves has thousands.
  std::vector<size_t> keep_last() {
    std::vector<size_t> rows;
    std::map<std::string, size_t> failed;
    for (size_t row = 0; row < table_.rows(); ++row) {
      const auto bad = std::find_if(conditions_.begin(), conditions_.end(),
                                    [&](const auto& c) { return !c.holds(table_, row); });
      if (bad == conditions_.end()) {
        rows.push_back(row);
      } else {
        ++failed[bad->column + " " + bad->op + " " + bad->value];
      }
    }
    for (const auto& [condition, count] : failed)
      out_.notes.push_back(fmt::format("{} rows left out: not {}", count, condition));
    if (options_.last_by.empty()) return rows;
    std::map<std::string, size_t> last;
    for (const size_t row : rows) {
      const auto [at, fresh] = last.try_emplace(table_.text(row, options_.last_by), row);
      if (!fresh &&
          table_.number(row, options_.last_order) > table_.number(at->second, options_.last_order))
        at->second = row;
    }
    std::vector<size_t> kept;
    kept.reserve(last.size());
    for (const auto& [key, row] : last) kept.push_back(row);
    std::sort(kept.begin(), kept.end());
    out_.notes.push_back(fmt::format("{} rows left out: not the last {} of their {}",
                                     rows.size() - kept.size(), options_.last_order,
                                     options_.last_by));
    return kept;
  }

  void take(size_t row) {
    if (table_.has("status")) {
      const std::string& status = table_.text(row, "status");
      if (status != "done" && !status.empty())
        return exclude(row, label(row), fmt::format("status is {}", status));
    }
    if (!options_.include_unannealed && table_.has("annealed") &&
        table_.number(row, "annealed") == 0)
      return exclude(row, label(row), "learning rate not annealed (--include-unannealed takes it)");
    const double nan = std::nan("");
    Observation o;
    o.row = static_cast<int>(row);
    o.loss = sources_.value("L", row, nan);
    o.x.n = sources_.value("N", row, nan);
    o.x.d = sources_.value("D", row, nan);
    double c = sources_.value("C", row, nan);
    if (std::isnan(o.x.d)) o.x.d = options_.needs_tokens ? c / (6 * o.x.n) : 1;
    if (std::isnan(o.x.n)) o.x.n = c / (6 * o.x.d);
    if (std::isnan(c)) c = 6 * o.x.n * o.x.d;
    o.x.experts = std::max(1.0, sources_.value("E", row, 1));
    const bool dense = o.x.experts <= 1;
    o.x.top_k = dense ? 1 : sources_.value("K", row, 1);
    o.x.granularity = dense ? 1 : sources_.value("G", row, 1);
    shared_[o.row] = dense ? 0 : sources_.value("S", row, 0);
    o.x.unique_tokens = sources_.value("U", row, 0);
    const std::string what = fmt::format("{}{}N {:.6g}, D {:.6g}, loss {:.6g}", label(row),
                                         label(row).empty() ? "" : ": ", o.x.n, o.x.d, o.loss);
    for (const double v : {o.loss, o.x.n, o.x.d, c})
      if (!(v > 0) || !std::isfinite(v))
        return exclude(row, what, "loss, N, D and C must be positive and finite");
    if (options_.dense_only && !dense)
      return exclude(row, what, "has experts and the law is for dense models");
    out_.data.push_back(o);
    out_.flops.push_back(c);
    out_.run.push_back(label(row).empty() ? fmt::format("row {}", row) : label(row));
    if (sources_.has("budget")) out_.budget.push_back(sources_.value("budget", row, 0));
  }

  ExpertGroup kind_of(const Observation& o) const {
    return {o.x.experts, o.x.top_k, o.x.granularity, shared_.at(o.row)};
  }

  void erase(size_t at, std::string what, std::string reason) {
    exclude(static_cast<size_t>(out_.data[at].row), std::move(what), std::move(reason));
    const auto offset = static_cast<std::ptrdiff_t>(at);
    out_.data.erase(out_.data.begin() + offset);
    out_.flops.erase(out_.flops.begin() + offset);
    out_.run.erase(out_.run.begin() + offset);
    if (!out_.budget.empty()) out_.budget.erase(out_.budget.begin() + offset);
  }

  // A scan of learning rates is not a sample of a law: of runs equal in model and tokens those at
  // the rate with the lowest mean loss stay.
  void keep_best_rates() {
    if (options_.all_learning_rates || !table_.has("learning_rate")) return;
    using Key = std::tuple<double, double, ExpertGroup>;
    const auto key = [&](const Observation& o) { return Key{o.x.n, o.x.d, kind_of(o)}; };
    const auto rate = [&](const Observation& o) {
      return table_.number(static_cast<size_t>(o.row), "learning_rate");
    };
    std::map<Key, std::map<double, std::pair<double, int>>> sums;
    for (const Observation& o : out_.data) {
      auto& [sum, count] = sums[key(o)][rate(o)];
      sum += o.loss;
      ++count;
    }
    for (size_t i = out_.data.size(); i-- > 0;) {
      const auto& rates = sums[key(out_.data[i])];
      const auto best =
          std::min_element(rates.begin(), rates.end(), [](const auto& a, const auto& b) {
            return a.second.first / a.second.second < b.second.first / b.second.second;
          });
      const double own = rate(out_.data[i]);
      if (own == best->first) continue;
      erase(i, out_.run[i],
            fmt::format("learning rate {:g} is not the best for this model, {:g} is", own,
                        best->first));
    }
  }

  void drop_highest() {
    for (int i = 0; i < options_.drop_highest_loss && !out_.data.empty(); ++i) {
      const auto worst = std::max_element(
          out_.data.begin(), out_.data.end(),
          [](const Observation& a, const Observation& b) { return a.loss < b.loss; });
      erase(static_cast<size_t>(worst - out_.data.begin()),
            fmt::format("N {:.6g}, D {:.6g}, loss {:.6g}, D/N {:.3g}", worst->x.n, worst->x.d,
                        worst->loss, worst->x.d / worst->x.n),
            fmt::format("one of the {} highest losses (--drop-highest-loss)",
                        options_.drop_highest_loss));
    }
  }

  void set_groups() {
    std::set<ExpertGroup> kinds;
    for (const Observation& o : out_.data) kinds.insert(kind_of(o));
    out_.groups.assign(kinds.begin(), kinds.end());  // dense (one expert) sorts first
    for (Observation& o : out_.data) {
      const ExpertGroup group = kind_of(o);
      const auto at = std::lower_bound(out_.groups.begin(), out_.groups.end(), group);
      o.x.group = static_cast<int>(at - out_.groups.begin());
    }
  }

  std::optional<double> seed_sigma() const {
    if (!table_.has("seed")) return {};
    using Key = std::tuple<double, double, int, double>;
    std::map<Key, std::vector<double>> replicates;
    for (const Observation& o : out_.data) {
      const size_t row = static_cast<size_t>(o.row);
      const double rate = table_.has("learning_rate") ? table_.number(row, "learning_rate") : 0;
      replicates[{o.x.n, o.x.d, o.x.group, rate}].push_back(o.loss);
    }
    double squares = 0;
    size_t free = 0;
    for (const auto& [key, losses] : replicates) {
      double mean = 0;
      for (const double l : losses) mean += l / static_cast<double>(losses.size());
      for (const double l : losses) squares += (l - mean) * (l - mean);
      free += losses.size() - 1;
    }
    if (free == 0) return {};
    return std::sqrt(squares / static_cast<double>(free));
  }

  const RunTable& table_;
  const SelectionOptions& options_;
  Sources sources_;
  std::vector<Condition> conditions_;
  std::map<int, double> shared_;  // of each row taken
  Selection out_;
};

}  // namespace

ColumnMap parse_columns(std::string_view text) {
  constexpr std::array<std::string_view, 11> kKeys = {"N", "D", "C", "L",      "E",  "K",
                                                      "G", "S", "U", "budget", "run"};
  ColumnMap out;
  size_t at = 0;
  while (at < text.size()) {
    const size_t equals = text.find('=', at);
    if (equals == std::string_view::npos)
      throw ConfigError("--columns \"{}\": write it as N=column,D=column,…", text.substr(at));
    const std::string key{trimmed(text.substr(at, equals - at))};
    if (std::find(kKeys.begin(), kKeys.end(), key) == kKeys.end())
      throw ConfigError("--columns: \"{}\" is none of N, D, C, L, E, K, G, S, U, budget, run", key);
    size_t end;
    std::string value;
    if (equals + 1 < text.size() && text[equals + 1] == '"') {
      end = text.find('"', equals + 2);
      if (end == std::string_view::npos)
        throw ConfigError("--columns {}: the quote is never closed", key);
      value = text.substr(equals + 2, end - equals - 2);
      end = text.find(',', end);
    } else {
      end = text.find(',', equals);
      value = trimmed(text.substr(
          equals + 1, end == std::string_view::npos ? std::string_view::npos : end - equals - 1));
    }
    if (value.empty()) throw ConfigError("--columns {}: no column named", key);
    out[key] = value;
    at = end == std::string_view::npos ? text.size() : end + 1;
  }
  return out;
}

Selection select_runs(const RunTable& table, const SelectionOptions& options) {
  return Selector(table, options).run();
}

}  // namespace degu::scaling
