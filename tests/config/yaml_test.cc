// Configuration files: what is read, what is refused, and with which words.
#include "config/yaml.h"

#include <catch2/catch.hpp>
#include <filesystem>
#include <fstream>
#include <limits>

#include "base/random.h"
#include "tests/support/temporary_folder.h"

namespace {

using degu::ConfigError;
using degu::Fields;
using degu::YamlDocument;

enum class Color { kRed, kGreen, kBlue };
constexpr auto enum_names(Color) {
  return std::array<std::string_view, 3>{"red", "green", "blue"};
}

struct Source {
  std::string path;
  double weight = 1;
  void fields(Fields& f) {
    f("path", path, "a file");
    f("weight", weight, "share of the mixture");
  }
  void check() const {
    if (weight <= 0) throw ConfigError("weight is {}, must be above 0", weight);
  }
};

struct Inner {
  int top_k = 2;
  int64_t tokens = 10;
  void fields(Fields& f) {
    f("top_k", top_k, "experts per token");
    f("tokens", tokens, "length of the run");
  }
  void check() const {
    if (top_k < 1) throw ConfigError("top_k is {}, must be at least 1", top_k);
  }
};

struct Config {
  bool flag = false;
  int steps = 100;
  double rate = 0.5;
  std::string name = "run one";
  Color color = Color::kGreen;
  std::vector<int64_t> sizes = {1, 2};
  std::vector<double> rates;
  std::vector<std::string> tags = {"a: b", "plain"};
  Inner inner;
  std::vector<Source> sources;

