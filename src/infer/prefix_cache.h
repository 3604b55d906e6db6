// Pages that later sequences may begin with.
//
// A tree whose nodes are whole pages: a node stands for the kKvPageKeys tokens of its page after
// those of its ancestors, and is found by comparing these tokens (a hash only narrows the search).
// The cache is one more holder of each page. A page that a sequence holds is never evicted; since a
// sequence that holds a node's page holds all its ancestors', nodes that nobody else holds can go
// leaf by leaf, least recently used first.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <set>
#include <span>
#include <vector>

#include "infer/kv_cache.h"

namespace degu {

class PrefixCache {
 public:
  struct Node;

  explicit PrefixCache(PagePool& pool);
  ~PrefixCache();  // gives all pages back
  PrefixCache(const PrefixCache&) = delete;
  PrefixCache& operator=(const PrefixCache&) = delete;

  // The longest chain of at most `most_pages` pages that `tokens` begins with. Each page gets one
  // more holder, the caller. `last`: the chain's end, null without one.
  std::vector<int32_t> match(std::span<const int32_t> tokens, int64_t most_pages, Node*& last);

  // Remembers that `page` holds these kKvPageKeys tokens after `parent` (null: at the beginning),
  // which the caller must still hold. When an equal page is known already, the caller's page is
  // exchanged for it (the same bits). Returns the node.
  Node* insert(Node* parent, std::span<const int32_t> tokens, int32_t& page);

  // Gives one page back to the pool; false when sequences hold all that is cached.
  bool evict();
  int64_t evictable() const;  // pages that only the cache holds
  int64_t pages() const { return count_; }

 private:
  void touch(Node& node);
  Node* child(Node& parent, uint64_t hash, std::span<const int32_t> tokens) const;

  PagePool& pool_;
  std::unique_ptr<Node> root_;
  std::set<std::pair<uint64_t, Node*>> leaves_;  // by last use
  uint64_t clock_ = 0;
  int64_t count_ = 0;
};

}  // namespace degu
