// Every scheme, one line each. Tests, benchmarks and packers loop over this table.
#pragma once

#include <array>
#include <tuple>
#include <type_traits>
#include <utility>

#include "kernels/formats/bf16.h"
#include "kernels/formats/fp32.h"
#include "kernels/formats/scheme.h"

namespace degu {

// In the order of enum Scheme.
using Formats = std::tuple<Fp32Format,  //
                           Bf16Format>;

inline constexpr auto kSchemes = []<class... Format>(std::type_identity<std::tuple<Format...>>) {
  return std::array{Format::kInfo...};
}(std::type_identity<Formats>{});

constexpr const SchemeInfo& scheme_info(Scheme scheme) {
  return kSchemes[static_cast<size_t>(scheme)];
}

// Calls f.template operator()<Format>() with the scheme's format type.
template <class F>
void visit_format(Scheme scheme, F&& f) {
  [&]<class... Format>(std::type_identity<std::tuple<Format...>>) {
    (void)((Format::kInfo.scheme == scheme ? (f.template operator()<Format>(), true) : false) ||
           ...);
  }(std::type_identity<Formats>{});
}

// The scheme that training packs for activations of this type.
constexpr Scheme training_scheme(DType activation) {
  return activation == DType::kF32 ? Scheme::kFp32 : Scheme::kBf16;
}

}  // namespace degu
