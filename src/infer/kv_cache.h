// Keys and values of the sequences being served, in pages of kKvPageKeys positions.
//
// One page number stands for one page in every layer. Whole pages are shared between sequences that
// begin alike (prefix_cache.h), so pages are counted by their holders; a page that is not full
// belongs to one sequence alone.
//
// Threads: all of this belongs to the thread that runs the model.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/api/attention.h"
#include "shape/model_shape.h"
#include "tensor/tensor.h"

namespace degu {

// Who holds which page. Knows no memory: the scheduler of an expert-parallel job keeps one per
// rank.
class PagePool {
 public:
  explicit PagePool(int32_t pages);

  int32_t pages() const { return static_cast<int32_t>(holders_.size()); }
  int32_t free_pages() const { return static_cast<int32_t>(free_.size()); }
  // A page with one holder, its content undefined (whoever stores keys zeroes it first); -1 when
  // all are held.
  int32_t take();
  void share(int32_t page) { ++holders_[static_cast<size_t>(page)]; }
  // One holder fewer; without holders the page is free again.
  void drop(int32_t page);
  int32_t holders(int32_t page) const { return holders_[static_cast<size_t>(page)]; }

 private:
  std::vector<int32_t> holders_;
  std::vector<int32_t> free_;  // last returned, first taken: still in the caches
};

// The memory of the pages on this rank, all layers.
class KvMemory {
 public:
  KvMemory(const Context& context, const ModelShape& shape, DType type, int32_t pages);

  // Bytes that one page number takes over all layers.
  static size_t bytes_per_page(const Context& context, const ModelShape& shape, DType type);

  int32_t pages() const { return pages_; }
  DType dtype() const { return views_.front().dtype; }
  size_t bytes() const { return memory_.bytes(); }
  void zero(Context& context, std::span<const int32_t> pages);
  // One view per layer over the sequences whose pages `table` [sequences, max_pages] lists. Valid
  // until the next call; `table` must live as long, and so must `device_table`, its copy on an
  // accelerator, if there is one.
  std::span<const KvView> views(std::span<const int32_t> table, int64_t max_pages,
                                const int32_t* device_table = nullptr);

 private:
  int32_t pages_;
  size_t page_bytes_;  // of one layer
  Tensor memory_;      // [layers, pages, page_bytes]
  std::vector<KvView> views_;
};

}  // namespace degu
