#include "config/yaml_tree.h"

#include <yaml-cpp/eventhandler.h>
#include <yaml-cpp/yaml.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <numeric>
#include <sstream>
#include <unordered_map>

#include "base/error.h"

namespace degu::internal {
namespace {

// Aliases copy what they stand for; without a bound a page of them can ask for all memory.
constexpr size_t kMaxNodes = 1'000'000;

size_t count_nodes(const YamlNode& node) {
  size_t count = 1;
  for (const YamlNode& item : node.items) count += count_nodes(item);
  for (const YamlNode::Entry& entry : node.entries) count += count_nodes(entry.second);
  return count;
}

// Builds the tree from yaml-cpp's events, which carry the position of each value and each key.
class TreeBuilder : public YAML::EventHandler {
 public:
  explicit TreeBuilder(std::string file) : file_(std::move(file)) {}

  YamlNode take() { return std::move(root_); }

  void OnDocumentStart(const YAML::Mark&) override {}
  void OnDocumentEnd() override {}
  void OnNull(const YAML::Mark& mark, YAML::anchor_t anchor) override {
    add(make(YamlNode::Kind::kNull, mark), anchor);
  }
  void OnAlias(const YAML::Mark& mark, YAML::anchor_t anchor) override {
    const auto found = anchors_.find(anchor);
    if (found == anchors_.end()) {
      throw ConfigError("{}:{}: an alias inside the value it stands for", file_, mark.line + 1);
    }
    YamlNode copy = found->second;
    add(std::move(copy), 0);
  }
  void OnScalar(const YAML::Mark& mark, const std::string&, YAML::anchor_t anchor,
                const std::string& value) override {
    YamlNode node = make(YamlNode::Kind::kScalar, mark);
    node.text = value;
    add(std::move(node), anchor);
  }
  void OnSequenceStart(const YAML::Mark& mark, const std::string&, YAML::anchor_t anchor,
                       YAML::EmitterStyle::value) override {
    open_.push_back({make(YamlNode::Kind::kList, mark), anchor, {}, false});
  }
  void OnSequenceEnd() override { close(); }
  void OnMapStart(const YAML::Mark& mark, const std::string&, YAML::anchor_t anchor,
                  YAML::EmitterStyle::value) override {
    open_.push_back({make(YamlNode::Kind::kMap, mark), anchor, {}, false});
  }
  void OnMapEnd() override { close(); }

 private:
  struct Open {
    YamlNode node;
    YAML::anchor_t anchor;
    YamlNode key;  // of the value to come, when has_key
    bool has_key;
  };

  YamlNode make(YamlNode::Kind kind, const YAML::Mark& mark) const {
    YamlNode node;
    node.kind = kind;
    node.file = file_;
    node.line = mark.line + 1;
    return node;
  }

  void close() {
    Open done = std::move(open_.back());
    open_.pop_back();
    add(std::move(done.node), done.anchor);
  }

  void add(YamlNode node, YAML::anchor_t anchor) {
    if (anchor != 0) anchors_[anchor] = node;
    if (open_.empty()) {
      root_ = std::move(node);
      return;
    }
    Open& parent = open_.back();
    if (parent.node.kind == YamlNode::Kind::kList) {
      count(node);
      parent.node.items.push_back(std::move(node));
    } else if (!parent.has_key) {
      add_key(parent, std::move(node));
    } else {
      // A null has no place of its own in the text: it stands where its key does. So does a value
      // that begins below its key: the key's line is where a reader looks.
      if (node.kind != YamlNode::Kind::kScalar) node.line = parent.key.line;
      count(node);
      parent.node.entries.push_back({std::move(parent.key.text), std::move(node)});
      parent.has_key = false;
    }
  }

  void add_key(Open& parent, YamlNode key) {
    if (key.kind != YamlNode::Kind::kScalar) {
      throw ConfigError("{}: a key must be a plain name, not {}", key.place(), key.shown());
    }
    if (const YamlNode* first = parent.node.find(key.text)) {
      throw ConfigError("{}: key \"{}\" is repeated (first at line {}); keep one", key.place(),
                        key.text, first->line);
    }
    parent.key = std::move(key);
    parent.has_key = true;
  }

  void count(const YamlNode& node) {
    // Children were counted when they were added; an alias's copy was not.
    nodes_ += node.kind == YamlNode::Kind::kScalar ? 1 : count_nodes(node);
    if (nodes_ > kMaxNodes) {
      throw ConfigError("{}: more than {} values; aliases multiply them", node.place(), kMaxNodes);
    }
  }

