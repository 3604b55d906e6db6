#include "infer/kv_cache.h"

#include <numeric>

#include "tensor/device.h"

namespace degu {

PagePool::PagePool(int32_t pages)
    : holders_(static_cast<size_t>(pages), 0), free_(static_cast<size_t>(pages)) {
  std::iota(free_.rbegin(), free_.rend(), 0);
}

int32_t PagePool::take() {
  if (free_.empty()) return -1;
  const int32_t page = free_.back();
  free_.pop_back();
  holders_[static_cast<size_t>(page)] = 1;
  return page;
}

void PagePool::drop(int32_t page) {
  int32_t& holders = holders_[static_cast<size_t>(page)];
  DEGU_DCHECK(holders > 0);
  if (--holders == 0) free_.push_back(page);
}

size_t KvMemory::bytes_per_page(const Context& context, const ModelShape& shape, DType type) {
  return static_cast<size_t>(shape.layers) *
         kv_page_bytes(context, type, shape.kv_heads, shape.head_width);
}

KvMemory::KvMemory(const Context& context, const ModelShape& shape, DType type, int32_t pages)
    : pages_(pages),
      page_bytes_(kv_page_bytes(context, type, shape.kv_heads, shape.head_width)),
      memory_(DType::kU8, {shape.layers, pages, static_cast<int64_t>(page_bytes_)},
              context.device()) {
  for (int layer = 0; layer < shape.layers; ++layer) {
    KvView& view = views_.emplace_back();
    view.pages = static_cast<std::byte*>(memory_.view().data) +
                 static_cast<size_t>(layer) * static_cast<size_t>(pages) * page_bytes_;
    view.dtype = type;
    view.kv_heads = shape.kv_heads;
    view.head_width = shape.head_width;
  }
}

void KvMemory::zero(Context& context, std::span<const int32_t> pages) {
  const Shape of_layer{pages_, static_cast<int64_t>(page_bytes_)};
  for (int64_t layer = 0; layer < memory_.shape()[0]; ++layer) {
    const AnyView all = memory_.view().rows(layer, 1).reshaped(of_layer);
    for (int32_t page : pages) degu::zero(context, all.rows(page, 1));
  }
}

std::span<const KvView> KvMemory::views(std::span<const int32_t> table, int64_t max_pages,
                                        const int32_t* device_table) {
  for (KvView& view : views_) {
    view.table = table;
    view.device_table = device_table;
    view.max_pages = max_pages;
  }
  return views_;
}

}  // namespace degu
