#include "config/yaml.h"

#include <charconv>
#include <cmath>
#include <limits>
#include <utility>

#include "config/yaml_tree.h"

namespace degu {

using internal::YamlNode;

namespace {

// 4e11 and 1e3 are whole numbers too, as long as a double holds them exactly.
bool parse_whole(std::string_view text, int64_t& out) {
  const char* end = text.data() + text.size();
  if (text.starts_with('+')) text.remove_prefix(1);
  int64_t whole = 0;
  if (const auto got = std::from_chars(text.data(), end, whole);
      got.ec == std::errc() && got.ptr == end) {
    out = whole;
    return true;
  }
  double real = 0;
  const auto got = std::from_chars(text.data(), end, real);
  if (got.ec != std::errc() || got.ptr != end) return false;
  if (std::nearbyint(real) != real || std::abs(real) > 0x1p53) return false;
  out = static_cast<int64_t>(real);
  return true;
}

// YAML's spellings of infinity, but no NaN: nothing is configured with it.
bool parse_real(std::string_view text, double& out) {
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  if (text == ".inf" || text == "+.inf") return out = kInfinity, true;
  if (text == "-.inf") return out = -kInfinity, true;
  const char* end = text.data() + text.size();
  if (text.starts_with('+')) text.remove_prefix(1);
  double real = 0;
  const auto got = std::from_chars(text.data(), end, real);
  if (got.ec != std::errc() || got.ptr != end || !std::isfinite(real)) return false;
  out = real;
  return true;
}

std::string join(std::span<const std::string_view> names, std::string_view separator) {
  return fmt::format("{}", fmt::join(names.begin(), names.end(), separator));
}

// Reads a tree into structs. Names that a struct asked for are kept per open map, so that what
// nobody asked for can be told.
class Reader : public Fields {
 public:
  Reader(const YamlNode& root, bool checks) : checks_(checks) { open_.push_back({&root, "", {}}); }

  // Throws for the first key, in the order of the text, that no field has.
  void finish() {
    close();
    if (unknown_.empty()) return;
    const Unknown& first = unknown_.front();
    throw ConfigError("{}: unknown key \"{}\"{}{}", first.place, first.path,
                      first.parent.empty() ? "" : fmt::format(" in {}", first.parent),
                      advice(first));
  }

