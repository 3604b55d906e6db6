// Comma-separated tables, plain or gzip: RFC 4180 quoting, `#` comment lines, a header line with
// unique names.
#pragma once

#include <string>
#include <vector>

namespace degu::scaling {

struct CsvTable {
  std::vector<std::string> columns;
  std::vector<std::vector<std::string>> rows;  // as many cells as columns
  std::vector<int> lines;                      // of each row in the file, from 1
};

// IoError when it cannot be read; DataError (file:line) for a truncated gzip, an open quote, a row
// with another number of cells, a repeated or empty column name, no rows.
CsvTable read_csv(const std::string& path);

// A cell, quoted where it must be.
std::string csv_cell(const std::string& text);

}  // namespace degu::scaling
