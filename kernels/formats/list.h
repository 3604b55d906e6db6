// Every scheme, one line each. Tests, benchmarks and packers loop over this table.
#pragma once

#include <array>
#include <optional>
#include <string_view>
#include <tuple>
#include <type_traits>
#include <utility>

#include "kernels/formats/bf16.h"
#include "kernels/formats/fp32.h"
#include "kernels/formats/fp8.h"
#include "kernels/formats/scheme.h"
#include "kernels/formats/w4a16.h"
#include "kernels/formats/w4a8.h"
#include "kernels/formats/w8a16.h"
#include "kernels/formats/w8a8.h"

namespace degu {

// In the order of enum Scheme.
using Formats = std::tuple<Fp32Format,   //
                           Bf16Format,   //
                           W8A8Format,   //
                           W4A8Format,   //
                           W8A16Format,  //
                           W4A16Format,  //
                           Fp8Format>;

inline constexpr auto kSchemes = []<class... Format>(std::type_identity<std::tuple<Format...>>) {
  return std::array{Format::kInfo...};
}(std::type_identity<Formats>{});

constexpr const SchemeInfo& scheme_info(Scheme scheme) {
  return kSchemes[static_cast<size_t>(scheme)];
}

// The scheme of that name, or nothing.
constexpr std::optional<Scheme> scheme_named(std::string_view name) {
  for (const SchemeInfo& info : kSchemes) {
    if (info.name == name) return info.scheme;
  }
  return std::nullopt;
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
