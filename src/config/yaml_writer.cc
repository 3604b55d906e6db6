// The two printers of a field list: YAML text and rows for documentation.
#include <cmath>
#include <utility>

#include "config/yaml.h"

namespace degu::internal {
namespace {

bool is_plain(std::string_view text) {
  const auto word = [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_' || c == '/';
  };
  if (text.empty() || !word(text[0])) return false;
  for (char c : text) {
    if (!word(c) && !(c >= '0' && c <= '9') && c != '.' && c != '-' && c != '+') return false;
  }
  for (std::string_view reserved :
       {"null", "Null", "NULL", "true", "false", "yes", "no", "on", "off"}) {
    if (text == reserved) return false;
  }
  return true;
}

std::string scalar(bool value) {
  return value ? "true" : "false";
}
std::string scalar(int64_t value) {
  return fmt::format("{}", value);
}
std::string scalar(double value) {
  if (std::isinf(value)) return value > 0 ? ".inf" : "-.inf";
  return fmt::format("{}", value);  // the shortest text that reads back to the same bits
}
std::string scalar(const std::string& text) {
  if (is_plain(text)) return text;
  std::string quoted = "\"";
  for (char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (c == '"' || c == '\\') {
      quoted += '\\';
      quoted += c;
    } else if (c == '\n') {
      quoted += "\\n";
    } else if (byte < 0x20 || byte == 0x7f) {
      quoted += fmt::format("\\x{:02x}", byte);
    } else {
      quoted += c;
    }
  }
  return quoted + "\"";
}

template <class T>
std::string sequence(const std::vector<T>& values) {
  std::string text = "[";
  for (const T& value : values) {
    if (text.size() > 1) text += ", ";
    text += scalar(value);
  }
  return text + "]";
}

// What both printers share: every kind of leaf becomes (name, type, value as YAML, help).
class Printer : public Fields {
 public:
  using Fields::operator();

 protected:
  virtual void line(const char* name, std::string type, std::string value, const char* help) = 0;

  void leaf(const char* name, bool& value, const char* help) override {
    line(name, "bool", scalar(value), help);
  }
  void leaf(const char* name, int& value, const char* help) override {
    line(name, "int", scalar(int64_t{value}), help);
  }
  void leaf(const char* name, int64_t& value, const char* help) override {
    line(name, "int", scalar(value), help);
  }
  void leaf(const char* name, double& value, const char* help) override {
    line(name, "number", scalar(value), help);
  }
  void leaf(const char* name, std::string& value, const char* help) override {
    line(name, "text", scalar(value), help);
  }
  void leaf(const char* name, std::vector<int64_t>& value, const char* help) override {
    line(name, "list of int", sequence(value), help);
  }
  void leaf(const char* name, std::vector<double>& value, const char* help) override {
    line(name, "list of number", sequence(value), help);
  }
  void leaf(const char* name, std::vector<std::string>& value, const char* help) override {
    line(name, "list of text", sequence(value), help);
  }
  void choice(const char* name, int& index, std::span<const std::string_view> names,
              const char* help) override {
    line(name, fmt::format("{}", fmt::join(names.begin(), names.end(), " | ")),
         std::string(names[static_cast<size_t>(index)]), help);
  }
};

class Writer : public Printer {
 public:
  explicit Writer(bool with_help) : with_help_(with_help) {}
  std::string take() { return std::move(text_); }

 protected:
  void line(const char* name, std::string type, std::string value, const char* help) override {
    if (with_help_ && type.find(" | ") != std::string::npos) {
      comment(fmt::format("{} ({})", help, type).c_str());
    } else {
      comment(help);
    }
    text_ += fmt::format("{}{}: {}\n", indent(), name, value);
  }
  bool begin_map(const char* name, const char* help) override {
    comment(help);
    text_ += fmt::format("{}{}:\n", indent(), name);
    depth_ += 1;
    return true;
  }
  void end_map() override { depth_ -= 1; }
  std::optional<size_t> begin_list(const char* name, size_t size, const char* help) override {
    // Documentation shows one entry, for its fields are not seen otherwise.
    if (with_help_ && size == 0) {
      comment(fmt::format("{} (a list, empty by default; one entry shown)", help).c_str());
      size = 1;
    } else {
      comment(help);
    }
    if (size == 0) {
      text_ += fmt::format("{}{}: []\n", indent(), name);
      return std::nullopt;
    }
    text_ += fmt::format("{}{}:\n", indent(), name);
    depth_ += 1;
    return size;
  }
  void begin_entry(size_t) override {
    dash_ = true;
    depth_ += 1;
  }
  void end_entry() override { depth_ -= 1; }
  void end_list() override { depth_ -= 1; }

 private:
  // Of an entry's first field above the dash, which stays with the field.
  void comment(const char* help) {
    const size_t columns = 2 * depth_ - (dash_ ? 2 : 0);
    if (with_help_) text_ += fmt::format("{:{}}# {}\n", "", columns, help);
  }
  // The first line of a list's entry carries its dash.
  std::string indent() {
    std::string spaces(2 * depth_, ' ');
    if (std::exchange(dash_, false)) spaces[spaces.size() - 2] = '-';
    return spaces;
  }

  bool with_help_;
  size_t depth_ = 0;
  bool dash_ = false;
  std::string text_;
};

class Lister : public Printer {
 public:
  std::vector<FieldRow> take() { return std::move(rows_); }

 protected:
  void line(const char* name, std::string type, std::string value, const char* help) override {
    rows_.push_back({prefix() + name, std::move(type), std::move(value), help});
  }
  bool begin_map(const char* name, const char* help) override {
    line(name, "map", "", help);
    parents_.push_back(prefix() + name + ".");
    return true;
  }
  void end_map() override { parents_.pop_back(); }
  std::optional<size_t> begin_list(const char* name, size_t, const char* help) override {
    line(name, "list of maps", "", help);
    parents_.push_back(prefix() + name + "[].");
    return 1;
  }
  void begin_entry(size_t) override {}
  void end_entry() override {}
  void end_list() override { parents_.pop_back(); }

 private:
  std::string prefix() const { return parents_.empty() ? std::string() : parents_.back(); }

  std::vector<std::string> parents_;
  std::vector<FieldRow> rows_;
};

}  // namespace

std::string write_yaml(const std::function<void(Fields&)>& visit, bool with_help) {
  Writer writer(with_help);
  visit(writer);
  return writer.take();
}

std::vector<FieldRow> list_fields(const std::function<void(Fields&)>& visit) {
  Lister lister;
  visit(lister);
  return lister.take();
}

}  // namespace degu::internal
