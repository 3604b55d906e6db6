// `degu help`: the YAML reference, from the same field lists that read the files.
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "cli/command.h"
#include "config/yaml.h"
#include "scaling/sweep/config.h"
#include "train/train_config.h"

namespace degu {
namespace {

// A sweep's file is a run's with one part more.
struct SweepPart {
  scaling::SweepConfig sweep;
  void fields(Fields& f) { f("sweep", sweep, "which models are trained, at which budgets"); }
};

struct Topic {
  const char* name;
  const char* summary;
  std::string (*describe)();
  std::vector<FieldRow> (*list)();
};

template <Configurable T>
constexpr Topic topic(const char* name, const char* summary) {
  return {name, summary, describe_config<T>, list_config<T>};
}

constexpr Topic kTopics[] = {
    topic<RunConfig>("run", "A run: `degu train CONFIG`; `degu info` needs its `model:` alone."),
    topic<SweepPart>(
        "sweep", "What `degu sweep CONFIG` needs besides a run's parts, which its members share."),
};

// Text in a table's cell.
std::string cell(std::string_view text) {
  std::string out;
  for (char c : text) {
    if (c == '|') out += '\\';
    out += c;
  }
  return out;
}

void print_markdown() {
  fmt::print(
      "# YAML reference\n\nPrinted by `degu help --markdown` from the field lists that read the "
      "files.\n");
  for (const Topic& topic : kTopics) {
    fmt::print("\n## {}\n\n{}\n\n| key | type | default | meaning |\n|---|---|---|---|\n",
               topic.name, topic.summary);
    for (const FieldRow& row : topic.list()) {
      const std::string value =
          row.default_value.empty() ? "" : fmt::format("`{}`", cell(row.default_value));
      fmt::print("| `{}` | {} | {} | {} |\n", row.path, cell(row.type), value, cell(row.help));
    }
  }
}

}  // namespace

Action attach_help(CommandLine& line) {
  struct Options {
    std::string topic;
    bool markdown = false;
  };
  auto options = std::make_shared<Options>();
  line.option("TOPIC", options->topic, "which file; without it the topics are listed");
  line.flag("--markdown", options->markdown, "all topics as the page docs/config.md");
  return [options] {
    if (options->markdown) {
      print_markdown();
      return ExitCode::kDone;
    }
    for (const Topic& topic : kTopics) {
      if (options->topic.empty()) {
        fmt::print("{:<8} {}\n", topic.name, topic.summary);
      } else if (options->topic == topic.name) {
        fmt::print("{}", topic.describe());
        return ExitCode::kDone;
      }
    }
    if (!options->topic.empty()) {
      throw ConfigError("help {}: no such topic; `degu help` lists them", options->topic);
    }
    return ExitCode::kDone;
  };
}

}  // namespace degu
