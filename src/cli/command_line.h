// What a command declares of its command line: names, where values go, help. CLI11 parses behind
// it and is compiled in command_line.cc alone; it would be half of every command's compile time.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "config/fields.h"

namespace CLI {
class App;
class Option;
}  // namespace CLI

namespace degu {

// A declared option. Of a list each value is checked.
class Option {
 public:
  explicit Option(CLI::Option* option) : option_(option) {}
  Option required();
  Option positive();                       // > 0
  Option non_negative();                   // ≥ 0
  Option within(double low, double high);  // both allowed
  Option among(std::vector<std::string> words);
  Option comma_separated();  // a list's values in one word: 1,16
  Option repeatable();       // a list's option is given once for each value

 private:
  CLI::Option* option_;
};

class CommandLine {
 public:
  CommandLine(const std::string& program, const std::string& summary, const std::string& version);

  // `names`: "--out", "--frequencies,--routes", or "checkpoint" for what stands without a name.
  // What `to` holds is the default; it is shown unless it can only mean "not given": empty, below
  // zero, not a number, or 0 where only positive() ones are allowed. `to` must outlive the parsing.
  // T: std::string, int, int64_t, uint64_t, double, or a vector of std::string, int, int64_t or
  // double.
  template <class T>
  Option option(const std::string& names, T& to, const std::string& help);
  // The name of one of an enum's values.
  template <NamedEnum E>
  Option option(const std::string& names, E& to, const std::string& help) {
    return word(names, enum_names(to), static_cast<size_t>(to), help,
                [&to](size_t index) { to = static_cast<E>(index); });
  }
  // One of `words`: `chosen` is called with its index. `initial` is shown as the default.
  Option word(const std::string& names, std::span<const std::string_view> words, size_t initial,
              const std::string& help, std::function<void(size_t index)> chosen);
  // on or off.
  Option on_off(const std::string& name, bool& to, const std::string& help);
  // "--json", or "--probe,!--no-probe" with a way to say no.
  void flag(const std::string& names, bool& to, const std::string& help);

  // A command within this one, of which the user has to name one. Options of the outer one may
  // follow its name.
  CommandLine command(const std::string& name, const std::string& summary);
  bool given() const;        // whether the user named this command
  std::string name() const;  // "bench serve"

  // Fills what was declared. Returns the exit code when nothing is left to do: help and version are
  // printed, and one line on standard error about a command line that cannot be understood.
  std::optional<int> parse(int argc, char** argv);

 private:
  explicit CommandLine(CLI::App* app);
  std::shared_ptr<CLI::App> root_;  // null within another command
  CLI::App* app_;
};

}  // namespace degu
