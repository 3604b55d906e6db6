// Operators in a graph: what a launch computes follows the numbers that the GPU's memory holds
// then.
#include "kernels/api/embedding.h"
#include "kernels/api/rotary.h"
#include "kernels/api/weight.h"
#include "tests/support/device_testing.h"

namespace degu::testing {
namespace {

constexpr int64_t kRows = 5;
constexpr int64_t kVocab = 40;
constexpr int64_t kWidth = 64;

using Numbers = std::vector<int32_t>;

Tensor there(Context& context, const Tensor& host) {
  Tensor copied(host.dtype(), host.shape(), DeviceType::kCuda);
  copy(context, host, copied);
  return copied;
}
Tensor here(Context& context, const Tensor& on_gpu) {
  Tensor copied(on_gpu.dtype(), on_gpu.shape());
  copy(context, on_gpu, copied);
  return copied;
}
void put(Context& context, const Numbers& numbers, const Tensor& to) {
  context.device_state()->upload(to.view().data, numbers.data(), to.bytes());
}

TEST_CASE("numbers of rows on the device count, in each launch of a graph anew", "[device]") {
  on_gpu([](Context& context) {
    const Tensor table = there(context, random_tensor(DType::kBF16, {kVocab, kWidth}, "table"));
    const Tensor x = random_tensor(DType::kBF16, {kRows, 2, kWidth / 2}, "x");
    const Tensor numbers(DType::kI32, {kRows}, DeviceType::kCuda);
    const auto* device = static_cast<const int32_t*>(numbers.view().data);
    const Shape shape{kRows, kWidth};
    Tensor embedded(DType::kBF16, shape, DeviceType::kCuda);
    Tensor unpacked(DType::kBF16, shape, DeviceType::kCuda);
    Tensor rotated(DType::kBF16, x.shape(), DeviceType::kCuda);
    Tensor product(DType::kF32, {kRows, kVocab}, DeviceType::kCuda);
    const size_t bytes = packed_bytes(context, Scheme::kBf16, 1, kVocab, kWidth);
    const Tensor memory(DType::kU8, {static_cast<int64_t>(bytes)}, DeviceType::kCuda);
    const PackedWeight weight =
        pack_weight(context, table, Scheme::kBf16, Orientation::kForward, memory.view().data);
    const Tensor x_there = there(context, x);
    const auto compute = [&](const RowNumbers& rows) {
      embedding(context, table, rows, embedded);
      unpack_rows(context, weight, rows, unpacked);
      copy(context, x_there, rotated);
      rotary(context, rotated, rows, 10000.0);
      gemm(context, Activation(embedded), weight, product);
    };
    const auto results = [&] {
      std::vector<Tensor> all;
      for (const Tensor* each : {&embedded, &unpacked, &rotated, &product}) {
        all.push_back(here(context, *each));
      }
      return all;
    };
    // What the host holds is of the right number and says nothing.
    const Numbers nothing(kRows, 0);
    compute({nothing, device});
    const auto graph = context.device_state()->capture([&] { compute({nothing, device}); });
    for (const Numbers& now : {Numbers{3, 39, 0, 7, 7}, Numbers{1, 2, 3, 4, 5}}) {
      put(context, now, numbers);
      graph->launch();
      const std::vector<Tensor> launched = results();
      put(context, nothing, numbers);
      compute(now);
      const std::vector<Tensor> computed = results();
      for (size_t i = 0; i < computed.size(); ++i) {
        check_same_bits("result", launched[i], computed[i]);
      }
    }
    CHECK_THROWS_WITH(context.device_state()->capture([&] { compute(nothing); }),
                      Catch::Contains("embedding: 20 bytes of the host's"));
  });
}

}  // namespace
}  // namespace degu::testing
