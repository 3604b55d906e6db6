#include "scaling/run_table.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <filesystem>
#include <functional>
#include <limits>
#include <utility>

#include "base/error.h"
#include "base/random.h"
#include "io/atomic_file.h"
#include "io/hdf5.h"
#include "io/reserve.h"
#include "scaling/csv.h"

namespace degu::scaling {
namespace {

// Room to reserve on the disk: object headers of all columns, and a row with its texts.
constexpr int64_t kFileOverhead = 256 << 10;
constexpr int64_t kRunBytes = 4 << 10;

// Shortest text that reads back as the same number.
template <class T>
std::string number_text(T value) {
  char buffer[64];
  const auto [end, code] = std::to_chars(buffer, buffer + sizeof buffer, value);
  return {buffer, end};
}

template <class T>
bool parse_number(std::string_view text, T& value) {
  while (!text.empty() && text.front() == ' ') text.remove_prefix(1);
  while (!text.empty() && text.back() == ' ') text.remove_suffix(1);
  if (text.starts_with('+')) text.remove_prefix(1);
  if (text.empty()) return false;
  const auto [end, code] = std::from_chars(text.data(), text.data() + text.size(), value);
  return code == std::errc() && end == text.data() + text.size();
}

// Visits the scalar fields of a RunRecord. A run table has no maps, lists or booleans.
class FlatFields : public Fields {
 protected:
  [[noreturn]] static void unsupported(const char* name) {
    throw DataError("run table: field {} is not a number or a text", name);
  }
  void leaf(const char* name, bool&, const char*) override { unsupported(name); }
  void leaf(const char* name, int&, const char*) override { unsupported(name); }
  void leaf(const char* name, std::vector<int64_t>&, const char*) override { unsupported(name); }
  void leaf(const char* name, std::vector<double>&, const char*) override { unsupported(name); }
  void leaf(const char* name, std::vector<std::string>&, const char*) override {
    unsupported(name);
  }
  void choice(const char* name, int&, std::span<const std::string_view>, const char*) override {
    unsupported(name);
  }
  bool begin_map(const char* name, const char*) override { unsupported(name); }
  void end_map() override {}
  std::optional<size_t> begin_list(const char* name, size_t, const char*) override {
    unsupported(name);
  }
  void begin_entry(size_t) override {}
  void end_entry() override {}
  void end_list() override {}
};

// Each field as its column's name and its value as text.
class FieldWriter final : public FlatFields {
 public:
  std::vector<std::string> names, values;

 protected:
  using FlatFields::leaf;
  void leaf(const char* name, int64_t& value, const char*) override {
    put(name, number_text(value));
  }
  void leaf(const char* name, double& value, const char*) override {
    put(name, number_text(value));
  }
  void leaf(const char* name, std::string& value, const char*) override { put(name, value); }

 private:
  void put(const char* name, std::string value) {
    names.emplace_back(name);
    values.push_back(std::move(value));
  }
};

class FieldReader final : public FlatFields {
 public:
  FieldReader(const RunTable& table, size_t row) : table_(table), row_(row) {}

 protected:
  using FlatFields::leaf;
  void leaf(const char* name, int64_t& value, const char*) override {
    value = static_cast<int64_t>(table_.number(row_, name));
  }
  void leaf(const char* name, double& value, const char*) override {
    value = table_.number(row_, name);
  }
  void leaf(const char* name, std::string& value, const char*) override {
    value = table_.text(row_, name);
  }

 private:
  const RunTable& table_;
  size_t row_;
};

// One dataset per column, of the column's own type.
class ColumnWriter final : public FlatFields {
 public:
  ColumnWriter(h5::Group& group, std::span<const RunRecord> runs) : group_(group), runs_(runs) {}
  void write() {
    RunRecord names;
    names.fields(*this);
  }

 protected:
  using FlatFields::leaf;
  void leaf(const char* name, int64_t&, const char*) override { column<int64_t>(name); }
  void leaf(const char* name, double&, const char*) override { column<double>(name); }
  void leaf(const char* name, std::string&, const char*) override {
    std::vector<std::string> values;
    for (const std::string& text : texts(name)) values.push_back(text);
    group_.write_strings(name, values);
  }