  std::string file_;
  YamlNode root_;
  std::vector<Open> open_;
  std::unordered_map<YAML::anchor_t, YamlNode> anchors_;
  size_t nodes_ = 0;
};

YamlNode parse_any(std::string_view text, const std::string& file) {
  std::istringstream stream{std::string(text)};
  TreeBuilder builder(file);
  try {
    YAML::Parser parser(stream);
    parser.HandleNextDocument(builder);
    YamlNode root = builder.take();
    TreeBuilder more(file);
    if (parser.HandleNextDocument(more)) {
      throw ConfigError("{}: a second YAML document begins (`---`); use one file for each", file);
    }
    return root;
  } catch (const YAML::Exception& error) {
    throw ConfigError("{}:{}: not valid YAML: {}", file, error.mark.line + 1, error.msg);
  }
}

std::string read_file(const std::string& path) {
  std::error_code code;
  if (std::filesystem::is_directory(path, code)) {
    throw IoError("{}: is a folder; give a YAML file", path);
  }
  std::ifstream file(path, std::ios::binary);
  if (!file) throw IoError("{}: cannot be read ({})", path, std::strerror(errno));
  std::ostringstream content;
  content << file.rdbuf();
  return std::move(content).str();
}

YamlNode compose(std::string_view text, const std::string& name, std::vector<std::string>& chain);

YamlNode load(const std::string& path, std::vector<std::string>& chain) {
  return compose(read_file(path), path, chain);
}

// `chain`: the canonical paths of the files that are being included, outermost first.
YamlNode compose(std::string_view text, const std::string& name, std::vector<std::string>& chain) {
  namespace fs = std::filesystem;
  YamlNode own = parse_yaml(text, name);
  YamlNode merged;
  merged.kind = YamlNode::Kind::kMap;
  merged.file = name;
  merged.line = own.line;

  const auto include =
      std::find_if(own.entries.begin(), own.entries.end(),
                   [](const YamlNode::Entry& entry) { return entry.first == "include"; });
  if (include != own.entries.end()) {
    const YamlNode list = std::move(include->second);
    own.entries.erase(include);
    if (list.kind != YamlNode::Kind::kList) {
      throw ConfigError("{}: include is {}; write a list: include: [a.yaml]", list.place(),
                        list.shown());
    }
    chain.push_back(fs::weakly_canonical(name).string());
    for (const YamlNode& item : list.items) {
      if (item.kind != YamlNode::Kind::kScalar) {
        throw ConfigError("{}: include names {}; each entry must be a file", item.place(),
                          item.shown());
      }
      const fs::path path = fs::path(name).parent_path() / item.text;
      const std::string canonical = fs::weakly_canonical(path).string();
      if (std::find(chain.begin(), chain.end(), canonical) != chain.end()) {
        throw ConfigError("{}: include \"{}\" closes a cycle; remove one of the includes",
                          item.place(), item.text);
      }
      if (!fs::exists(path)) {
        throw ConfigError("{}: included file \"{}\" does not exist (looked for {})", item.place(),
                          item.text, path.string());
      }
      merge_yaml(merged, load(path.string(), chain));
    }
    chain.pop_back();
  }
  merge_yaml(merged, std::move(own));
  return merged;
}

size_t edit_distance(std::string_view a, std::string_view b) {
  std::vector<size_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), size_t{0});
  for (size_t i = 1; i <= a.size(); ++i) {
    size_t diagonal = row[0];
    row[0] = i;
    for (size_t j = 1; j <= b.size(); ++j) {
      const size_t substituted = diagonal + (a[i - 1] == b[j - 1] ? 0 : 1);
      diagonal = row[j];
      row[j] = std::min({row[j] + 1, row[j - 1] + 1, substituted});
    }
  }
  return row[b.size()];
}

// The place of `part` in a list, or a ConfigError.
size_t list_index(const YamlNode& list, std::string_view part, std::string_view assignment) {
  size_t index = 0;
  const auto [end, error] = std::from_chars(part.data(), part.data() + part.size(), index);
  if (error != std::errc() || end != part.data() + part.size() || index >= list.items.size()) {
    throw ConfigError("--set {}: \"{}\" is no index of the list at {}, which has {} entries",
                      assignment, part, list.place(), list.items.size());
  }
  return index;
}

}  // namespace

