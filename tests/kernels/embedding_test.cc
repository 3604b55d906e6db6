// The embedding look-up and the segmented sum that is its gradient.
#include "kernels/api/embedding.h"

#include "tests/support/device_testing.h"

namespace degu {
namespace {

using namespace degu::testing;

// For `run`, which does not see default arguments.
const auto table_gradient = [](auto&&... args) { embedding_backward(args...); };

std::vector<int32_t> random_tokens(int64_t rows, int64_t vocab) {
  const RandomStream stream(3, "tokens");
  std::vector<int32_t> tokens;
  for (int64_t t = 0; t < rows; ++t) {
    const double u = stream.uniform(static_cast<uint64_t>(t));
    tokens.push_back(
        static_cast<int32_t>(static_cast<double>(vocab) * u * u * u));  // low ones often
  }
  return tokens;
}

TEST_CASE("embedding copies rows", "[embedding]") {
  for_each_backend([&](Context& context) {
    for (DType type : {DType::kF32, DType::kBF16}) {
      for (int64_t width : {1, 7, 64, 129}) {
        for (int64_t rows : {0, 1, 100, 3000}) {
          const Tensor table = random_tensor(type, {50, width}, "table");
          const std::vector<int32_t> tokens = random_tokens(rows, 50);
          Tensor y(type, {rows, width}), expected(type, {rows, width});
          for (int64_t i = 0; i < rows * width; ++i) {
            set_element(expected, i,
                        element(table, tokens[static_cast<size_t>(i / width)] * width + i % width));
          }
          run(context, embedding, table, tokens, y);
          check_same_bits("y", y, expected);
        }
      }
    }
  });
}

// Per unit a plain fp32 sum in row order from 0; units level by level; nothing skipped.
Tensor plain_gradient(const AnyView& dy, const std::vector<int32_t>& tokens,
                      const UnitSegments& segments, int64_t vocab, int64_t width) {
  Tensor out(DType::kF32, {segments.slots, vocab, width});
  for (int64_t s = 0; s < segments.slots; ++s) {
    for (int64_t v = 0; v < vocab; ++v) {
      for (int64_t d = 0; d < width; ++d) {
        std::vector<float> level;
        for (int64_t u = 0; u < segments.units; ++u) {
          float sum = 0;
          for (int64_t r = segments.begin(0, s, u); r < segments.end(0, s, u); ++r) {
            if (tokens[static_cast<size_t>(r)] == v)
              sum += static_cast<float>(element(dy, r * width + d));
          }
          level.push_back(sum);
        }
        while (level.size() > 1) {
          std::vector<float> next;
          for (size_t i = 0; i < level.size(); i += 2) {
            next.push_back(i + 1 < level.size() ? level[i] + level[i + 1] : level[i]);
          }
          level = next;
        }
        out.as<float>()(s, v, d) = level[0];
      }
    }
  }
  return out;
}

TEST_CASE("embedding_backward sums rows per unit and joins units in the tree, bit for bit",
          "[embedding]") {
  struct Case {
    int64_t slots, units;
    std::vector<int64_t> counts;
  };
  const std::vector<Case> cases = {{1, 1, {0}},
                                   {1, 1, {40}},
                                   {1, 4, {9, 0, 20, 5}},
                                   {2, 3, {7, 8, 9, 1, 0, 30}},
                                   {1, 7, {5, 4, 3, 0, 2, 1, 6}},
                                   {3, 2, {0, 0, 5, 5, 0, 9}}};
  const int64_t vocab = 37;
  for_each_backend_and_thread_count([&](Context& context) {
    for (const Case& c : cases) {
      for (DType type : {DType::kF32, DType::kBF16}) {
        for (int64_t width : {3, 130}) {
          const auto offsets = offsets_of(c.counts);
          const UnitSegments segments{offsets, 1, c.slots, c.units};
          const std::vector<int32_t> tokens = random_tokens(segments.rows(), vocab);
          const Tensor dy = random_tensor(type, {segments.rows(), width}, "dy");
          const Tensor expected = plain_gradient(dy, tokens, segments, vocab, width);
          const Tensor held = random_tensor(DType::kF32, expected.shape(), "held");
          Tensor expected_sum(DType::kF32, expected.shape());
          for (int64_t i = 0; i < expected.view().elements(); ++i) {
            expected_sum.as<float>()[i] = held.as<float>()[i] + expected.as<float>()[i];
          }
          Tensor dtable(DType::kF32, expected.shape());
          fill_nan(dtable);
          run(context, table_gradient, dy, tokens, segments, dtable);
          check_same_bits("dtable", dtable, expected);
          Tensor added = copy_of(held);
          run(context, table_gradient, dy, tokens, segments, added, Write::kAdd);
          check_same_bits("dtable added", added, expected_sum);
        }
      }
    }
  });
}

TEST_CASE("embedding names a token outside the vocabulary", "[embedding]") {
  Context context(test_options(default_isa(), 1));
  const Tensor table(DType::kF32, {5, 4}), y(DType::kF32, {2, 4});
  const std::vector<int64_t> offsets = {0, 2};
  for (int32_t bad : {5, -1}) {
    const std::vector<int32_t> tokens = {1, bad};
    CHECK_THROWS_AS(embedding(context, table, tokens, y), DataError);
    CHECK_THROWS_AS(embedding_backward(context, y, tokens, {offsets}, table), DataError);
    CHECK_THROWS_WITH(embedding(context, table, tokens, y), Catch::Contains("at row 1"));
  }
  const std::vector<int32_t> three = {0, 1, 2};
  CHECK_THROWS_AS(embedding(context, table, three, y), ShapeError);
}

}  // namespace
}  // namespace degu
