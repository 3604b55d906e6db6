#include "scaling/csv.h"

#include <zlib.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <memory>
#include <set>
#include <utility>

#include "base/error.h"

namespace degu::scaling {
namespace {

// The whole file, inflated when it is gzip (zlib passes other files through).
std::string slurp(const std::string& path) {
  if (std::filesystem::is_directory(path)) throw IoError("{}: is a folder, not a table", path);
  errno = 0;
  const std::unique_ptr<gzFile_s, int (*)(gzFile)> file(gzopen(path.c_str(), "rb"), gzclose_r);
  if (!file) throw IoError("{}: cannot be opened: {}", path, std::strerror(errno));
  std::string out;
  std::string buffer(1 << 16, '\0');
  while (true) {
    const int got = gzread(file.get(), buffer.data(), static_cast<unsigned>(buffer.size()));
    if (got > 0) out.append(buffer.data(), static_cast<size_t>(got));
    if (got == static_cast<int>(buffer.size())) continue;
    int code = Z_OK;
    const char* reason = gzerror(file.get(), &code);
    if (got < 0 || (code != Z_OK && code != Z_STREAM_END))
      throw DataError("{}: damaged or truncated gzip after {} bytes ({}); fetch it again", path,
                      out.size(), reason);
    if (got == 0) return out;
  }
}

class Parser {
 public:
  Parser(const std::string& path, std::string text) : path_(path), text_(std::move(text)) {
    if (text_.starts_with("\xEF\xBB\xBF")) at_ = 3;  // byte order mark
  }

  // The next line that is neither empty nor a comment; false at the end.
  bool next(std::vector<std::string>& cells) {
    while (at_ < text_.size()) {
      const char c = text_[at_];
      if (c == '\n' || c == '\r') {
        end_of_line();
      } else if (c == '#') {
        at_ = std::min(text_.find('\n', at_), text_.size());
      } else {
        record(cells);
        return true;
      }
    }
    return false;
  }
  int line() const { return record_line_; }

 private:
  void record(std::vector<std::string>& cells) {
    record_line_ = line_;
    cells.assign(1, {});
    bool quoted_cell = false;
    for (; at_ < text_.size(); ++at_) {
      const char c = text_[at_];
      if (c == '"' && cells.back().empty() && !quoted_cell) {
        quoted_cell = true;
        quoted(cells.back());
      } else if (c == ',') {
        cells.emplace_back();
        quoted_cell = false;
      } else if (c == '\n' || c == '\r') {
        break;
      } else {
        cells.back() += c;
      }
    }
    end_of_line();
  }

  // From the opening quote; leaves at_ on the closing one.
  void quoted(std::string& cell) {
    for (++at_; at_ < text_.size(); ++at_) {
      if (text_[at_] == '"') {
        if (at_ + 1 >= text_.size() || text_[at_ + 1] != '"') return;
        ++at_;
      }
      line_ += text_[at_] == '\n';
      cell += text_[at_];
    }
    throw DataError("{}:{}: a quoted cell is never closed; add the closing \"", path_,
                    record_line_);
  }

  void end_of_line() {
    if (at_ < text_.size() && text_[at_] == '\r') ++at_;
    if (at_ < text_.size() && text_[at_] == '\n') ++at_;
    ++line_;
  }

  const std::string& path_;
  std::string text_;
  size_t at_ = 0;
  int line_ = 1;
  int record_line_ = 1;
};

}  // namespace

CsvTable read_csv(const std::string& path) {
  Parser parser(path, slurp(path));
  CsvTable table;
  if (!parser.next(table.columns)) throw DataError("{}: empty; a header and rows are needed", path);
  std::set<std::string> seen;
  for (const std::string& column : table.columns)
    if (column.empty() || !seen.insert(column).second)
      throw DataError("{}:{}: column name \"{}\" is {}; names must be unique", path, parser.line(),
                      column, column.empty() ? "empty" : "repeated");
  std::vector<std::string> cells;
  while (parser.next(cells)) {
    if (cells.size() != table.columns.size())
      throw DataError("{}:{}: {} cells under {} columns; mend the row", path, parser.line(),
                      cells.size(), table.columns.size());
    table.rows.push_back(cells);
    table.lines.push_back(parser.line());
  }
  if (table.rows.empty()) throw DataError("{}: a header without rows", path);
  return table;
}

std::string csv_cell(const std::string& text) {
  if (text.find_first_of(",\"\r\n#") == std::string::npos) return text;
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"') out += '"';
    out += c;
  }
  return out + '"';
}

}  // namespace degu::scaling
