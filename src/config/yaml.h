// Configuration structs from YAML files and back.
//
// Files compose: a top-level `include: [a.yaml, b.yaml]` (paths relative to the including file) is
// read first, in order; later files win; maps merge key by key, lists and scalars replace. A cycle
// of includes, an unknown key, a repeated key or a value of the wrong type is a ConfigError with
// file:line, the value and the nearest valid name.
//
// Scalars: whole numbers may be written 4e11; booleans are true or false; a string that YAML would
// read as null needs quotes. An empty map (`data:` and nothing below) leaves the defaults.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "config/fields.h"

namespace degu {

// A merged document with the file and line of every node. Opaque: yaml-cpp stays behind it.
class YamlDocument {
 public:
  // IoError when a file cannot be read, ConfigError when its content is refused.
  static YamlDocument from_file(const std::string& path);
  // `name` stands where a file's path would in messages; includes are relative to its folder.
  static YamlDocument from_text(std::string_view text, const std::string& name);
  YamlDocument(const YamlDocument&);
  YamlDocument(YamlDocument&&) noexcept;
  YamlDocument& operator=(const YamlDocument&);
  YamlDocument& operator=(YamlDocument&&) noexcept;
  ~YamlDocument();

  // "train.steps=200" or "mixture.0.weight=2": sets one node as a later file would, creating maps
  // on the way; the value is parsed as YAML ("[1, 2]", "{a: 1}", "'text'").
  void set(std::string_view assignment);
  // The map below a top-level key as a document of its own, for a command that reads one part of a
  // run's file. ConfigError when there is none.
  YamlDocument part(const std::string& key) const;
  bool has(const std::string& key) const;
  // The text of one scalar ("data.sequence_length"), for a command that needs a single value of a
  // part it does not know; nothing when the document does not say.
  std::optional<std::string> value(std::string_view path) const;
  // Visits `fields` with a reader over this document: once for values and unknown keys, then once
  // more for the structs' own checks.
  void read(const std::function<void(Fields&)>& visit) const;

 private:
  struct Impl;
  explicit YamlDocument(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

// One field as documentation shows it.
struct FieldRow {
  std::string path;  // "model.moe.top_k", "sources[].weight"
  std::string type;  // "int", "number", "bool", "string", "list of int", "softmax | sigmoid |
                     // hash", "map", …
  std::string default_value;  // as YAML; empty for maps and lists of maps
  std::string help;
};

namespace internal {
std::string write_yaml(const std::function<void(Fields&)>& visit, bool with_help);
std::vector<FieldRow> list_fields(const std::function<void(Fields&)>& visit);
}  // namespace internal

template <Configurable T>
T read_config(const YamlDocument& document) {
  T value{};
  document.read([&](Fields& f) {
    value.fields(f);
    if constexpr (requires { value.check(); }) f.checked([&] { value.check(); });
  });
  return value;
}

template <Configurable T>
T load_config(const std::string& path, std::span<const std::string> overrides = {}) {
  YamlDocument document = YamlDocument::from_file(path);
  for (const std::string& assignment : overrides) document.set(assignment);
  return read_config<T>(document);
}

// Every field with its present value; reading the text gives the same struct.
template <Configurable T>
std::string to_yaml(const T& value) {
  T copy = value;
  return internal::write_yaml([&](Fields& f) { copy.fields(f); }, /*with_help=*/false);
}

// The defaults with each field's help as a comment above it: `degu help config`. A list of structs
// shows one entry.
template <Configurable T>
std::string describe_config() {
  T value{};
  return internal::write_yaml([&](Fields& f) { value.fields(f); }, /*with_help=*/true);
}

// The same as rows, for docs/config.md.
template <Configurable T>
std::vector<FieldRow> list_config() {
  T value{};
  return internal::list_fields([&](Fields& f) { value.fields(f); });
}

}  // namespace degu