const YamlNode* YamlNode::find(std::string_view key) const {
  for (const Entry& entry : entries) {
    if (entry.first == key) return &entry.second;
  }
  return nullptr;
}

YamlNode* YamlNode::find(std::string_view key) {
  return const_cast<YamlNode*>(std::as_const(*this).find(key));
}

std::string YamlNode::place() const {
  return line > 0 ? fmt::format("{}:{}", file, line) : file;
}

std::string YamlNode::shown() const {
  switch (kind) {
    case Kind::kNull:
      return "nothing";
    case Kind::kScalar:
      return fmt::format("\"{}\"", text);
    case Kind::kList:
      return "a list";
    case Kind::kMap:
      break;
  }
  return "a map";
}

YamlNode parse_yaml(std::string_view text, const std::string& file) {
  YamlNode root = parse_any(text, file);
  if (root.kind == YamlNode::Kind::kNull) {
    root.kind = YamlNode::Kind::kMap;
    root.file = file;
    root.line = 1;
  }
  if (root.kind != YamlNode::Kind::kMap) {
    throw ConfigError("{}: the file holds {}, must be a map of keys to values", root.place(),
                      root.shown());
  }
  return root;
}

YamlNode parse_yaml_value(std::string_view text, const std::string& place) {
  YamlNode node = parse_any(text, place);
  // Positions inside one argument help nobody: the argument itself is the place.
  const auto mark = [&](auto&& self, YamlNode& at) -> void {
    at.file = place;
    at.line = 0;
    for (YamlNode& item : at.items) self(self, item);
    for (YamlNode::Entry& entry : at.entries) self(self, entry.second);
  };
  mark(mark, node);
  return node;
}

YamlNode load_yaml_tree(const std::string& path) {
  std::vector<std::string> chain;
  return load(path, chain);
}

YamlNode compose_yaml_tree(std::string_view text, const std::string& name) {
  std::vector<std::string> chain;
  return compose(text, name, chain);
}

void merge_yaml(YamlNode& base, YamlNode over) {
  // `data:` with nothing below it is an empty map, which changes nothing.
  if (base.kind == YamlNode::Kind::kMap && over.kind == YamlNode::Kind::kNull) return;
  if (base.kind != YamlNode::Kind::kMap || over.kind != YamlNode::Kind::kMap) {
    base = std::move(over);
    return;
  }
  for (YamlNode::Entry& entry : over.entries) {
    if (YamlNode* present = base.find(entry.first)) {
      merge_yaml(*present, std::move(entry.second));
    } else {
      base.entries.push_back(std::move(entry));
    }
  }
}

void assign_yaml(YamlNode& root, std::string_view assignment) {
  const size_t equals = assignment.find('=');
  if (equals == std::string_view::npos || equals == 0) {
    throw ConfigError("--set {}: must be KEY=VALUE, such as train.steps=200", assignment);
  }
  const std::string place = fmt::format("--set {}", assignment);
  YamlNode value = parse_yaml_value(assignment.substr(equals + 1), place);
  YamlNode* node = &root;
  std::string_view path = assignment.substr(0, equals);
  while (true) {
    const size_t dot = path.find('.');
    const std::string_view part = path.substr(0, dot);
    if (part.empty()) throw ConfigError("{}: an empty name in the key", place);
    if (node->kind == YamlNode::Kind::kList) {
      node = &node->items[list_index(*node, part, assignment)];
    } else {
      if (node->kind == YamlNode::Kind::kScalar) {
        throw ConfigError("{}: \"{}\" would be below {}, the value at {}", place, part,
                          node->shown(), node->place());
      }
      node->kind = YamlNode::Kind::kMap;
      YamlNode* child = node->find(part);
      if (child == nullptr) {
        YamlNode made;
        made.file = place;
        node->entries.push_back({std::string(part), std::move(made)});
        child = &node->entries.back().second;
      }
      node = child;
    }
    if (dot == std::string_view::npos) break;
    path.remove_prefix(dot + 1);
  }
  merge_yaml(*node, std::move(value));
}

std::string_view nearest_name(std::string_view name, const std::vector<std::string>& candidates) {
  // A third of the letters wrong is a slip; more is another word.
  size_t best = std::max<size_t>(name.size() / 3, 2) + 1;
  std::string_view nearest;
  for (const std::string& candidate : candidates) {
    if (const size_t distance = edit_distance(name, candidate); distance < best) {
      best = distance;
      nearest = candidate;
    }
  }
  return nearest;
}

}  // namespace degu::internal
