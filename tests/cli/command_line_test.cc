#include "cli/command_line.h"

#include <catch2/catch.hpp>

#include <array>

namespace degu {
namespace {

enum class Colour { kRed, kGreen };
constexpr auto enum_names(Colour) {
  return std::array<std::string_view, 2>{"red", "green"};
}

struct Values {
  std::string file;
  int threads = 2;
  double share = 0.5;
  std::vector<int64_t> batches = {1, 4};
  std::vector<std::string> set;
  Colour colour = Colour::kRed;
  bool eos = true;
  bool probe = true;
  bool json = false;
};

// Parses `words` after the program's name into `v`; the exit code where parsing ends the program.
std::optional<int> parse(std::vector<std::string> words, Values& v) {
  CommandLine line("program", "a summary", "1.2");
  line.flag("--json", v.json, "outer");
  CommandLine make = line.command("make", "makes");
  CommandLine cake = make.command("cake", "makes a cake");
  CommandLine tea = make.command("tea", "makes tea");
  cake.option("file", v.file, "what to read").required();
  cake.option("--threads", v.threads, "of the oven").positive();
  cake.option("--share", v.share, "of the whole").within(0.0, 1.0);
  cake.option("--batches", v.batches, "sizes").comma_separated().non_negative();
  cake.option("--set", v.set, "key=value").repeatable();
  cake.option("--colour", v.colour, "of the icing");
  cake.on_off("--eos", v.eos, "ends");
  cake.flag("--probe,!--no-probe", v.probe, "with a toothpick");
  words.insert(words.begin(), "program");
  std::vector<char*> argv;
  for (std::string& word : words) argv.push_back(word.data());
  const std::optional<int> code = line.parse(static_cast<int>(argv.size()), argv.data());
  CHECK((code || (make.given() && cake.given() && !tea.given())));
  CHECK(cake.name() == "make cake");
  return code;
}

TEST_CASE("a command line fills what was declared") {
  Values v;
  REQUIRE_FALSE(parse(
      {"make", "cake", "--set", "a=1", "in.txt", "--set", "b=2", "--threads", "8", "--share", "1",
       "--batches", "3,5,0", "--colour", "green", "--eos", "off", "--no-probe", "--json"},
      v));
  CHECK(v.file == "in.txt");
  CHECK(v.threads == 8);
  CHECK(v.share == 1.0);
  CHECK(v.batches == std::vector<int64_t>{3, 5, 0});
  CHECK(v.set == std::vector<std::string>{"a=1", "b=2"});
  CHECK(v.colour == Colour::kGreen);
  CHECK_FALSE(v.eos);
  CHECK_FALSE(v.probe);
  CHECK(v.json);
}

TEST_CASE("what a command line leaves out keeps its default") {
  Values v;
  REQUIRE_FALSE(parse({"make", "cake", "in.txt"}, v));
  CHECK(v.threads == 2);
  CHECK(v.batches == std::vector<int64_t>{1, 4});
  CHECK(v.colour == Colour::kRed);
  CHECK(v.eos);
  CHECK(v.probe);
}

TEST_CASE("a command line that cannot be understood ends with the usage code") {
  const int usage = static_cast<int>(ExitCode::kUsage);
  for (const std::vector<std::string>& words : std::vector<std::vector<std::string>>{
           {},
           {"bake"},
           {"make"},
           {"make", "cake"},
           {"make", "cake", "in.txt", "--threads", "0"},
           {"make", "cake", "in.txt", "--threads", "many"},
           {"make", "cake", "in.txt", "--threads", "inf"},
           {"make", "cake", "in.txt", "--share", "1.5"},
           {"make", "cake", "in.txt", "--share", "nan"},
           {"make", "cake", "in.txt", "--batches", "1,-1"},
           {"make", "cake", "in.txt", "--colour", "1"},
           {"make", "cake", "in.txt", "--eos", "yes"},
           {"make", "cake", "in.txt", "--oven"},
       }) {
    Values v;
    CHECK(parse(words, v) == usage);
  }
}

TEST_CASE("help and version end the program well") {
  Values v;
  CHECK(parse({"--version"}, v) == 0);
  CHECK(parse({"make", "cake", "--help"}, v) == 0);
}

}  // namespace
}  // namespace degu
