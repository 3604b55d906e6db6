// Whose kernels compute attention in a training pass.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>

namespace degu {

//   own    kernels/api/attention.h: the bits of serving, whatever else is in the batch
//   cudnn  kernels/api/packed_attention.h: a GPU vendor's, near the same numbers
enum class AttentionBy : uint8_t { kOwn, kCudnn };
constexpr auto enum_names(AttentionBy) {
  return std::array<std::string_view, 2>{"own", "cudnn"};
}

}  // namespace degu
