// The backend of a context that only plans (DeviceType::kPlan): operators check at the door as ever
// and then do nothing; what asks for a size gets another backend's.
#pragma once

#include <cstddef>
#include <utility>

namespace degu::plan {

// Any entry point.
struct Nothing {
  template <class Result, class... Arguments>
  static Result call(Arguments...) {
    return Result();
  }
  template <class Result, class... Arguments>
  using Entry = Result (*)(Arguments...);
  template <class Result, class... Arguments>
  constexpr operator Entry<Result, Arguments...>() const {  // NOLINT: it stands for each of them
    return &call<Result, Arguments...>;
  }
};

template <size_t>
using NothingAt = Nothing;

// A table with as many of them as it has entry points.
template <class Kernels, size_t... i>
constexpr Kernels filled(std::index_sequence<i...>) {
  if constexpr (requires { Kernels{NothingAt<i>{}..., Nothing{}}; }) {
    return filled<Kernels>(std::make_index_sequence<sizeof...(i) + 1>());
  } else {
    return Kernels{NothingAt<i>{}...};
  }
}

template <class Kernels>
const Kernels& kernels(const Kernels& real) {
  static const Kernels table = [&] {
    Kernels made = filled<Kernels>(std::index_sequence<>());
    if constexpr (requires { made.page_bytes; }) made.page_bytes = real.page_bytes;
    if constexpr (requires { made.packed_bytes; }) made.packed_bytes = real.packed_bytes;
    return made;
  }();
  return table;
}

}  // namespace degu::plan
