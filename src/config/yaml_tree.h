// The parsed form of configuration files: a tree whose nodes know where they were written.
// Internal to config/; everyone else sees YamlDocument.
#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace degu::internal {

struct YamlNode {
  enum class Kind { kNull, kScalar, kList, kMap };
  struct Entry;

  Kind kind = Kind::kNull;
  std::string text;             // scalars
  std::vector<YamlNode> items;  // lists
  std::vector<Entry> entries;   // maps, in the order of first appearance
  std::string file;             // or "--set a.b=c"
  int line = 0;                 // from 1; 0: not from a file

  const YamlNode* find(std::string_view key) const;
  YamlNode* find(std::string_view key);
  std::string place() const;  // "file.yaml:12"
  std::string shown() const;  // the value for a message: `abc`, "a list", "a map", "nothing"
};

// One key of a map and its value.
struct YamlNode::Entry {
  std::string first;
  YamlNode second;
};

// Parses one document; the root of an empty one is an empty map. `first_line` shifts nothing but
// messages. ConfigError with file:line for bad syntax, a repeated key, a key that is not a scalar,
// several documents.
YamlNode parse_yaml(std::string_view text, const std::string& file);
// A single value in flow style, for `--set`.
YamlNode parse_yaml_value(std::string_view text, const std::string& place);

// Reads `path` and what it includes, merged.
YamlNode load_yaml_tree(const std::string& path);
// The same for text that is already in memory.
YamlNode compose_yaml_tree(std::string_view text, const std::string& name);

// `over` wins: maps merge key by key, everything else replaces. A merged map keeps the place it was
// first written at.
void merge_yaml(YamlNode& base, YamlNode over);

// "a.b.0.c=value".
void assign_yaml(YamlNode& root, std::string_view assignment);

// The candidate with the least edit distance when it is near enough to be a slip, else empty.
std::string_view nearest_name(std::string_view name, const std::vector<std::string>& candidates);

}  // namespace degu::internal