 protected:
  void leaf(const char* name, bool& value, const char*) override {
    const YamlNode* node = scalar(name, "true or false");
    if (node == nullptr) return;
    if (node->text != "true" && node->text != "false") reject(*node, name, "true or false");
    value = node->text == "true";
  }
  void leaf(const char* name, int& value, const char*) override {
    constexpr const char* kExpected = "a whole number";
    const YamlNode* node = scalar(name, kExpected);
    if (node == nullptr) return;
    int64_t whole = 0;
    if (!parse_whole(node->text, whole)) reject(*node, name, kExpected);
    if (whole < std::numeric_limits<int>::min() || whole > std::numeric_limits<int>::max()) {
      reject(*node, name, "a whole number below 2147483648 in size");
    }
    value = static_cast<int>(whole);
  }
  void leaf(const char* name, int64_t& value, const char*) override {
    constexpr const char* kExpected = "a whole number";
    const YamlNode* node = scalar(name, kExpected);
    if (node != nullptr && !parse_whole(node->text, value)) reject(*node, name, kExpected);
  }
  void leaf(const char* name, double& value, const char*) override {
    const YamlNode* node = scalar(name, "a number");
    if (node != nullptr && !parse_real(node->text, value)) reject(*node, name, "a number");
  }
  void leaf(const char* name, std::string& value, const char*) override {
    const YamlNode* node = scalar(name, "text (quote it if it is meant to be empty or null)");
    if (node != nullptr) value = node->text;
  }
  void leaf(const char* name, std::vector<int64_t>& value, const char*) override {
    list(name, value, "a list of whole numbers, such as [1, 2]", parse_whole);
  }
  void leaf(const char* name, std::vector<double>& value, const char*) override {
    list(name, value, "a list of numbers, such as [0.5, 1]", parse_real);
  }
  void leaf(const char* name, std::vector<std::string>& value, const char*) override {
    list(name, value, "a list of texts, such as [a, b]",
         [](const std::string& text, std::string& out) {
           out = text;
           return true;
         });
  }
  void choice(const char* name, int& index, std::span<const std::string_view> names,
              const char*) override {
    const std::string expected = "one of " + join(names, ", ");
    const YamlNode* node = scalar(name, expected);
    if (node == nullptr) return;
    for (size_t i = 0; i < names.size(); ++i) {
      if (names[i] == node->text) {
        index = static_cast<int>(i);
        return;
      }
    }
    const std::vector<std::string> all(names.begin(), names.end());
    const std::string_view near = internal::nearest_name(node->text, all);
    reject(*node, name,
           near.empty() ? expected : fmt::format("{} (did you mean {}?)", expected, near));
  }
  bool begin_map(const char* name, const char*) override {
    const YamlNode* node = ask(name);
    if (node != nullptr && node->kind == YamlNode::Kind::kNull) node = nullptr;
    if (node != nullptr && node->kind != YamlNode::Kind::kMap) reject(*node, name, "a map of keys");
    // An absent map is visited too, so that its checks run and its names are known to advice().
    open_.push_back({node, path_of(name), {}});
    return true;
  }
  void end_map() override { close(); }
  std::optional<size_t> begin_list(const char* name, size_t, const char*) override {
    const YamlNode* node = ask(name);
    if (node == nullptr) return std::nullopt;
    if (node->kind != YamlNode::Kind::kList)
      reject(*node, name, "a list of maps (`- key: value` each)");
    lists_.push_back({node, path_of(name)});
    return node->items.size();
  }
  void begin_entry(size_t index) override {
    const auto& [list, path] = lists_.back();
    const YamlNode& item = list->items[index];
    std::string entry_path = fmt::format("{}.{}", path, index);
    if (item.kind != YamlNode::Kind::kMap) {
      throw ConfigError("{}: {} is {}, must be a map of keys", item.place(), entry_path,
                        item.shown());
    }
    open_.push_back({&item, std::move(entry_path), {}});
  }
  void end_entry() override { close(); }
  void end_list() override { lists_.pop_back(); }

  bool wants_checks() const override { return checks_; }
  std::string place(std::string_view message) const override {
    const YamlNode* at = open_.back().node;
    if (at == nullptr) {
      for (size_t i = open_.size(); i-- > 0 && at == nullptr;) at = open_[i].node;
      return at == nullptr ? std::string() : at->place() + ": ";
    }
    // Follow the field's name that the message begins with as far as the document goes.
    size_t length = 0;
    while (length < message.size() &&
           (std::isalnum(static_cast<unsigned char>(message[length])) != 0 ||
            message[length] == '_' || message[length] == '.')) {
      ++length;
    }
    std::string_view path = message.substr(0, length);
    while (!path.empty()) {
      const size_t dot = path.find('.');
      const YamlNode* child = at->find(path.substr(0, dot));
      if (child == nullptr) break;
      at = child;
      path.remove_prefix(dot == std::string_view::npos ? path.size() : dot + 1);
    }
    return at->place() + ": ";
  }

 private:
  struct Open {
    const YamlNode* node;  // null: the document does not have this map
    std::string path;      // "model.moe"
    std::vector<std::string> asked;
  };
  struct Unknown {
    std::string place, parent, path, key;
    std::vector<std::string> siblings;
  };

  std::string path_of(const char* name) const {
    return open_.back().path.empty() ? name : open_.back().path + "." + name;
  }

  const YamlNode* ask(const char* name) {
    open_.back().asked.emplace_back(name);
    paths_.push_back(path_of(name));
    return open_.back().node == nullptr ? nullptr : open_.back().node->find(name);
  }

  const YamlNode* scalar(const char* name, std::string_view expected) {
    const YamlNode* node = ask(name);
    if (node != nullptr && node->kind != YamlNode::Kind::kScalar) reject(*node, name, expected);
    return node;
  }

  template <class T, class Parse>
  void list(const char* name, std::vector<T>& value, const char* expected, Parse parse) {
    const YamlNode* node = ask(name);
    if (node == nullptr) return;
    if (node->kind != YamlNode::Kind::kList) reject(*node, name, expected);
    std::vector<T> read;
    for (const YamlNode& item : node->items) {
      T entry{};
      if (item.kind != YamlNode::Kind::kScalar || !parse(item.text, entry))
        reject(item, name, expected);
      read.push_back(std::move(entry));
    }
    value = std::move(read);
  }

