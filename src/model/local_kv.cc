#include "model/local_kv.h"

#include <algorithm>

#include "tensor/device.h"

namespace degu {
namespace {

// Every token could be a sequence of its own. On the host pages that no batch needs stay address
// space; on an accelerator all are memory, and so enough for documents of this many tokens on
// average.
constexpr int64_t kLeastMeanDocument = 16;

int64_t most_pages(DeviceType device, int64_t tokens) {
  if (device == DeviceType::kCpu) return tokens;
  return std::min(tokens, kv_pages_for(tokens) + tokens / kLeastMeanDocument);
}

}  // namespace

LocalKv::LocalKv(Context& context, Arena& arena, const ModelShape& shape, DType type,
                 int64_t tokens, int layers)
    : max_tokens_(tokens),
      max_pages_(most_pages(context.device(), tokens)),
      page_bytes_(kv_page_bytes(context, type, shape.kv_heads, shape.head_width)),
      layers_(layers) {
  memory_ = arena.take(DType::kU8, {layers, max_pages_, static_cast<int64_t>(page_bytes_)});
  for (int layer = 0; layer < shape.layers; ++layer) {
    const int64_t at = layers == 1 ? 0 : layer;
    std::byte* pages = static_cast<std::byte*>(memory_.data);
    if (pages != nullptr) pages += static_cast<size_t>(at * max_pages_) * page_bytes_;
    KvView& view = views_.emplace_back();
    view.pages = pages;
    view.dtype = type;
    view.kv_heads = shape.kv_heads;
    view.head_width = shape.head_width;
  }
}

void LocalKv::assign(Context& context, const Sequences& sequences) {
  DEGU_DCHECK(sequences.rows() <= max_tokens_);
  int64_t longest = 0;
  for (int64_t s = 0; s < sequences.count(); ++s) longest = std::max(longest, sequences.length(s));
  const int64_t max_pages = kv_pages_for(longest);
  table_.assign(static_cast<size_t>(sequences.count() * max_pages), -1);
  int32_t next = 0;
  for (int64_t s = 0; s < sequences.count(); ++s) {
    const int64_t pages = kv_pages_for(sequences.length(s));
    if (next + pages > max_pages_) {
      throw DataError(
          "{} tokens in {} documents need more than the {} pages of keys that the GPU's memory was "
          "laid out for; set data.confine_documents: false, or leave out very short documents",
          sequences.rows(), sequences.count(), max_pages_);
    }
    for (int64_t b = 0; b < pages; ++b) table_[static_cast<size_t>(s * max_pages + b)] = next++;
    if (sequences.length(s) % kKvPageKeys == 0) continue;
    for (int layer = 0; layer < layers_; ++layer) {
      zero(context, memory_.rows(layer, 1)
                        .reshaped({max_pages_, static_cast<int64_t>(page_bytes_)})
                        .rows(next - 1, 1));
    }
  }
  for (KvView& view : views_) {
    view.table = table_;
    view.max_pages = max_pages;
  }
}

}  // namespace degu
