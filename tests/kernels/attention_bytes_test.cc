// int8 pages against fp32 and bf16 pages that hold the rounded numbers: equal bit for bit.
#include <algorithm>

#include "kernels/api/attention.h"
#include "tests/support/device_testing.h"

namespace degu::testing {
namespace {

struct Shapes {
  int64_t heads, kv_heads, width;
};

// What kernels/api/attention.h says of one vector, in plain arithmetic.
void round_vector(const AnyView& x, int64_t from, int64_t width) {
  float top = 0;
  for (int64_t d = 0; d < width; ++d) {
    top = std::max(top, std::abs(static_cast<float>(element(x, from + d))));
  }
  const float scale = top / 127.0f;
  for (int64_t d = 0; d < width; ++d) {
    const auto value = static_cast<float>(element(x, from + d));
    const float q = top > 0 ? std::nearbyint(value * (127.0f / top)) : 0.0f;
    set_element(x, from + d, static_cast<double>(q * scale));
  }
}

Tensor rounded(const Tensor& x, int64_t width) {
  Tensor out = copy_of(x);
  for (int64_t at = 0; at < x.shape().elements(); at += width) round_vector(out, at, width);
  return out;
}

// Stores keys in pieces of `chunk` rows and attends with all of them.
Tensor attend(Context& context, DType page_type, const Shapes& s, const Tensor& q, const Tensor& k,
              const Tensor& v, int64_t chunk) {
  const int64_t rows = q.shape()[0];
  const int64_t pages = kv_pages_for(rows);
  const auto bytes = kv_page_bytes(context, page_type, s.kv_heads, s.width);
  const Tensor memory(DType::kU8, {pages, static_cast<int64_t>(bytes)}, context.device());
  std::vector<int32_t> table;
  for (int64_t p = 0; p < pages; ++p) table.push_back(static_cast<int32_t>(pages - 1 - p));
  const KvView kv{.pages = memory.view().data,
                  .dtype = page_type,
                  .kv_heads = s.kv_heads,
                  .head_width = s.width,
                  .table = table,
                  .max_pages = pages};
  Tensor out(q.dtype(), q.shape());
  for (int64_t begin = 0; begin < rows; begin += chunk) {
    const int64_t count = std::min(chunk, rows - begin);
    const std::vector<int64_t> offsets = {0, count};
    const std::vector<int64_t> first = {begin};
    const Sequences sequences{offsets, first};
    run(context, kv_store, k.view().rows(begin, count), v.view().rows(begin, count), sequences, kv);
    run(context, attention, q.view().rows(begin, count), kv, sequences, 0.3f,
        out.view().rows(begin, count), AnyView{});
  }
  return out;
}

TEST_CASE("int8 pages read as the rounded keys and values", "[attention]") {
  for_each_backend([](Context& context) {
    for (const Shapes& s : {Shapes{2, 1, 16}, Shapes{4, 2, 12}, Shapes{6, 3, 33}, Shapes{2, 2, 64},
                            Shapes{8, 1, 128}, Shapes{2, 1, 160}}) {
      for (DType type : {DType::kF32, DType::kBF16}) {
        for (int64_t rows : {1, 17, 64, 65, 140}) {
          INFO(dtype_name(type) << ", width " << s.width << ", rows " << rows);
          const Tensor q = random_tensor(type, {rows, s.heads, s.width}, "q", 1, 3);
          const Tensor k = random_tensor(type, {rows, s.kv_heads, s.width}, "k", 1, 4);
          const Tensor v = random_tensor(type, {rows, s.kv_heads, s.width}, "v", 5, 5);
          const Tensor expected =
              attend(context, type, s, q, rounded(k, s.width), rounded(v, s.width), rows);
          for (int64_t chunk : {rows, int64_t{1}, int64_t{7}}) {
            const Tensor got = attend(context, DType::kI8, s, q, k, v, chunk);
            CHECK(std::memcmp(got.view().data, expected.view().data, got.bytes()) == 0);
          }
        }
      }
    }
  });
}

TEST_CASE("int8 pages show numbers that are none, and take zeros", "[attention]") {
  const Shapes s{1, 1, 16};
  const Tensor q = random_tensor(DType::kF32, {2, 1, 16}, "q", 1, 3);
  const Tensor k(DType::kF32, {2, 1, 16});
  const Tensor v(DType::kF32, {2, 1, 16});
  const Tensor infinite = copy_of(v);
  infinite.as<float>()[16 + 3] = INFINITY;
  for_each_backend([&](Context& context) {
    const Tensor zeros = attend(context, DType::kI8, s, q, k, v, 2);
    for (int64_t i = 0; i < 32; ++i) CHECK(element(zeros, i) == 0);
    const Tensor broken = attend(context, DType::kI8, s, q, k, infinite, 2);
    for (int64_t i = 0; i < 16; ++i) CHECK(std::isnan(element(broken, 16 + i)));
  });
}

}  // namespace
}  // namespace degu::testing
