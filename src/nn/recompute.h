// What a pass leaves for its backward pass, and what that computes again instead: memory against
// time. Bits do not change, for what is computed again is what was computed before.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>

namespace degu {

//   none     every activation is kept
//   experts  those of routed experts (rows of tokens times top-k: the most of an MoE) are kept for
//            one layer at a time; each layer's exchange and products are made once more
//   block    only the residual stream before each block is kept; each block's whole forward pass
//            is made once more
enum class Recompute : uint8_t { kNone, kExperts, kBlock };
constexpr auto enum_names(Recompute) {
  return std::array<std::string_view, 3>{"none", "experts", "block"};
}

// What a pass keeps.
enum class Keep : uint8_t {
  kNothing,        // no backward pass follows
  kStream,         // Recompute::kBlock
  kAllButExperts,  // Recompute::kExperts
  kAll
};
// Whether the blocks' activations share one memory.
constexpr bool shares_blocks(Keep keep) {
  return keep == Keep::kNothing || keep == Keep::kStream;
}
constexpr Keep kept_with(Recompute recompute) {
  switch (recompute) {
    case Recompute::kBlock:
      return Keep::kStream;
    case Recompute::kExperts:
      return Keep::kAllButExperts;
    default:
      return Keep::kAll;
  }
}

}  // namespace degu
