// What lies between host and accelerator; the parts that need a GPU are skipped without one.
#include "tensor/device.h"

#include <catch2/catch.hpp>
#include <cstdio>
#include <cstring>
#include <vector>

#include "tensor/tensor.h"
#include "tensor/trace.h"

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

TEST_CASE("a GPU has one identity, whoever asks") {
  if (!has_gpu()) return;
  Context first(gpu_options()), second(gpu_options());
  CHECK_FALSE(first.device_state()->identity().empty());
  CHECK(first.device_state()->identity() == second.device_state()->identity());
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

// Five numbers on the host or, uploaded, on the GPU.
Tensor five(int32_t first) {
  Tensor host(DType::kI32, {5});
  for (int32_t i = 0; i < 5; ++i) host.as<int32_t>()[i] = first + i;
  return host;
}
void put(Context& context, int32_t first, const Tensor& there) {
  copy(context, five(first), there);
}
bool holds(Context& context, const Tensor& there, int32_t first) {
  Tensor back(DType::kI32, {5});
  copy(context, there, back);
  return std::memcmp(back.view().data, five(first).view().data, back.bytes()) == 0;
}

TEST_CASE("captured work is done at each launch, with what its memory holds then") {
  if (!has_gpu()) return;
  Context context(gpu_options());
  DeviceState& state = *context.device_state();
  Tensor from(DType::kI32, {5}, DeviceType::kCuda), to(DType::kI32, {5}, DeviceType::kCuda);
  Tensor cleared(DType::kI32, {5}, DeviceType::kCuda);
  put(context, 10, from);
  put(context, 20, to);
  put(context, 30, cleared);
  const auto graph = state.capture([&] {
    copy(context, from, to);
    zero(context, cleared);
  });
  CHECK(graph->nodes() == 2);
  CHECK(holds(context, to, 20));  // capturing did nothing
  CHECK(holds(context, cleared, 30));
  for (int32_t first : {10, 40, 50}) {
    put(context, first, from);
    put(context, 7, cleared);
    const int64_t waits = state.host_syncs();
    graph->launch();
    CHECK(state.host_syncs() == waits);
    CHECK(holds(context, to, first));
    CHECK_FALSE(holds(context, cleared, 7));
  }
  // What waits in the stream at the time of a launch comes before it, what follows comes after.
  put(context, 60, from);
  graph->launch();
  put(context, 70, from);
  CHECK(holds(context, to, 60));
  CHECK(holds(context, from, 70));
}

TEST_CASE("what no graph can hold is refused by name, and the context goes on") {
  if (!has_gpu()) return;
  Context context(gpu_options());
  DeviceState& state = *context.device_state();
  Tensor there(DType::kI32, {5}, DeviceType::kCuda), other(DType::kI32, {5}, DeviceType::kCuda);
  put(context, 1, there);
  const auto refused = [&](auto&& work, const char* message) {
    CHECK_THROWS_WITH(state.capture([&] {
      copy(context, there, other);
      const TraceScope span(context, "an_operator");
      work();
    }),
                      Catch::Contains(message));
    put(context, 3, other);
    CHECK(holds(context, other, 3));  // nothing of the capture was done
  };
  const int64_t waits = state.host_syncs();
  CHECK_THROWS_AS(state.capture([&] { put(context, 2, there); }), CaptureError);
  CHECK_THROWS_AS(state.capture([&] { state.synchronize(); }), CaptureError);
  CHECK(state.host_syncs() == waits);
  refused([&] { put(context, 2, there); }, "an_operator: 20 bytes of the host's");
  refused([&] { state.synchronize(); }, "an_operator: synchronize makes the host wait");
  refused([&] { holds(context, there, 1); }, "an_operator: a copy to the host makes");
  refused([&] { allocate_device(DeviceType::kCuda, 64); }, "allocating device memory failed");
  refused([&] { state.capture([] {}); }, "a capture within a capture");
  refused([&] { throw DataError("of the work's own"); }, "of the work's own");
  CHECK(holds(context, there, 1));
  const auto graph = state.capture([&] { copy(context, there, other); });
  graph->launch();
  CHECK(holds(context, other, 1));
}

TEST_CASE("the offsets of one group stay in the GPU's memory") {
  if (!has_gpu()) return;
  Context context(gpu_options());
  DeviceState& state = *context.device_state();
  const int64_t* of_seven = state.one_group(7);
  const int64_t* of_nine = state.one_group(9);
  CHECK(of_seven != of_nine);
  for (const auto& [at, rows] : {std::pair(of_seven, 7), std::pair(of_nine, 9)}) {
    Tensor back(DType::kI64, {2});
    state.download(back.view().data, at, back.bytes());
    CHECK(back.as<int64_t>()[0] == 0);
    CHECK(back.as<int64_t>()[1] == rows);
  }
  // Known numbers of rows are no upload.
  CHECK_NOTHROW(state.capture([&] { CHECK(state.one_group(7) == of_seven); }));
  CHECK_THROWS_AS(state.capture([&] { state.one_group(8); }), CaptureError);
  for (int64_t rows = 100; rows < 5000; ++rows) state.one_group(rows);
  CHECK(state.one_group(5000) == nullptr);  // the table is full
  CHECK(state.one_group(9) == of_nine);
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
