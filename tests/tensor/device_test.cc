// What lies between host and accelerator; the parts that need a GPU are skipped without one.
#include "tensor/device.h"

#include <catch2/catch.hpp>
#include <cstdio>
#include <cstring>
#include <vector>

#include "tensor/tensor.h"

namespace degu {
namespace {

bool has_gpu() {
  static const bool present = [] {  // said once
    const bool found = device_count(DeviceType::kCuda) > 0;
    if (!found) std::puts("skipped: no CUDA device (device memory and copies)");
    return found;
  }();
  return present;
}

ContextOptions gpu_options() {
  return {.threads = 1, .scratch_bytes = size_t{16} << 20, .device = DeviceType::kCuda};
}

TEST_CASE("a context for a GPU that is not there is refused with the remedy") {
  ContextOptions options = gpu_options();
  options.ordinal = device_count(DeviceType::kCuda);
  CHECK_THROWS_AS(Context(options), DeviceError);
  CHECK_THROWS_WITH(Context(options), Catch::Contains("device: cpu"));
}

TEST_CASE("copy moves bytes between host views and says what does not fit") {
  Context context({.threads = 1, .scratch_bytes = 1 << 20});
  CHECK(context.device() == DeviceType::kCpu);
  CHECK(context.device_state() == nullptr);
  Tensor a(DType::kI32, {3}), b(DType::kI32, {3}), c(DType::kI32, {4}), d(DType::kF32, {3});
  for (int32_t i = 0; i < 3; ++i) a.as<int32_t>()[i] = i + 5;
  copy(context, a, b);
  CHECK(std::memcmp(a.view().data, b.view().data, a.bytes()) == 0);
  CHECK_THROWS_AS(copy(context, a, c), ShapeError);
  CHECK_THROWS_AS(copy(context, a, d), ShapeError);
  const AnyView elsewhere(a.view().data, DType::kI32, {3}, DeviceType::kCuda);
  CHECK_THROWS_WITH(copy(context, elsewhere, b), Catch::Contains("another device"));
}

// Two rounds of what the device has at the moment of asking, also of more than a piece of memory.
void check_downloads(Context& context) {
  const DeviceType device = context.device();
  Downloads downloads(context);
  for (int round = 0; round < 2; ++round) {
    std::vector<AnyView> got;
    std::vector<int32_t> expected;
    for (int64_t n : {int64_t{3}, int64_t{1} << 19, int64_t{0}, int64_t{5}}) {
      Tensor host(DType::kI32, {n}), there(DType::kI32, {n}, device);
      const auto value = static_cast<int32_t>(10 * round + static_cast<int>(got.size()));
      for (int64_t i = 0; i < n; ++i) host.as<int32_t>()[i] = value;
      copy(context, host, there);
      got.push_back(downloads.add(there));
      expected.push_back(value);
      zero(context, there);  // afterwards
    }
    downloads.wait();
    for (size_t k = 0; k < got.size(); ++k) {
      const View<const int32_t> numbers = got[k].as<const int32_t>();
      int64_t wrong = 0;
      for (int64_t i = 0; i < numbers.elements(); ++i) wrong += numbers[i] != expected[k];
      CHECK(wrong == 0);
    }
    downloads.clear();
  }
}

TEST_CASE("downloads are of the moment in which they are asked for, and waited for once") {
  Context host({.threads = 1, .scratch_bytes = 1 << 20});
  check_downloads(host);
  if (!has_gpu()) return;
  Context gpu(gpu_options());
  check_downloads(gpu);
  CHECK(gpu.device_state()->host_syncs() == 2);
}

TEST_CASE("copies to a GPU and back keep every byte, and waits are counted") {
  if (!has_gpu()) return;
  Context context(gpu_options());
  DeviceState& state = *context.device_state();
  // Around the segments of the staging memory.
  for (int64_t n : {int64_t{1}, int64_t{4097}, (int64_t{1} << 18) + 3, (int64_t{3} << 20) + 1}) {
    Tensor host(DType::kI32, {n}), back(DType::kI32, {n});
    Tensor there(DType::kI32, {n}, DeviceType::kCuda), second(DType::kI32, {n}, DeviceType::kCuda);
    for (int64_t i = 0; i < n; ++i) host.as<int32_t>()[i] = static_cast<int32_t>(i * 7 + n);
    copy(context, host, there);
    const Tensor expected_host(DType::kI32, {n});
    std::memcpy(expected_host.view().data, host.view().data, host.bytes());
    std::memset(host.view().data, 0, host.bytes());  // what was given may change at once
    copy(context, there, second);
    const int64_t before = state.host_syncs();
    copy(context, second, back);
    CHECK(state.host_syncs() == before + 1);
    CHECK(std::memcmp(back.view().data, expected_host.view().data, back.bytes()) == 0);
  }
  Tensor zeros(DType::kI32, {1000}, DeviceType::kCuda), seen(DType::kI32, {1000});
  copy(context, zeros, seen);
  for (int64_t i = 0; i < 1000; ++i) REQUIRE(seen.as<int32_t>()[i] == 0);
  state.forbid_host_syncs(true);
  CHECK_THROWS_AS(copy(context, zeros, seen), DeviceError);
}

TEST_CASE("scratch of a GPU's context is device memory in aligned pieces") {
  if (!has_gpu()) return;
  Context context(gpu_options());
  const AnyView first = context.scratch().take(DType::kI8, {3});
  const AnyView second = context.scratch().take(DType::kF32, {5});
  CHECK(first.device == DeviceType::kCuda);
  CHECK(reinterpret_cast<uintptr_t>(first.data) % 256 == 0);
  CHECK(reinterpret_cast<uintptr_t>(second.data) % 256 == 0);
  CHECK_THROWS_AS(context.scratch().take(DType::kI8, {int64_t{17} << 20}), ShapeError);
}

}  // namespace
}  // namespace degu
