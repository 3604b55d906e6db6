// Key/value pages for a pass whose sequences are all in the batch: training and evaluation.
#pragma once

#include <span>
#include <vector>

#include "kernels/api/attention.h"
#include "shape/model_shape.h"

namespace degu {

class LocalKv {
 public:
  // `layers`: how many layers keep their pages at once (all of them when a backward pass follows,
  // else 1).
  LocalKv(Context& context, Arena& arena, const ModelShape& shape, DType type, int64_t tokens,
          int layers);

  // Hands pages to the sequences, in order, and zeroes what they leave unused.
  // On an accelerator DataError when the sequences need more pages than were laid out.
  void assign(Context& context, const Sequences& sequences);
  // One view per layer of the model.
  std::span<const KvView> views() const { return views_; }

 private:
  int64_t max_tokens_;
  int64_t max_pages_;
  size_t page_bytes_;
  int layers_;
  AnyView memory_;
  std::vector<int32_t> table_;
  std::vector<KvView> views_;
};

}  // namespace degu