  void fields(Fields& f) {
    f("flag", flag, "a switch");
    f("steps", steps, "optimizer steps");
    f("rate", rate, "learning rate");
    f("name", name, "shown in logs");
    f("color", color, "a choice");
    f("sizes", sizes, "widths");
    f("rates", rates, "rates to try");
    f("tags", tags, "labels");
    f("inner", inner, "a part");
    f("sources", sources, "what is read");
  }
  void check() const {
    if (inner.top_k > steps)
      throw ConfigError("inner.top_k is {}, must be at most steps", inner.top_k);
  }
};

Config read(std::string_view text) {
  return degu::read_config<Config>(YamlDocument::from_text(text, "c.yaml"));
}

std::string message_of(const std::function<void()>& action) {
  try {
    action();
  } catch (const degu::Error& error) {
    return error.what();
  }
  return "no error";
}

// A folder of its own for each test, removed at the end.
class TempDir : public degu::test::TemporaryFolder {
 public:
  std::string write(const std::string& name, std::string_view text) const {
    const std::filesystem::path file = std::filesystem::path(path()) / name;
    std::filesystem::create_directories(file.parent_path());
    std::ofstream(file) << text;
    return file.string();
  }
};

TEST_CASE("every kind of field is read") {
  const Config config = read(R"(
flag: true
steps: 4e3
rate: 1e-3
name: "null"
color: blue
sizes: [3, 1e2]
rates:
  - .5
  - 2
tags: []
inner: {top_k: 8, tokens: 4e11}
sources:
  - path: a.txt
  - {path: b.txt, weight: 2.5}
)");
  CHECK(config.flag);
  CHECK(config.steps == 4000);
  CHECK(config.rate == 1e-3);
  CHECK(config.name == "null");
  CHECK(config.color == Color::kBlue);
  CHECK(config.sizes == std::vector<int64_t>{3, 100});
  CHECK(config.rates == std::vector<double>{0.5, 2.0});
  CHECK(config.tags.empty());
  CHECK(config.inner.top_k == 8);
  CHECK(config.inner.tokens == 400'000'000'000);
  REQUIRE(config.sources.size() == 2);
  CHECK(config.sources[0].weight == 1);
  CHECK(config.sources[1].path == "b.txt");
  CHECK(config.sources[1].weight == 2.5);
}

TEST_CASE("empty documents and empty maps leave the defaults") {
  for (const char* text :
       {"", "# only a comment\n", "---\n", "inner:\n", "inner: {}\n", "sources: []"}) {
    INFO(text);
    CHECK(degu::to_yaml(read(text)) == degu::to_yaml(Config{}));
  }
}

TEST_CASE("bad YAML is refused with place, value and remedy") {
  struct Case {
    const char* text;
    const char* message;
  };
  const Case cases[] = {
      {"step: 3", R"(c.yaml:1: unknown key "step"; did you mean "steps"?)"},
      {"steps: 1\ninner:\n  topk: 3",
       R"(c.yaml:3: unknown key "topk" in inner; did you mean "top_k"?)"},
      {"top_k: 3", R"(c.yaml:1: unknown key "top_k"; did you mean "inner.top_k"?)"},
      {"inner:\n  zebra: 3",
       R"(c.yaml:2: unknown key "zebra" in inner; known here: top_k, tokens)"},
      {"sources:\n  - path: a\n    wieght: 3",
       R"(c.yaml:3: unknown key "wieght" in sources.0; did you mean "weight"?)"},
      {"steps: 1\nname: x\nsteps: 2",
       R"(c.yaml:3: key "steps" is repeated (first at line 1); keep one)"},
      {"steps: many", R"(c.yaml:1: steps is "many", must be a whole number)"},
      {"steps: 1.5", R"(c.yaml:1: steps is "1.5", must be a whole number)"},
      {"steps: 4e11",
       R"(c.yaml:1: steps is "4e11", must be a whole number below 2147483648 in size)"},
      {"steps: [1]", "c.yaml:1: steps is a list, must be a whole number"},
      {"steps:\nrate: 1", "c.yaml:1: steps is nothing, must be a whole number"},
      {"inner:\n  tokens: 1e300", R"(c.yaml:2: inner.tokens is "1e300", must be a whole number)"},
      {"flag: yes", R"(c.yaml:1: flag is "yes", must be true or false)"},
      {"rate: .nan", R"(c.yaml:1: rate is ".nan", must be a number)"},
      {"rate: 1,5", R"(c.yaml:1: rate is "1,5", must be a number)"},
      {"name:",
       "c.yaml:1: name is nothing, must be text (quote it if it is meant to be empty or null)"},
      {"color: gren",
       R"(c.yaml:1: color is "gren", must be one of red, green, blue (did you mean green?))"},
      {"color: 7", R"(c.yaml:1: color is "7", must be one of red, green, blue)"},
      {"sizes: 3", R"(c.yaml:1: sizes is "3", must be a list of whole numbers, such as [1, 2])"},
      {"sizes:\n- 1\n- x",
       R"(c.yaml:3: sizes is "x", must be a list of whole numbers, such as [1, 2])"},
      {"inner: 3", R"(c.yaml:1: inner is "3", must be a map of keys)"},
      {"inner: [1]", "c.yaml:1: inner is a list, must be a map of keys"},
      {"sources: {a: 1}",
       "c.yaml:1: sources is a map, must be a list of maps (`- key: value` each)"},
      {"sources:\n- a\n", R"(c.yaml:2: sources.0 is "a", must be a map of keys)"},
      {"inner:\n  tokens: 5\n  top_k: 0", "c.yaml:3: top_k is 0, must be at least 1"},
      {"sources:\n- path: a\n- path: b\n  weight: -1", "c.yaml:4: weight is -1, must be above 0"},
      {"steps: 1", "c.yaml:1: inner.top_k is 2, must be at most steps"},
      {"name: x\ninner:\n  top_k: 9\nsteps: 3",
       "c.yaml:3: inner.top_k is 9, must be at most steps"},
      {"[1, 2]", "c.yaml:1: the file holds a list, must be a map of keys to values"},
      {"hello", R"(c.yaml:1: the file holds "hello", must be a map of keys to values)"},
      {"a: 1\n---\nb: 2", "c.yaml: a second YAML document begins (`---`); use one file for each"},
      {"name: 'abc", "c.yaml:1: not valid YAML: illegal EOF in scalar"},
      {"inner: {top_k: 1", "c.yaml:1: not valid YAML: end of map flow not found"},
      {"? [a, b]\n: 1", "c.yaml:1: a key must be a plain name, not a list"},
      {"include: a.yaml", R"(c.yaml:1: include is "a.yaml"; write a list: include: [a.yaml])"},
      {"include: [none.yaml]",
       R"(c.yaml:1: included file "none.yaml" does not exist (looked for none.yaml))"},
      // A slip is told before the check that it makes fail.
      {"inner:\n  top_k: 0\n  tokns: 1",
       R"(c.yaml:3: unknown key "tokns" in inner; did you mean "tokens"?)"},
  };
  for (const Case& bad : cases) {
    INFO(bad.text);
    CHECK(message_of([&] { read(bad.text); }) == bad.message);
  }
}

TEST_CASE("later files win: maps merge, lists and scalars replace") {
  const TempDir dir;
  dir.write("base/one.yaml", "steps: 10\nsizes: [1, 2, 3]\ninner: {top_k: 4, tokens: 5}\n");
  dir.write("base/two.yaml", "include: [one.yaml]\nsteps: 20\ninner:\n  tokens: 6\n");
  const std::string top = dir.write(
      "top.yaml", "name: top\ninclude: [base/one.yaml, base/two.yaml]\nsizes: [9]\ninner:\n");
  const Config config = degu::load_config<Config>(top);
  CHECK(config.steps == 20);
  CHECK(config.name == "top");
  CHECK(config.sizes == std::vector<int64_t>{9});
  CHECK(config.inner.top_k == 4);
  CHECK(config.inner.tokens == 6);
}

TEST_CASE("a value keeps the file and line it was written at through includes") {
  const TempDir dir;
  const std::string base = dir.write("base.yaml", "steps: 10\n\ninner:\n  top_k: zero\n");
  const std::string top =
      dir.write("top.yaml", "include: [base.yaml]\nsteps: 3\ninner:\n  tokens: 7\n");
  CHECK(message_of([&] { degu::load_config<Config>(top); }) ==
        base + R"(:4: inner.top_k is "zero", must be a whole number)");
  dir.write("base.yaml", "steps: 10\ninner:\n  top_k: 5\n  extra: 1\n");
  CHECK(message_of([&] { degu::load_config<Config>(top); }) ==
        base + R"(:4: unknown key "extra" in inner; known here: top_k, tokens)");
}

TEST_CASE("a cycle of includes is refused") {
  const TempDir dir;
  const std::string a = dir.write("a.yaml", "include: [b.yaml]\n");
  const std::string b = dir.write("b.yaml", "steps: 1\ninclude:\n  - a.yaml\n");
  CHECK(message_of([&] { degu::load_config<Config>(a); }) ==
        b + R"(:3: include "a.yaml" closes a cycle; remove one of the includes)");
  const std::string self = dir.write("self.yaml", "include: [./self.yaml]\n");
  CHECK_THROWS_AS(degu::load_config<Config>(self), ConfigError);
  // The same file on two branches is no cycle.
  dir.write("leaf.yaml", "steps: 7\n");
  dir.write("left.yaml", "include: [leaf.yaml]\n");
  const std::string both = dir.write("both.yaml", "include: [left.yaml, leaf.yaml]\n");
  CHECK(degu::load_config<Config>(both).steps == 7);
}

TEST_CASE("files that cannot be read are IoErrors") {
  const TempDir dir;
  CHECK(message_of([&] { YamlDocument::from_file(dir / "none.yaml"); }) ==
        (dir / "none.yaml") + ": cannot be read (No such file or directory)");
  CHECK_THROWS_AS(YamlDocument::from_file(dir / "none.yaml"), degu::IoError);
  CHECK_THROWS_AS(YamlDocument::from_file(dir / ""), degu::IoError);
}

TEST_CASE("overrides set one value") {
  YamlDocument document =
      YamlDocument::from_text("steps: 5\nsources:\n- path: a\n- path: b\n", "c.yaml");
  for (const char* assignment :
       {"steps=2e2", "inner.top_k=3", "name=x=y", "sizes=[7, 8]", "sources.1.weight=4", "flag=true",
        "inner={tokens: 77}", "color= red"}) {
    document.set(assignment);
  }
  const Config config = degu::read_config<Config>(document);
  CHECK(config.steps == 200);
  CHECK(config.inner.top_k == 3);
  CHECK(config.inner.tokens == 77);
  CHECK(config.name == "x=y");
  CHECK(config.sizes == std::vector<int64_t>{7, 8});
  CHECK(config.sources[1].weight == 4);
  CHECK(config.sources[1].path == "b");
  CHECK(config.flag);
  CHECK(config.color == Color::kRed);
}

TEST_CASE("one part of a document is a document") {
  const YamlDocument document =
      YamlDocument::from_text("other: 1\ninner:\n  top_k: 5\nnone:\n", "c.yaml");
  CHECK(document.has("inner"));
  CHECK_FALSE(document.has("top_k"));
  CHECK(degu::read_config<Inner>(document.part("inner")).top_k == 5);
  CHECK(degu::read_config<Inner>(document.part("none")).top_k == 2);
  CHECK(document.value("inner.top_k") == "5");
  CHECK(document.value("inner.tokens") == std::nullopt);
  CHECK(document.value("inner") == std::nullopt);
  CHECK(document.value("other.deeper") == std::nullopt);
  CHECK(message_of([&] { document.part("iner"); }) ==
        R"(c.yaml: has no part "iner:"; add it or include it)");
  CHECK(message_of([&] { document.part("other"); }) ==
        R"(c.yaml:1: other is "1", must be a map of keys)");
}

TEST_CASE("bad overrides are refused") {
  struct Case {
    const char* assignment;
    const char* message;
  };
  const Case cases[] = {
      {"steps", "--set steps: must be KEY=VALUE, such as train.steps=200"},
      {"=3", "--set =3: must be KEY=VALUE, such as train.steps=200"},
      {"inner..top_k=3", "--set inner..top_k=3: an empty name in the key"},
      {"steps=abc", R"(--set steps=abc: steps is "abc", must be a whole number)"},
      {"stepz=1", R"(--set stepz=1: unknown key "stepz"; did you mean "steps"?)"},
      {"steps.x=1", R"(--set steps.x=1: "x" would be below "5", the value at c.yaml:1)"},
      {"sources.1.weight=1",
       R"(--set sources.1.weight=1: "1" is no index of the list at c.yaml:2, which has 1 entries)"},
      {"inner.top_k=0", "--set inner.top_k=0: top_k is 0, must be at least 1"},
      {"sizes=[1", "--set sizes=[1:1: not valid YAML: end of sequence flow not found"},
  };
  for (const Case& bad : cases) {
    INFO(bad.assignment);
    CHECK(message_of([&] {
            YamlDocument document =
                YamlDocument::from_text("steps: 5\nsources:\n- path: a\n", "c.yaml");
            document.set(bad.assignment);
            degu::read_config<Config>(document);
          }) == bad.message);
  }
}

TEST_CASE("written text reads back to the same values") {
  Config config;
  config.rate = 0.1 + 0.2;
  config.name = "quotes \" and \\ and\nlines\tand # : {";
  config.tags = {"", "null", "true", "1e3", "- x", "ünïcode", "a b", " lead", "~", "\x01"};
  config.rates = {1e-300, std::numeric_limits<double>::infinity(), 3};
  config.inner.tokens = std::numeric_limits<int64_t>::min();
  config.sources = {{"a", 2}, {"b: c", 1e22}};
  const std::string text = degu::to_yaml(config);
  const Config again = read(text);
  CHECK(degu::to_yaml(again) == text);
  CHECK(again.rate == config.rate);
  CHECK(again.name == config.name);
  CHECK(again.tags == config.tags);
  CHECK(again.rates == config.rates);
  CHECK(again.inner.tokens == config.inner.tokens);
  CHECK(again.sources[1].path == "b: c");
  CHECK(again.sources[1].weight == 1e22);
}

TEST_CASE("the description is a file that reads as the defaults") {
  const std::string text = degu::describe_config<Config>();
  CHECK(text.find("# a choice (red | green | blue)\ncolor: green\n") != std::string::npos);
  CHECK(text.find("# a part\ninner:\n  # experts per token\n  top_k: 2\n") != std::string::npos);
  CHECK(text.find("one entry shown") != std::string::npos);
  const Config again = read(text);
  CHECK(again.sources.size() == 1);
  CHECK(again.inner.top_k == Config{}.inner.top_k);

  const std::vector<degu::FieldRow> rows = degu::list_config<Config>();
  const auto row = [&](std::string_view path) {
    for (const degu::FieldRow& each : rows) {
      if (each.path == path) return each.type + "|" + each.default_value + "|" + each.help;
    }
    return std::string("none");
  };
  CHECK(row("inner.top_k") == "int|2|experts per token");
  CHECK(row("sources[].weight") == "number|1|share of the mixture");
  CHECK(row("color") == "red | green | blue|green|a choice");
  CHECK(row("sizes") == "list of int|[1, 2]|widths");
}

TEST_CASE("aliases are copies, and a page of them cannot take all memory") {
  const Config config = read("sizes: &x [4, 5]\nrates: *x\n");
  CHECK(config.rates == std::vector<double>{4, 5});
  std::string bomb = "a0: &a0 [1,1,1,1,1,1,1,1,1,1]\n";
  for (int i = 1; i < 12; ++i) {
    bomb += fmt::format(
        "a{0}: &a{0} [*a{1},*a{1},*a{1},*a{1},*a{1},*a{1},*a{1},*a{1},*a{1},*a{1}]\n", i, i - 1);
  }
  CHECK(message_of([&] { read(bomb); }).find("aliases multiply them") != std::string::npos);
}

// Deterministic mutations of a good file: whatever comes out is read or refused with a degu error,
// never anything else.
TEST_CASE("damaged text never does worse than an error") {
  const std::string good =
      degu::to_yaml(Config{}) + "sources: [{path: a, weight: 2}, {path: \"b\"}]\n# end\n";
  const std::string alphabet = "{}[]:,-#&*!|>'\"%@`\n\t \\?~0e.\xc3\xff";
  const degu::RandomStream random(1, "yaml-fuzz");
  uint64_t draw = 0;
  int refused = 0;
  for (int round = 0; round < 4000; ++round) {
    std::string text = good;
    const auto edits = 1 + random.below(draw++, 6);
    for (uint64_t e = 0; e < edits && !text.empty(); ++e) {
      const size_t at = random.below(draw++, text.size());
      switch (random.below(draw++, 4)) {
        case 0:
          text[at] = alphabet[random.below(draw++, alphabet.size())];
          break;
        case 1:
          text.insert(at, 1, alphabet[random.below(draw++, alphabet.size())]);
          break;
        case 2:
          text.erase(at, 1 + random.below(draw++, 20));
          break;
        default:
          text.insert(at, text.substr(random.below(draw++, text.size()), 30));
      }
    }
    INFO(text);
    try {
      const Config config = read(text);
      CHECK(degu::to_yaml(read(degu::to_yaml(config))) == degu::to_yaml(config));
    } catch (const degu::Error& error) {
      ++refused;
      CHECK(std::string_view(error.what()).find('\n') == std::string_view::npos);
    }
  }
  CHECK(refused > 1000);
  CHECK(refused < 4000);
}

}  // namespace
