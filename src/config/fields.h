// One list of fields per configuration struct, visited by everything that needs to know them: the
// YAML reader, `--set`, the printer, `--help`, the checkpoint and the YAML reference in docs/.
//
//   struct TopKConfig {
//     int experts = 64;
//     Score score = Score::kSoftmax;                     // an enum with a names table, see below
//     void fields(Fields& f) {
//       f("experts", experts, "routed experts in the layer");
//       f("score", score, "how logits become gates");
//     }
//     void check() const;                                // optional: throws ConfigError on
//     impossible values
//   };
//
// `fields` may be visited several times and must do nothing but name members. A `check` message
// starts with the name of the offending field ("top_k is 9, must be ...", or "moe.top_k ..." for
// one further down), so that a reader can point at the field's own line.
//
// An enum E takes part by `constexpr auto enum_names(E)` returning std::array<std::string_view, n>
// in the order of its values 0 … n-1, found by argument-dependent look-up.
#pragma once

#include <concepts>
#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include "base/error.h"

namespace degu {

class Fields;

template <class T>
concept Configurable = requires(T& value, Fields& f) {
  value.fields(f);
};

template <class E>
concept NamedEnum = std::is_enum_v<E> && requires(E e) {
  enum_names(e);
};

template <NamedEnum E>
std::string_view enum_name(E value) {
  return enum_names(value)[static_cast<size_t>(value)];
}

// The visitor. A struct's `fields` calls it once per member, in the order of the documentation.
// Implementations: YAML reader and writer, help printer, path setter (config/yaml.h).
class Fields {
 public:
  virtual ~Fields() = default;

  void operator()(const char* name, bool& value, const char* help) { leaf(name, value, help); }
  void operator()(const char* name, int& value, const char* help) { leaf(name, value, help); }
  void operator()(const char* name, int64_t& value, const char* help) { leaf(name, value, help); }
  void operator()(const char* name, double& value, const char* help) { leaf(name, value, help); }
  void operator()(const char* name, std::string& value, const char* help) {
    leaf(name, value, help);
  }
  void operator()(const char* name, std::vector<int64_t>& value, const char* help) {
    leaf(name, value, help);
  }
  void operator()(const char* name, std::vector<double>& value, const char* help) {
    leaf(name, value, help);
  }
  void operator()(const char* name, std::vector<std::string>& value, const char* help) {
    leaf(name, value, help);
  }

  template <NamedEnum E>
  void operator()(const char* name, E& value, const char* help) {
    static constexpr auto names = enum_names(E{});
    int index = static_cast<int>(value);
    choice(name, index, names, help);
    value = static_cast<E>(index);
  }

  template <Configurable T>
  void operator()(const char* name, T& value, const char* help) {
    if (!begin_map(name, help)) return;
    value.fields(*this);
    if constexpr (requires { value.check(); }) checked([&] { value.check(); });
    end_map();
  }

  // A list of structs: `begin_list` says how many entries the visited side has (the reader's file,
  // or `size` itself for writers).
  template <Configurable T>
  void operator()(const char* name, std::vector<T>& value, const char* help) {
    const std::optional<size_t> size = begin_list(name, value.size(), help);
    if (!size) return;
    value.resize(*size);
    for (size_t i = 0; i < *size; ++i) {
      begin_entry(i);
      value[i].fields(*this);
      if constexpr (requires { value[i].check(); }) checked([&] { value[i].check(); });
      end_entry();
    }
    end_list();
  }

  // Runs a struct's own check; a reader puts file and line before what it throws, others do not run
  // it. Called with the struct's map still open. A document's root is checked by read_config.
  template <class Check>
  void checked(Check&& check) {
    if (!wants_checks()) return;
    try {
      check();
    } catch (const ConfigError& error) {
      throw ConfigError("{}{}", place(error.what()), error.what());
    }
  }

 protected:
  virtual void leaf(const char* name, bool& value, const char* help) = 0;
  virtual void leaf(const char* name, int& value, const char* help) = 0;
  virtual void leaf(const char* name, int64_t& value, const char* help) = 0;
  virtual void leaf(const char* name, double& value, const char* help) = 0;
  virtual void leaf(const char* name, std::string& value, const char* help) = 0;
  virtual void leaf(const char* name, std::vector<int64_t>& value, const char* help) = 0;
  virtual void leaf(const char* name, std::vector<double>& value, const char* help) = 0;
  virtual void leaf(const char* name, std::vector<std::string>& value, const char* help) = 0;
  virtual void choice(const char* name, int& index, std::span<const std::string_view> names,
                      const char* help) = 0;
  virtual bool begin_map(const char* name, const char* help) = 0;  // false: skip it
  virtual void end_map() = 0;
  virtual std::optional<size_t> begin_list(const char* name, size_t size, const char* help) = 0;
  virtual void begin_entry(size_t index) = 0;
  virtual void end_entry() = 0;
  virtual void end_list() = 0;
  virtual bool wants_checks() const { return false; }
  // "file.yaml:12: ", the line of the field that `message` starts with, else of the open map.
  virtual std::string place(std::string_view /*message*/) const { return {}; }
};

}  // namespace degu