  [[noreturn]] void reject(const YamlNode& node, const char* name,
                           std::string_view expected) const {
    throw ConfigError("{}: {} is {}, must be {}", node.place(), path_of(name), node.shown(),
                      expected);
  }

  void close() {
    Open done = std::move(open_.back());
    open_.pop_back();
    if (done.node == nullptr) return;
    for (const YamlNode::Entry& entry : done.node->entries) {
      if (std::find(done.asked.begin(), done.asked.end(), entry.first) != done.asked.end())
        continue;
      Unknown unknown{entry.second.place(), done.path, entry.first, entry.first, done.asked};
      unknown_.push_back(std::move(unknown));
    }
  }

  // "; did you mean …": a slip in this map, else the same name elsewhere, else what there is.
  std::string advice(const Unknown& unknown) const {
    if (const auto near = internal::nearest_name(unknown.key, unknown.siblings); !near.empty()) {
      return fmt::format("; did you mean \"{}\"?", near);
    }
    for (const std::string& path : paths_) {
      if (path == unknown.key || path.ends_with("." + unknown.key)) {
        return fmt::format("; did you mean \"{}\"?", path);
      }
    }
    return fmt::format("; known here: {}",
                       fmt::join(unknown.siblings.begin(), unknown.siblings.end(), ", "));
  }

  bool checks_;
  std::vector<Open> open_;
  std::vector<std::pair<const YamlNode*, std::string>> lists_;
  std::vector<std::string> paths_;
  std::vector<Unknown> unknown_;
};

}  // namespace

struct YamlDocument::Impl {
  YamlNode root;
};

YamlDocument::YamlDocument(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
YamlDocument::YamlDocument(const YamlDocument& other)
    : impl_(std::make_unique<Impl>(*other.impl_)) {}
YamlDocument::YamlDocument(YamlDocument&&) noexcept = default;
YamlDocument& YamlDocument::operator=(const YamlDocument& other) {
  return *this = YamlDocument(other);
}
YamlDocument& YamlDocument::operator=(YamlDocument&&) noexcept = default;
YamlDocument::~YamlDocument() = default;

YamlDocument YamlDocument::from_file(const std::string& path) {
  return YamlDocument(std::make_unique<Impl>(Impl{internal::load_yaml_tree(path)}));
}

YamlDocument YamlDocument::from_text(std::string_view text, const std::string& name) {
  return YamlDocument(std::make_unique<Impl>(Impl{internal::compose_yaml_tree(text, name)}));
}

void YamlDocument::set(std::string_view assignment) {
  internal::assign_yaml(impl_->root, assignment);
}

bool YamlDocument::has(const std::string& key) const {
  return impl_->root.find(key) != nullptr;
}

std::optional<std::string> YamlDocument::value(std::string_view path) const {
  const YamlNode* node = &impl_->root;
  while (node != nullptr && !path.empty()) {
    const size_t dot = path.find('.');
    node = node->find(path.substr(0, dot));
    path.remove_prefix(dot == std::string_view::npos ? path.size() : dot + 1);
  }
  if (node == nullptr || node->kind != YamlNode::Kind::kScalar) return std::nullopt;
  return node->text;
}

YamlDocument YamlDocument::part(const std::string& key) const {
  const YamlNode* node = impl_->root.find(key);
  if (node == nullptr)
    throw ConfigError("{}: has no part \"{}:\"; add it or include it", impl_->root.file, key);
  YamlNode root = *node;
  if (root.kind == YamlNode::Kind::kNull) root.kind = YamlNode::Kind::kMap;
  if (root.kind != YamlNode::Kind::kMap) {
    throw ConfigError("{}: {} is {}, must be a map of keys", root.place(), key, root.shown());
  }
  return YamlDocument(std::make_unique<Impl>(Impl{std::move(root)}));
}

void YamlDocument::read(const std::function<void(Fields&)>& visit) const {
  Reader reader(impl_->root, /*checks=*/false);
  visit(reader);
  reader.finish();  // a misspelt key is told before a check can complain of the missing one
  Reader checker(impl_->root, /*checks=*/true);
  visit(checker);
}

}  // namespace degu
