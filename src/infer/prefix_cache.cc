#include "infer/prefix_cache.h"

#include <algorithm>

namespace degu {

struct PrefixCache::Node {
  Node* parent = nullptr;
  uint64_t hash = 0;
  std::vector<int32_t> tokens;
  int32_t page = -1;
  uint64_t used = 0;
  std::multimap<uint64_t, std::unique_ptr<Node>> children;  // by hash
};

namespace {

uint64_t hash_of(std::span<const int32_t> tokens) {
  uint64_t hash = 0xcbf29ce484222325ull;
  for (int32_t token : tokens) {
    hash = (hash ^ static_cast<uint32_t>(token)) * 0x9E3779B97F4A7C15ull;
    hash ^= hash >> 29;
  }
  return hash;
}

}  // namespace

PrefixCache::PrefixCache(PagePool& pool) : pool_(pool), root_(std::make_unique<Node>()) {}

PrefixCache::~PrefixCache() {
  std::vector<Node*> todo = {root_.get()};
  while (!todo.empty()) {
    Node* node = todo.back();
    todo.pop_back();
    if (node->page >= 0) pool_.drop(node->page);
    for (auto& [hash, next] : node->children) todo.push_back(next.get());
  }
}

PrefixCache::Node* PrefixCache::child(Node& parent, uint64_t hash,
                                      std::span<const int32_t> tokens) const {
  const auto [first, last] = parent.children.equal_range(hash);
  for (auto it = first; it != last; ++it) {
    if (std::equal(tokens.begin(), tokens.end(), it->second->tokens.begin())) {
      return it->second.get();
    }
  }
  return nullptr;
}

void PrefixCache::touch(Node& node) {
  const bool leaf = node.children.empty();
  if (leaf) leaves_.erase({node.used, &node});
  node.used = ++clock_;
  if (leaf) leaves_.insert({node.used, &node});
}

std::vector<int32_t> PrefixCache::match(std::span<const int32_t> tokens, int64_t most_pages,
                                        Node*& last) {
  std::vector<int32_t> pages;
  Node* at = root_.get();
  constexpr auto kKeys = static_cast<size_t>(kKvPageKeys);
  while (static_cast<int64_t>(pages.size()) < most_pages && tokens.size() >= kKeys) {
    const auto block = tokens.first(kKeys);
    Node* next = child(*at, hash_of(block), block);
    if (next == nullptr) break;
    pool_.share(next->page);
    pages.push_back(next->page);
    touch(*next);
    at = next;
    tokens = tokens.subspan(kKeys);
  }
  last = pages.empty() ? nullptr : at;
  return pages;
}

PrefixCache::Node* PrefixCache::insert(Node* parent, std::span<const int32_t> tokens,
                                       int32_t& page) {
  DEGU_DCHECK(static_cast<int64_t>(tokens.size()) == kKvPageKeys);
  Node& above = parent == nullptr ? *root_ : *parent;
  const uint64_t hash = hash_of(tokens);
  if (Node* known = child(above, hash, tokens); known != nullptr) {
    if (known->page != page) {
      pool_.share(known->page);
      pool_.drop(page);
      page = known->page;
    }
    touch(*known);
    return known;
  }
  if (above.children.empty()) leaves_.erase({above.used, &above});
  auto node = std::make_unique<Node>();
  node->parent = &above;
  node->hash = hash;
  node->tokens.assign(tokens.begin(), tokens.end());
  node->page = page;
  pool_.share(page);
  Node* made = node.get();
  above.children.emplace(hash, std::move(node));
  touch(*made);
  ++count_;
  return made;
}

bool PrefixCache::evict() {
  const auto found = std::find_if(leaves_.begin(), leaves_.end(), [&](const auto& leaf) {
    return pool_.holders(leaf.second->page) == 1;
  });
  if (found == leaves_.end()) return false;
  Node* node = found->second;
  leaves_.erase(found);
  pool_.drop(node->page);
  --count_;
  Node& above = *node->parent;
  const auto [first, last] = above.children.equal_range(node->hash);
  above.children.erase(
      std::find_if(first, last, [&](const auto& each) { return each.second.get() == node; }));
  if (above.children.empty() && &above != root_.get()) leaves_.insert({above.used, &above});
  return true;
}

int64_t PrefixCache::evictable() const {
  int64_t count = 0;
  std::vector<const Node*> todo = {root_.get()};
  while (!todo.empty()) {
    const Node* node = todo.back();
    todo.pop_back();
    count += node->page >= 0 && pool_.holders(node->page) == 1;
    for (const auto& [hash, next] : node->children) todo.push_back(next.get());
  }
  return count;
}

}  // namespace degu
