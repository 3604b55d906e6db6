#include "infer/prefix_cache.h"

#include <catch2/catch.hpp>

#include "base/random.h"

namespace degu {
namespace {

std::vector<int32_t> block(int32_t fill) {
  return std::vector<int32_t>(static_cast<size_t>(kKvPageKeys), fill);
}
std::vector<int32_t> joined(std::initializer_list<int32_t> fills) {
  std::vector<int32_t> tokens;
  for (int32_t fill : fills) {
    const auto part = block(fill);
    tokens.insert(tokens.end(), part.begin(), part.end());
  }
  return tokens;
}

// A sequence of blocks as the scheduler would run it: reuse, take pages, remember, leave.
std::vector<int32_t> run(PagePool& pool, PrefixCache& cache, std::initializer_list<int32_t> fills,
                         int64_t& reused) {
  const std::vector<int32_t> tokens = joined(fills);
  const auto blocks = static_cast<int64_t>(fills.size());
  PrefixCache::Node* node = nullptr;
  std::vector<int32_t> pages = cache.match(tokens, blocks, node);
  reused = static_cast<int64_t>(pages.size());
  while (static_cast<int64_t>(pages.size()) < blocks) {
    int32_t page = pool.take();
    if (page < 0 && cache.evict()) page = pool.take();
    REQUIRE(page >= 0);
    const std::span<const int32_t> all(tokens);
    node = cache.insert(node,
                        all.subspan(pages.size() * static_cast<size_t>(kKvPageKeys),
                                    static_cast<size_t>(kKvPageKeys)),
                        page);
    pages.push_back(page);
  }
  return pages;
}

TEST_CASE("the longest known beginning is found, by its tokens") {
  PagePool pool(10);
  PrefixCache cache(pool);
  int64_t reused = 0;
  const auto drop_all = [&](const std::vector<int32_t>& pages) {
    for (int32_t page : pages) pool.drop(page);
  };
  const auto first = run(pool, cache, {1, 2, 3}, reused);
  CHECK(reused == 0);
  const auto second = run(pool, cache, {1, 2, 4}, reused);
  CHECK(reused == 2);
  CHECK(std::equal(first.begin(), first.begin() + 2, second.begin()));
  CHECK(pool.holders(first[0]) == 3);
  const auto third = run(pool, cache, {2, 3}, reused);  // the middle of a text is no beginning
  CHECK(reused == 0);
  drop_all(first);
  CHECK(cache.evictable() == 1);  // the third page of the first: the others are the second's too
  drop_all(second);
  drop_all(third);
  CHECK(cache.evictable() == 6);
  CHECK(pool.free_pages() == 4);
}

TEST_CASE("equal pages are kept once") {
  PagePool pool(4);
  PrefixCache cache(pool);
  int32_t a = pool.take();
  int32_t b = pool.take();
  const int32_t kept = a;
  cache.insert(nullptr, block(7), a);
  cache.insert(nullptr, block(7), b);
  CHECK(b == kept);
  CHECK(pool.holders(kept) == 3);
  CHECK(pool.free_pages() == 3);
}

TEST_CASE("the least recently used page goes first, and never one in use") {
  PagePool pool(4);
  int64_t reused = 0;
  {
    PrefixCache cache(pool);
    for (int32_t fill : {1, 2, 3, 4}) pool.drop(run(pool, cache, {fill}, reused)[0]);
    CHECK(pool.free_pages() == 0);
    const auto held = run(pool, cache, {1}, reused);  // 1 is used again, and kept
    CHECK(reused == 1);
    pool.drop(run(pool, cache, {5}, reused)[0]);  // takes the place of 2
    pool.drop(run(pool, cache, {3}, reused)[0]);
    CHECK(reused == 1);
    const auto again = run(pool, cache, {2}, reused);  // takes the place of 4
    CHECK(reused == 0);
    CHECK(cache.evict());
    CHECK(cache.evict());
    CHECK_FALSE(cache.evict());
    for (int32_t page : {held[0], again[0]}) pool.drop(page);
  }
  CHECK(pool.free_pages() == 4);  // the cache gives all back
}

}  // namespace
}  // namespace degu
