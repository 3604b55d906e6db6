// The order between the stream of collectives and that of operators.
#include "comm/nccl_stream.h"

#include <catch2/catch.hpp>

#include "tensor/device.h"
#include "tests/support/device_testing.h"

namespace degu {
namespace {

ContextOptions gpu_options() {
  return {.threads = 1, .scratch_bytes = size_t{1} << 20, .device = DeviceType::kCuda};
}

// Of one number each, on the GPU.
struct Numbers {
  Tensor a{DType::kI32, {1}, DeviceType::kCuda};
  Tensor b{DType::kI32, {1}, DeviceType::kCuda};
  Tensor c{DType::kI32, {1}, DeviceType::kCuda};
};

void set(Context& context, AnyView to, int32_t value) {
  copy(context, View<int32_t>(&value, {1}), to);
}

int32_t value_of(Context& context, AnyView from) {
  return OnHost(context, from).as<const int32_t>()[0];
}

TEST_CASE("collectives come after what operators were asked before", "[device]") {
  if (!testing::has_gpu()) return;
  Context compute(gpu_options());
  const auto beside = std::make_shared<NcclStream>(compute, size_t{1} << 20);
  const Numbers n;
  for (int32_t value : {7, 8}) {  // events are used again
    set(compute, n.a, value);
    beside->begin();
    copy(beside->context(), n.a, n.b);
    Work work = beside->end();
    CHECK(value_of(beside->context(), n.b) == value);
    work.wait();
  }
}

TEST_CASE("operators after a wait come after the collective", "[device]") {
  if (!testing::has_gpu()) return;
  Context compute(gpu_options());
  const auto beside = std::make_shared<NcclStream>(compute, size_t{1} << 20);
  const Numbers n;
  for (int32_t value : {7, 8}) {
    beside->begin();
    set(beside->context(), n.b, value);
    Work first = beside->end();
    beside->begin();
    set(beside->context(), n.a, -value);
    Work second = beside->end();
    first.wait();
    copy(compute, n.b, n.c);
    CHECK(value_of(compute, n.c) == value);
    second.wait();
    CHECK(value_of(compute, n.a) == -value);
  }
}

}  // namespace
}  // namespace degu
