#include "cli/command_line.h"

#include <CLI/CLI.hpp>

#include <algorithm>
#include <cctype>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <type_traits>

#include "base/error.h"

namespace degu {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

template <class T>
bool says_something(const T& initial) {
  if constexpr (std::is_arithmetic_v<T>) {
    return initial >= T{0};  // not of a number that is none
  } else if constexpr (std::is_same_v<T, std::string>) {
    return !initial.empty() && std::none_of(initial.begin(), initial.end(),
                                            [](unsigned char c) { return std::iscntrl(c) != 0; });
  } else {
    return !initial.empty();
  }
}

// Checks each number that is given; `allowed` says of the others what they are not.
CLI::Validator number(double low, bool low_itself, double high, const std::string& allowed,
                      const std::string& description) {
  return {[=](std::string& text) {
            char* end = nullptr;
            const double value = std::strtod(text.c_str(), &end);
            if (text.empty() || *end != '\0' || !std::isfinite(value))
              return fmt::format("\"{}\" is not a number", text);
            const bool inside = (low_itself ? value >= low : value > low) && value <= high;
            return inside ? "" : fmt::format("{} is not {}", text, allowed);
          },
          description};
}

}  // namespace

Option Option::required() {
  option_->required()->default_str("");
  return *this;
}
Option Option::positive() {
  option_->check(number(0, false, kInfinity, "above 0", "POSITIVE"));
  if (option_->get_default_str() == "0") option_->default_str("");  // stands for: not given
  return *this;
}
Option Option::non_negative() {
  option_->check(number(0, true, kInfinity, "0 or more", "NONNEGATIVE"));
  return *this;
}
Option Option::within(double low, double high) {
  option_->check(number(low, true, high, fmt::format("between {} and {}", low, high),
                        fmt::format("in [{} - {}]", low, high)));
  return *this;
}
Option Option::among(std::vector<std::string> words) {
  option_->check(CLI::IsMember(std::move(words)));
  return *this;
}
Option Option::comma_separated() {
  option_->delimiter(',');
  return *this;
}
Option Option::repeatable() {
  option_->allow_extra_args(false);
  return *this;
}

CommandLine::CommandLine(const std::string& program, const std::string& summary,
                         const std::string& version)
    : root_(std::make_shared<CLI::App>(summary, program)), app_(root_.get()) {
  app_->set_version_flag("--version", program + " " + version);
}
CommandLine::CommandLine(CLI::App* app) : app_(app) {}

template <class T>
Option CommandLine::option(const std::string& names, T& to, const std::string& help) {
  CLI::Option* option = app_->add_option(names, to, help);
  if (says_something(to)) option->capture_default_str();
  return Option(option);
}

using Text = const std::string&;
template Option CommandLine::option(Text, std::string&, Text);
template Option CommandLine::option(Text, int&, Text);
template Option CommandLine::option(Text, int64_t&, Text);
template Option CommandLine::option(Text, uint64_t&, Text);
template Option CommandLine::option(Text, double&, Text);
template Option CommandLine::option(Text, std::vector<std::string>&, Text);
template Option CommandLine::option(Text, std::vector<int>&, Text);
template Option CommandLine::option(Text, std::vector<int64_t>&, Text);
template Option CommandLine::option(Text, std::vector<double>&, Text);

Option CommandLine::word(const std::string& names, std::span<const std::string_view> words,
                         size_t initial, const std::string& help,
                         std::function<void(size_t index)> chosen) {
  const std::vector<std::string> allowed(words.begin(), words.end());
  CLI::Option* option = app_->add_option_function<std::string>(
      names,
      [allowed, chosen = std::move(chosen)](const std::string& word) {
        chosen(
            static_cast<size_t>(std::find(allowed.begin(), allowed.end(), word) - allowed.begin()));
      },
      help);
  option->check(CLI::IsMember(allowed))->default_str(allowed.at(initial));
  return Option(option);
}

Option CommandLine::on_off(const std::string& name, bool& to, const std::string& help) {
  static constexpr std::string_view kWords[] = {"off", "on"};
  return word(name, kWords, to ? 1 : 0, help, [&to](size_t index) { to = index == 1; });
}

void CommandLine::flag(const std::string& names, bool& to, const std::string& help) {
  app_->add_flag(names, to, help);
}

CommandLine CommandLine::command(const std::string& name, const std::string& summary) {
  CLI::App* command = app_->add_subcommand(name, summary);
  app_->require_subcommand(1);
  command->fallthrough();
  return CommandLine(command);
}

bool CommandLine::given() const {
  return app_->parsed();
}

std::string CommandLine::name() const {
  std::string out = app_->get_name();
  for (const CLI::App* outer = app_->get_parent(); outer && outer->get_parent();
       outer = outer->get_parent()) {
    out.insert(0, outer->get_name() + " ");
  }
  return out;
}

std::optional<int> CommandLine::parse(int argc, char** argv) {
  try {
    app_->parse(argc, argv);
    return std::nullopt;
  } catch (const CLI::ParseError& error) {
    if (error.get_exit_code() == 0) return app_->exit(error);  // help, version
    const CLI::App* last = app_;  // the command that was named before the words went wrong
    std::string help = app_->get_name();
    while (!last->get_subcommands().empty()) {
      last = last->get_subcommands().front();
      help += " " + last->get_name();
    }
    const std::vector<std::string> rest = app_->remaining(true);
    const bool unknown = !last->get_subcommands({}).empty() && !rest.empty();
    const std::string what =
        unknown ? fmt::format("unknown command \"{}\"", rest.front()) : std::string(error.what());
    fmt::print(stderr, "{}: {}; see {} --help\n", app_->get_name(), what, help);
    return static_cast<int>(ExitCode::kUsage);
  }
}

}  // namespace degu
