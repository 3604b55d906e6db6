// Pages of keys and values on the CPU: one layout for all instruction sets.
//
// A *word* is 32 bits: one fp32 value, or two bf16 values that are neighbours along the dimension
// that a product sums over, so that one vector instruction serves both types. A page holds, for
// each key/value head, its keys and then its values, both as the kernels read them:
//   keys    [ceil(A / pack)][64 keys] words     lanes are keys, a word is a pair of dimensions
//   values  [64 / pack][columns] words          lanes are dimensions, a word is a pair of keys
// with pack = 1 (fp32) or 2 (bf16) and columns = A rounded up to 16. Padding is zero (a page is
// zeroed before its first use) and stays zero.
#pragma once

#include <cstddef>

#include "kernels/api/attention.h"

namespace degu {

struct PageLayout {
  int64_t head_width = 0;  // A
  int64_t pack = 1;        // values per word
  int64_t key_words = 0;   // words per key
  int64_t columns = 0;     // words per value row

  PageLayout(DType dtype, int64_t width)
      : head_width(width),
        pack(dtype == DType::kBF16 ? 2 : 1),
        key_words((width + pack - 1) / pack),
        columns((width + 15) / 16 * 16) {}

  // In elements of the view's type.
  int64_t key_elements() const { return key_words * kKvPageKeys * pack; }
  int64_t value_elements() const { return kKvPageKeys * columns; }
  int64_t head_elements() const { return key_elements() + value_elements(); }
};

// int8 pages: for each key/value head the scales of its 64 keys, those of its 64 values (fp32),
// then the keys and the values in the order above, of bytes. The order is that of the type the
// queries have, so that a block becomes its tiles in one run; keys are stored and read with one
// type.
struct BytePageLayout {
  int64_t keys = 0;    // bytes
  int64_t values = 0;  // bytes

  explicit BytePageLayout(int64_t width) {
    const PageLayout layout(DType::kBF16, width);  // the larger one for odd widths
    keys = layout.key_elements();
    values = layout.value_elements();
  }
  static constexpr int64_t kScales = 2 * kKvPageKeys;
  size_t head_bytes() const {
    return static_cast<size_t>(kScales) * sizeof(float) + static_cast<size_t>(keys + values);
  }
};

}  // namespace degu
