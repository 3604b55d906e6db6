// Configuration structs from YAML files and back.
//
// Files compose: a top-level `include: [a.yaml, b.yaml]` (paths relative to the including file) is read
// first, in order; later files win; maps merge key by key, lists and scalars replace. A cycle of
// includes, an unknown key, a repeated key or a value of the wrong type is a ConfigError with file:line,
// the value and the nearest valid name.
#pragma once

#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "config/fields.h"

namespace degu {

// A merged document with the file and line of every node. Opaque, so that yaml-cpp stays in one .cc.
class YamlDocument {
 public:
  static YamlDocument from_file(const std::string& path);
  static YamlDocument from_text(std::string_view text, const std::string& name);
  YamlDocument(const YamlDocument&);
  YamlDocument(YamlDocument&&) noexcept;
  YamlDocument& operator=(YamlDocument&&) noexcept;
  ~YamlDocument();

  // "train.steps=200": sets one leaf, creating maps on the way; the value is parsed as YAML.
  void set(std::string_view assignment);
  // Visits `fields` with a reader over this document, then reports keys that nobody asked for.
  void read(const std::function<void(Fields&)>& visit) const;

 private:
  struct Impl;
  explicit YamlDocument(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

namespace internal {
std::string write_yaml(const std::function<void(Fields&)>& visit, bool with_help);
}

template <Configurable T>
T read_config(const YamlDocument& document) {
  T value{};
  document.read([&](Fields& f) {
    value.fields(f);
  });
  if constexpr (requires { value.check(); }) value.check();
  return value;
}

template <Configurable T>
T load_config(const std::string& path, std::span<const std::string> overrides = {}) {
  YamlDocument document = YamlDocument::from_file(path);
  for (const std::string& assignment : overrides) document.set(assignment);
  return read_config<T>(document);
}

// Every field with its present value; `load_config` of the text gives the same struct.
template <Configurable T>
std::string to_yaml(const T& value) {
  T copy = value;
  return internal::write_yaml([&](Fields& f) { copy.fields(f); }, /*with_help=*/false);
}

// The same with each field's help as a comment above it: `degu help config`, docs/config.md.
template <Configurable T>
std::string describe_config() {
  T value{};
  return internal::write_yaml([&](Fields& f) { value.fields(f); }, /*with_help=*/true);
}

}  // namespace degu
