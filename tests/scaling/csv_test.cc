// Tables of runs: reading, selecting rows, and what is said about bad ones.
#include <zlib.h>

#include <catch2/catch.hpp>
#include <cmath>
#include <filesystem>
#include <fstream>

#include "base/error.h"
#include "base/random.h"
#include "scaling/csv.h"
#include "scaling/run_table.h"
#include "scaling/selection.h"
#include "tests/support/temporary_folder.h"

namespace degu::scaling {
namespace {

class Folder : public degu::test::TemporaryFolder {
 public:
  std::string write(const std::string& name, const std::string& content) const {
    std::ofstream(file(name), std::ios::binary) << content;
    return file(name);
  }
  std::string file(const std::string& name) const { return *this / name; }
};

TEST_CASE("quotes, comments, blank lines and carriage returns") {
  const Folder folder;
  const CsvTable table = read_csv(folder.write(
      "a.csv", "\xEF\xBB\xBF# about\r\nname,\"a, b\"\r\n\r\n\"x \"\"y\"\"\",1\r\nz,\n"));
  CHECK(table.columns == std::vector<std::string>{"name", "a, b"});
  REQUIRE(table.rows.size() == 2);
  CHECK(table.rows[0] == std::vector<std::string>{"x \"y\"", "1"});
  CHECK(table.rows[1] == std::vector<std::string>{"z", ""});
  CHECK(table.lines == std::vector<int>{4, 5});
}

TEST_CASE("bad tables are refused with file and line") {
  const Folder folder;
  CHECK_THROWS_AS(read_csv(folder.file("none.csv")), IoError);
  CHECK_THROWS_AS(read_csv(folder.write("e.csv", "")), DataError);
  CHECK_THROWS_WITH(read_csv(folder.write("h.csv", "a,b\n")), Catch::Contains("without rows"));
  CHECK_THROWS_WITH(read_csv(folder.write("r.csv", "a,a\n1,2\n")), Catch::Contains("repeated"));
  CHECK_THROWS_WITH(read_csv(folder.write("w.csv", "a,b\n1,2\n1,2,3\n")),
                    Catch::Contains("w.csv:3: 3 cells under 2"));
  CHECK_THROWS_WITH(read_csv(folder.write("q.csv", "a,b\n1,\"2\n")), Catch::Contains("q.csv:2"));
  const std::string whole = folder.file("t.csv.gz");
  const gzFile gz = gzopen(whole.c_str(), "wb");
  for (int i = 0; i < 1000; ++i) gzprintf(gz, i == 0 ? "a,b\n" : "%d,%d\n", i * 7919, i * i);
  gzclose(gz);
  CHECK(read_csv(whole).rows.size() == 999);
  std::filesystem::resize_file(whole, std::filesystem::file_size(whole) / 2);
  CHECK_THROWS_WITH(read_csv(whole), Catch::Contains("truncated gzip"));
}

TEST_CASE("a bad value names file, line, column and value") {
  const Folder folder;
  const RunTable table =
      RunTable::read(folder.write("v.csv", "N,D,loss\n1e6,1e8,3\n2e6,lots,2.9\n"));
  SelectionOptions options;
  options.columns = parse_columns("N=N,D=D");
  CHECK_THROWS_WITH(select_runs(table, options),
                    Catch::Contains("v.csv:3: column \"D\" holds \"lots\""));
  options.where = {"D != lots"};
  CHECK(select_runs(table, options).size() == 1);
  options.columns["D"] = "Tokens";
  CHECK_THROWS_WITH(select_runs(table, options), Catch::Contains("no column \"Tokens\""));
}

TEST_CASE("tokens from FLOPs, constants for columns, conditions, the highest losses") {
  const Folder folder;
  const RunTable table = RunTable::read(folder.write(
      "s.csv",
      "Model Size,C,loss,kind\n1e6,6e14,3,a\n2e6,6e14,2.9,a\n3e6,6e14,9,b\n4e6,6e14,nan,a\n"));
  SelectionOptions options;
  options.columns = parse_columns("N=\"Model Size\",C=C, L=loss");
  options.drop_highest_loss = 1;
  const Selection all = select_runs(table, options);
  REQUIRE(all.size() == 2);
  CHECK(all.data[0].x.d == Approx(1e8));
  REQUIRE(all.excluded.size() == 2);
  CHECK(all.excluded[0].place.ends_with("s.csv:5"));
  CHECK_THAT(all.excluded[1].reason, Catch::Contains("highest"));
  options.where = {"kind = b"};
  options.drop_highest_loss = 0;
  options.columns = parse_columns("N=Model Size,D=1.5e9,L=loss");
  const Selection some = select_runs(table, options);
  REQUIRE(some.size() == 1);
  CHECK(some.data[0].x.d == 1.5e9);
  CHECK(some.flops[0] == Approx(6 * 3e6 * 1.5e9));
  CHECK_THROWS_AS(parse_columns("Z=a"), ConfigError);
  CHECK_THROWS_AS(parse_columns("N"), ConfigError);
}

// Reads and selects; an error must be one of ours and name the file.
bool survives(const std::string& path) {
  SelectionOptions options;
  options.columns = {{"N", "N"}, {"D", "D"}, {"L", "loss"}};
  try {
    const Selection chosen = select_runs(RunTable::read(path), options);
    for (const Observation& o : chosen.data)
      if (!(o.x.n > 0 && o.x.d > 0 && o.loss > 0 && std::isfinite(o.loss))) return false;
    return true;
  } catch (const DataError& error) {
    return std::string(error.what()).find(path) != std::string::npos;
  } catch (const IoError& error) {
    return std::string(error.what()).find(path) != std::string::npos;
  }
}

TEST_CASE("random bytes and damaged tables end in a table or an error that names the file") {
  const Folder folder;
  const RandomStream random(11, "csv fuzz");
  uint64_t draw = 0;
  const auto below = [&](uint64_t n) { return random.below(draw++, n); };
  using namespace std::string_literals;  // these know their length, the NUL included
  const std::string alphabet = "\0\"\",,\n\n\r#.eE+-0123456789 NDab\xEF\xBB\xBF\x1f\x8b\xff"s;
  std::string valid = "run,N,D,loss,status,annealed,experts,note\n";
  for (int i = 0; i < 12; ++i)
    valid += fmt::format("\"r,{}\",{}e6,{:g},{:.4f},done,1,1,\"a \"\"b\"\"\n{}\"\n", i, i + 1,
                         1e8 * (i + 1), 3.5 - .1 * i, i);
  REQUIRE(survives(folder.write("whole.csv", valid)));
  for (int trial = 0; trial < 3000; ++trial) {
    std::string text;
    if (trial % 3 == 0) {
      for (uint64_t i = below(200); i > 0; --i) text += alphabet[below(alphabet.size())];
    } else {
      text = valid;
      for (uint64_t edits = 1 + below(4); edits > 0 && !text.empty(); --edits) {
        const size_t at = below(text.size());
        switch (below(5)) {
          case 0:
            text[at] = alphabet[below(alphabet.size())];
            break;
          case 1:
            text.erase(at, 1 + below(20));
            break;
          case 2:
            text.insert(at, 1 + below(3), alphabet[below(alphabet.size())]);
            break;
          case 3:
            text.insert(at, text.substr(below(text.size()), below(60)));
            break;
          default:
            text.resize(at);
        }
      }
    }
    INFO("trial " << trial << ": " << text);
    const bool fine = survives(folder.write("f.csv", text));
    REQUIRE(fine);
  }
}

TEST_CASE("an error in a row names its line, whatever stands above it") {
  const Folder folder;
  const RandomStream random(12, "csv lines");
  for (uint64_t trial = 0; trial < 200; ++trial) {
    std::string text = "N,D,loss\n";
    int line = 1;
    for (uint64_t i = random.below(8 * trial, 6); i > 0; --i) {
      const char* fillers[] = {"# a, comment\n", "\n", "1e6,1e8,3\n", "1e6,1e8,3\r\n",
                               "1e6,\"1e8\",3\n"};
      text += fillers[random.below(8 * trial + i, 5)];
      ++line;
    }
    const bool wide = random.below(8 * trial + 7, 2) == 0;
    text += wide ? "1,2,3,4\n" : "1e6,x,3\n";
    const std::string path = folder.write("l.csv", text);
    SelectionOptions options;
    options.columns = {{"N", "N"}, {"D", "D"}, {"L", "loss"}};
    CHECK_THROWS_WITH(select_runs(RunTable::read(path), options),
                      Catch::Contains(fmt::format("l.csv:{}:", line + 1)));
  }
}

std::vector<RunRecord> sample_runs() {
  std::vector<RunRecord> runs(3);
  for (int i = 0; i < 3; ++i) {
    runs[i].run = "run, \"" + std::to_string(i) + "\"";
    runs[i].n_total = 1000 + i;
    runs[i].tokens = 1 << 20;
    runs[i].flops = 1.0 / 3 + i;
    runs[i].val_loss = 3 - .1 * i;
    runs[i].experts = i == 2 ? 8 : 1;
    runs[i].top_k = i == 2 ? 2 : 1;
    runs[i].granularity = i == 2 ? 2 : 1;
  }
  runs[1].annealed = 0;
  return runs;
}

TEST_CASE("degu's own table survives CSV and HDF5, and both select the same rows") {
  const Folder folder;
  const std::vector<RunRecord> runs = sample_runs();
  write_runs_csv(folder.file("runs.csv"), runs);
  write_runs_hdf5(folder.file("runs.h5"), runs);
  for (const std::string& path : {folder.path(), folder.file("runs.h5")}) {
    const std::vector<RunRecord> back = read_runs(path);
    REQUIRE(back.size() == 3);
    CHECK(back[2].run == runs[2].run);
    CHECK(back[1].flops == runs[1].flops);
    CHECK(back[2].experts == 8);
    const Selection chosen = select_runs(RunTable::read(path), {.dense_only = true});
    CHECK(chosen.size() == 1);
    CHECK(chosen.excluded.size() == 2);
    CHECK(select_runs(RunTable::read(path), {.include_unannealed = true}).groups ==
          std::vector<ExpertGroup>{{}, {8, 2, 2}});
  }
  CHECK(RunTable::read(folder.path()).hash() == RunTable::read(folder.file("runs.h5")).hash());
}

}  // namespace
}  // namespace degu::scaling
