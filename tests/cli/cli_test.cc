// Runs the binary as a shell would and looks at its exit code and both streams.
#include <sys/wait.h>

#include <array>
#include <catch2/catch.hpp>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>

#include "tests/support/temporary_folder.h"

namespace {

namespace fs = std::filesystem;

struct Outcome {
  int code;
  std::string out, err;
};

class Shell {
 public:
  // `arguments` as typed, in a folder of this test's own.
  Outcome degu(const std::string& arguments) const {
    const std::string command = "cd '" + folder_.path() + "' && ( '" DEGU_BINARY "' " + arguments +
                                " ) >out.txt 2>err.txt </dev/null";
    const int status = std::system(command.c_str());
    return {WIFEXITED(status) ? WEXITSTATUS(status) : -1, text("out.txt"), text("err.txt")};
  }
  void write(const std::string& name, const std::string& content) const {
    fs::create_directories(fs::path(folder_ / name).parent_path());
    std::ofstream(folder_ / name) << content;
  }

 private:
  std::string text(const std::string& name) const {
    std::ifstream file(folder_ / name);
    std::ostringstream content;
    content << file.rdbuf();
    return content.str();
  }
  degu::test::TemporaryFolder folder_;
};

TEST_CASE("a command line that cannot be understood is one line and exit code 2") {
  const Shell shell;
  struct Case {
    const char* arguments;
    const char* message;
  };
  const Case cases[] = {
      {"", "degu: A subcommand is required; see degu --help\n"},
      {"nonsense", "degu: unknown command \"nonsense\"; see degu --help\n"},
      {"info a.yaml --nonsense",
       "degu: The following argument was not expected: --nonsense; see degu info --help\n"},
      {"bench nonsense", "degu: unknown command \"nonsense\"; see degu bench --help\n"},
      {"data show", "degu: FOLDER is required; see degu data show --help\n"},
      {"serve here --port 70000",
       "degu: --port: 70000 is not between 0 and 65535; see degu serve --help\n"},
      {"profile here --price-per-hour 1 --batch 1,0",
       "degu: --batch: 0 is not above 0; see degu profile --help\n"},
      {"bench serve here --rate often",
       "degu: --rate: \"often\" is not a number; see degu bench serve --help\n"},
      {"info --ranks many", nullptr},
      {"--log-level loud info", nullptr},
      {"help nonsense", "degu: help nonsense: no such topic; `degu help` lists them\n"},
  };
  for (const Case& c : cases) {
    INFO(c.arguments);
    const Outcome got = shell.degu(c.arguments);
    CHECK(got.code == 2);
    CHECK(got.out.empty());
    CHECK(std::count(got.err.begin(), got.err.end(), '\n') == 1);
    if (c.message != nullptr) CHECK(got.err == c.message);
  }
}

TEST_CASE("help shows the defaults that mean something") {
  const Shell shell;
  const std::string serve = shell.degu("serve --help").out;
  CHECK(serve.find("--port INT:in [0 - 65535]=8000") != std::string::npos);  // a number
  CHECK(serve.find("--host TEXT=127.0.0.1") != std::string::npos);           // text
  const std::string plan = shell.degu("plan --help").out;
  CHECK(plan.find("--flops FLOAT:POSITIVE ") != std::string::npos);  // 0: not given
  const std::string profile = shell.degu("profile --help").out;
  CHECK(profile.find("--batch INT:POSITIVE=[1,4,16]") != std::string::npos);  // a list
}

TEST_CASE("help and version are results, on standard output") {
  const Shell shell;
  for (const char* arguments : {"--help", "info --help", "help", "--version"}) {
    INFO(arguments);
    const Outcome got = shell.degu(arguments);
    CHECK(got.code == 0);
    CHECK_FALSE(got.out.empty());
    CHECK(got.err.empty());
  }
  CHECK(shell.degu("--version").out.starts_with("degu 0."));
}

TEST_CASE("each kind of error has its exit code") {
  const Shell shell;
  shell.write("good.yaml", "model: {width: 64}\n");
  shell.write("bad.yaml", "model:\n  widht: 64\n");
  shell.write("empty/readme", "");
  struct Case {
    const char* arguments;
    int code;
    const char* message;
  };
  const Case cases[] = {
      {"info none.yaml", 3, "degu: none.yaml: cannot be read (No such file or directory)\n"},
      {"info bad.yaml", 2, "degu: bad.yaml:2: unknown key \"widht\"; did you mean \"width\"?\n"},
      {"info good.yaml --set model.heads=3", 2,
       "degu: --set model.heads=3: heads is 3, must divide width, which is 64; or give "
       "head_width\n"},
      {"info good.yaml --sequence -4", 2, "degu: sequence length is -4, must be at least 1\n"},
      {"info good.yaml --ranks 3 --expert-parallel 2", 2,
       "degu: expert_parallel is 2, must divide the number of ranks, which is 3\n"},
      {"info empty", 4,
       "degu: empty: neither a checkpoint nor a run's folder: it holds no config.yaml\n"},
  };
  for (const Case& c : cases) {
    INFO(c.arguments);
    const Outcome got = shell.degu(c.arguments);
    CHECK(got.code == c.code);
    CHECK(got.out.empty());
    CHECK(got.err == c.message);
  }
}

TEST_CASE("a result that cannot be written is an error") {
  const Shell shell;
  const Outcome got = shell.degu("info --json >/dev/full");
  CHECK(got.code == 3);
  CHECK(got.err.find("standard output cannot be written") != std::string::npos);
}

TEST_CASE("info counts a model, from a file, a run's folder and a checkpoint's") {
  const Shell shell;
  const std::string config =
      "model: {width: 256, vocab: 8192, layers: 4, heads: 4, tied_head: false, moe: {experts: 8, "
      "expert_width: 512}}\ndata: {sequence_length: 256}\n";
  shell.write("m.yaml", config);
  shell.write("run/config.yaml", config);
  shell.write("run/checkpoint/attachments/config.yaml", config);
  for (const char* path : {"m.yaml", "run", "run/checkpoint"}) {
    INFO(path);
    const Outcome got = shell.degu(std::string("info --json ") + path);
    CHECK(got.code == 0);
    CHECK(got.err.empty());
    const auto json = nlohmann::json::parse(got.out);
    CHECK(json["n"]["n_total"] == 17836288);
    CHECK(json["sequence"] == 256);
    CHECK(json["flops_per_token"]["training"] ==
          3 * json["flops_per_token"]["forward"].get<int64_t>());
  }
  const Outcome table = shell.degu("info m.yaml --sequence 8");
  CHECK(table.out.find("n_total                           17 836 288") != std::string::npos);
  CHECK(table.out.find("sequences of 8 ") != std::string::npos);
}

TEST_CASE("info without a model says what this binary and machine are") {
  const Shell shell;
  const auto json = nlohmann::json::parse(shell.degu("info --json").out);
  CHECK(json["cores"].get<int>() >= 1);
  CHECK(json["isa_supported"][0] == "portable");
  CHECK(json["dependencies"].contains("yaml-cpp"));
  for (const auto& [name, row] : json["dependencies"].items()) {
    INFO(name);
    CHECK_FALSE(row["licence"].get<std::string>().empty());
    CHECK(row["version"].get<std::string>().empty() == (row["state"] != "found"));
    CHECK((row["state"] == "found" || !row["note"].get<std::string>().empty()));
  }
  CHECK(json["dependencies"]["CUTLASS"]["state"] == "not used");
  const Outcome forced =
      shell.degu("info >/dev/null; DEGU_ISA=portable '" DEGU_BINARY "' info --json");
  CHECK(nlohmann::json::parse(forced.out)["isa"] == "portable");
}

TEST_CASE("the reference of each topic is a file that the reader takes") {
  const Shell shell;
  const Outcome topics = shell.degu("help");
  std::istringstream lines(topics.out);
  int count = 0;
  for (std::string line; std::getline(lines, line); ++count) {
    const std::string topic = line.substr(0, line.find(' '));
    INFO(topic);
    const Outcome page = shell.degu("help " + topic);
    CHECK(page.code == 0);
    CHECK(page.out.find("# ") != std::string::npos);
  }
  CHECK(count >= 1);
}

}  // namespace