 private:
  std::vector<std::string> texts(const char* name) const {
    std::vector<std::string> out;
    for (RunRecord run : runs_) {
      FieldWriter writer;
      run.fields(writer);
      const auto at = std::find(writer.names.begin(), writer.names.end(), name);
      out.push_back(writer.values[static_cast<size_t>(at - writer.names.begin())]);
    }
    return out;
  }
  template <class T>
  void column(const char* name) {
    std::vector<T> values;
    for (const std::string& text : texts(name)) {
      values.emplace_back();
      parse_number(text, values.back());
    }
    group_.write(name, values);
  }
  h5::Group& group_;
  std::span<const RunRecord> runs_;
};

size_t edit_distance(std::string_view a, std::string_view b) {
  std::vector<size_t> row(b.size() + 1);
  for (size_t j = 0; j <= b.size(); ++j) row[j] = j;
  for (size_t i = 1; i <= a.size(); ++i) {
    size_t diagonal = std::exchange(row[0], i);
    for (size_t j = 1; j <= b.size(); ++j) {
      const size_t change = diagonal + (std::tolower(a[i - 1]) != std::tolower(b[j - 1]));
      diagonal = row[j];
      row[j] = std::min({row[j] + 1, row[j - 1] + 1, change});
    }
  }
  return row[b.size()];
}

}  // namespace

std::vector<std::string> run_columns() {
  RunRecord record;
  FieldWriter writer;
  record.fields(writer);
  return writer.names;
}

void write_runs_csv(const std::string& path, std::span<const RunRecord> runs) {
  std::string out;
  const auto add_line = [&](const std::vector<std::string>& cells) {
    for (size_t i = 0; i < cells.size(); ++i) out += (i ? "," : "") + csv_cell(cells[i]);
    out += '\n';
  };
  add_line(run_columns());
  for (RunRecord run : runs) {
    FieldWriter writer;
    run.fields(writer);
    add_line(writer.values);
  }
  write_file_atomic(path, out);
}

void write_runs_hdf5(const std::string& path, std::span<const RunRecord> runs) {
  AtomicFile target(path);
  {
    h5::File file = h5::File::create(target.temporary(),
                                     kFileOverhead + kRunBytes * static_cast<int64_t>(runs.size()));
    file.set_attribute("format", "degu run table");
    file.set_attribute("version", int64_t{1});
    {
      h5::Group group = file.create_group("runs");
      ColumnWriter(group, runs).write();
      RunRecord names;
      FieldWriter order;
      names.fields(order);
      group.write_strings("columns", order.names);
    }
    file.close();
  }
  release_reserve(target.temporary());
  target.commit();
}

std::vector<RunRecord> read_runs(const std::string& path) {
  const RunTable table = RunTable::read(path);
  std::vector<RunRecord> out(table.rows());
  for (size_t i = 0; i < out.size(); ++i) {
    FieldReader reader(table, i);
    out[i].fields(reader);
  }
  return out;
}

RunTable RunTable::read(const std::string& path) {
  RunTable out;
  out.path_ = path;
  if (std::filesystem::is_directory(path)) {
    out.path_ = (std::filesystem::path(path) / "runs.csv").string();
    if (!std::filesystem::exists(out.path_))
      throw IoError("{}: no runs.csv in this folder; give a sweep's folder, a CSV or an HDF5 table",
                    path);
  }
  if (std::filesystem::exists(out.path_) && h5::File::is_hdf5(out.path_)) {
    const h5::File file = h5::File::open(out.path_);
    const h5::Group group = file.group("runs");
    out.columns_ = group.read_strings("columns");
    for (const std::string& column : out.columns_) {
      std::vector<std::string> values;
      const h5::Dataset data = group.dataset(column);
      const bool text = [&] {
        try {
          data.element_type();
          return false;
        } catch (const DataError&) {
          return true;
        }
      }();
      if (text) {
        values = group.read_strings(column);
      } else if (data.element_type() == h5::ElementType::kI64) {
        for (const int64_t v : data.read<int64_t>()) values.push_back(number_text(v));
      } else {
        for (const double v : data.read<double>()) values.push_back(number_text(v));
      }
      out.cells_.resize(std::max(out.cells_.size(), values.size()));
      for (size_t i = 0; i < values.size(); ++i) out.cells_[i].push_back(std::move(values[i]));
    }
    for (const std::vector<std::string>& row : out.cells_)
      if (row.size() != out.columns_.size())
        throw DataError("{}: /runs holds columns of different lengths; write the table again",
                        out.path_);
  } else {
    CsvTable csv = read_csv(out.path_);
    out.columns_ = std::move(csv.columns);
    out.cells_ = std::move(csv.rows);
    out.lines_ = std::move(csv.lines);
  }
  out.set_hash();
  return out;
}

RunTable RunTable::of(const std::string& path, std::span<const RunRecord> runs) {
  RunTable out;
  out.path_ = path;
  out.columns_ = run_columns();
  for (RunRecord run : runs) {
    FieldWriter writer;
    run.fields(writer);
    out.cells_.push_back(std::move(writer.values));
  }
  out.set_hash();
  return out;
}

void RunTable::set_hash() {
  hash_ = hash_name("run table");
  for (const std::string& column : columns_) hash_ = hash_name(column + "\n", hash_);
  for (const std::vector<std::string>& row : cells_)
    for (const std::string& cell : row) hash_ = hash_name(cell + "\n", hash_);
}

int RunTable::find(std::string_view column) const {
  const auto at = std::find(columns_.begin(), columns_.end(), column);
  return at == columns_.end() ? -1 : static_cast<int>(at - columns_.begin());
}

int RunTable::require(std::string_view column) const {
  const int at = find(column);
  if (at >= 0) return at;
  std::string nearest;
  size_t best = std::numeric_limits<size_t>::max();
  for (const std::string& name : columns_) {
    const size_t distance = edit_distance(column, name);
    if (distance < best) {
      best = distance;
      nearest = name;
    }
  }
  throw DataError("{}: no column \"{}\"; the nearest is \"{}\"; name it with --columns", path_,
                  column, nearest);
}

const std::string& RunTable::text(size_t row, std::string_view column) const {
  return cells_.at(row)[static_cast<size_t>(require(column))];
}

double RunTable::number(size_t row, std::string_view column) const {
  const std::string& cell = text(row, column);
  double value = 0;
  if (!parse_number(cell, value))
    throw DataError(
        "{}: column \"{}\" holds \"{}\", which is not a number; mend it or leave the row "
        "out with --where",
        place(row), column, cell);
  return value;
}

std::string RunTable::place(size_t row) const {
  return lines_.empty() ? fmt::format("{}: row {}", path_, row + 1)
                        : fmt::format("{}:{}", path_, lines_[row]);
}

}  // namespace degu::scaling
