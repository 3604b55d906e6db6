// One test body for every backend: the instruction sets of this machine and, where there is one, a
// GPU.
//
// A body keeps its tensors on the host and calls operators through `run`, which on a GPU moves the
// arguments there and back.
#pragma once

#include <concepts>
#include <cstdio>
#include <deque>
#include <type_traits>
#include <utility>

#include "kernels/api/grouped_gemm.h"
#include "tensor/device.h"
#include "tests/support/kernel_testing.h"

namespace degu::testing {

// Says once per process what is left out.
inline bool has_gpu() {
  static const bool present = [] {
    const bool found = device_count(DeviceType::kCuda) > 0;
    if (!found) std::puts("skipped: no CUDA device (GPU cases)");
    return found;
  }();
  return present;
}

// body(Context&) on the GPU, if there is one.
template <class Body>
void on_gpu(Body&& body) {
  if (!has_gpu()) return;
  INFO("cuda");
  Context context({.threads = 2, .scratch_bytes = size_t{256} << 20, .device = DeviceType::kCuda});
  body(context);
}

// body(Context&) once per instruction set, then on the GPU.
template <class Body>
void for_each_backend(Body&& body) {
  for_each_isa(body);
  on_gpu(body);
}

// body(one, others) for each backend: `one` is a context with a single thread, others(f) calls
// f(Context&) for 1, 2 and 3 threads (on a GPU: once, for the same context).
template <class Body>
void for_each_backend_alone(Body&& body) {
  for (Isa isa : supported_isas()) {
    INFO("isa " << isa_name(isa));
    Context one(test_options(isa, 1));
    body(one, [isa](auto&& f) { for_each_thread_count(isa, f); });
  }
  on_gpu([&](Context& gpu) { body(gpu, [&gpu](auto&& f) { f(gpu); }); });
}

// for_each_backend with 1, 2 and 3 threads of each instruction set.
template <class Body>
void for_each_backend_and_thread_count(Body&& body) {
  for (Isa isa : supported_isas()) for_each_thread_count(isa, body);
  on_gpu(body);
}

// The arguments of one call as its context takes them: host views as they are on the CPU; copies in
// device memory on a GPU, views of the same memory sharing one. Around each copy lie bytes that
// nobody may touch.
class Arguments {
 public:
  explicit Arguments(Context& context) : context_(context) {}

  AnyView operator()(const AnyView& host) {
    if (context_.device() == DeviceType::kCpu) return host;
    if (!host) return {nullptr, host.dtype, host.shape, context_.device()};
    for (const Copy& copy : copies_) {
      if (copy.host.data == host.data && host.bytes() <= copy.host.bytes()) {
        return {inside(copy), host.dtype, host.shape, context_.device()};
      }
    }
    const auto bytes = static_cast<int64_t>(host.bytes());
    Copy& copy =
        copies_.emplace_back(Copy{host, Tensor(DType::kU8, {bytes + 2 * kGuard}),
                                  Tensor(DType::kU8, {bytes + 2 * kGuard}, context_.device())});
    std::memset(copy.staged.view().data, kUntouched, copy.staged.bytes());
    if (bytes > 0) std::memcpy(copy.staged.as<uint8_t>().data() + kGuard, host.data, host.bytes());
    degu::copy(context_, copy.staged, copy.memory);
    return {inside(copy), host.dtype, host.shape, context_.device()};
  }
  // Views inside of arguments are arguments too; all else passes through.
  template <class T>
  requires(!std::convertible_to<T, AnyView>) decltype(auto) operator()(T&& other) {
    using Bare = std::remove_cvref_t<T>;
    if constexpr (std::same_as<Bare, Activation>) {
      return Activation((*this)(other.values), (*this)(other.scales));
    } else if constexpr (std::same_as<Bare, QuantizedWeight>) {
      return QuantizedWeight{other.scheme, other.shape, (*this)(other.codes),
                             (*this)(other.scales)};
    } else if constexpr (std::same_as<Bare, Epilogue>) {
      return Epilogue{(*this)(other.add_RF)};
    } else {
      return std::forward<T>(other);
    }
  }

  // Brings everything back to the host views; waits for the call.
  void fetch() {
    for (const Copy& copy : copies_) {
      degu::copy(context_, copy.memory, copy.staged);
      const uint8_t* bytes = copy.staged.as<uint8_t>().data();
      const size_t size = copy.host.bytes();
      int64_t touched = 0;
      for (int64_t i = 0; i < kGuard; ++i) {
        touched += bytes[i] != kUntouched;
        touched += bytes[static_cast<int64_t>(size) + kGuard + i] != kUntouched;
      }
      if (touched != 0) FAIL_CHECK("bytes around " << copy.host.shape.str() << " were written");
      if (size > 0) std::memcpy(copy.host.data, bytes + kGuard, size);
    }
  }

 private:
  static constexpr int64_t kGuard = 256;
  static constexpr uint8_t kUntouched = 0x5a;
  struct Copy {
    AnyView host;
    Tensor staged;
    Tensor memory;
  };
  static void* inside(const Copy& copy) { return copy.memory.as<uint8_t>().data() + kGuard; }

  Context& context_;
  std::deque<Copy> copies_;
};

// op(context, args…) with each view where the context wants it; outputs end in the host's views.
template <class Op, class... Args>
auto run(Context& context, Op&& op, Args&&... args) {
  Arguments on(context);
  if constexpr (std::is_void_v<decltype(op(context, on(std::forward<Args>(args))...))>) {
    op(context, on(std::forward<Args>(args))...);
    on.fetch();
  } else {
    auto result = op(context, on(std::forward<Args>(args))...);
    on.fetch();
    return result;
  }
}

}  // namespace degu::testing
