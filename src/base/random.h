// Counter-based random numbers: Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as
// easy as 1, 2, 3"). A number is a pure function of (seed, purpose, step, index), so no result
// depends on how the work was split over ranks or threads, and nothing has to be saved to resume.
#pragma once

#include <array>
#include <cmath>
#include <cstdint>
#include <string_view>

namespace degu {

// 64-bit FNV-1a; stable across platforms, used to turn names into stream purposes.
constexpr uint64_t hash_name(std::string_view text, uint64_t state = 0xcbf29ce484222325ull) {
  for (char c : text) state = (state ^ static_cast<unsigned char>(c)) * 0x100000001b3ull;
  return state;
}

constexpr std::array<uint32_t, 4> philox4x32(std::array<uint32_t, 4> counter,
                                             std::array<uint32_t, 2> key) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = uint64_t{0xD2511F53u} * counter[0];
    const uint64_t b = uint64_t{0xCD9E8D57u} * counter[2];
    counter = {static_cast<uint32_t>(b >> 32) ^ counter[1] ^ key[0], static_cast<uint32_t>(b),
               static_cast<uint32_t>(a >> 32) ^ counter[3] ^ key[1], static_cast<uint32_t>(a)};
    key[0] += 0x9E3779B9u;
    key[1] += 0xBB67AE85u;
  }
  return counter;
}

// An endless, randomly addressable stream of numbers.
class RandomStream {
 public:
  constexpr RandomStream(uint64_t seed, std::string_view purpose, uint64_t step = 0)
      : key_(mix(seed ^ hash_name(purpose) * 0x9E3779B97F4A7C15ull)), step_(step) {}

  // Four independent 32-bit words for `index`.
  constexpr std::array<uint32_t, 4> words(uint64_t index) const {
    return philox4x32({static_cast<uint32_t>(index), static_cast<uint32_t>(index >> 32),
                       static_cast<uint32_t>(step_), static_cast<uint32_t>(step_ >> 32)},
                      {static_cast<uint32_t>(key_), static_cast<uint32_t>(key_ >> 32)});
  }
  constexpr uint64_t bits64(uint64_t index) const {
    const auto w = words(index);
    return uint64_t{w[0]} << 32 | w[1];
  }
  // Uniform in [0, 1), 53 bits.
  constexpr double uniform(uint64_t index) const {
    return static_cast<double>(bits64(index) >> 11) * 0x1.0p-53;
  }
  // Standard normal (Box-Muller on two words of the same index).
  double normal(uint64_t index) const {
    const auto w = words(index);
    const double u = (static_cast<double>(uint64_t{w[0]} << 21 ^ w[1]) + 0.5) * 0x1.0p-53;
    const double v = (static_cast<double>(uint64_t{w[2]} << 21 ^ w[3]) + 0.5) * 0x1.0p-53;
    return std::sqrt(-2.0 * std::log(u)) * std::cos(6.283185307179586 * v);
  }
  // Uniform integer in [0, n), n > 0 (multiply-shift; bias below n / 2^64).
  constexpr uint64_t below(uint64_t index, uint64_t n) const {
    return static_cast<uint64_t>((Wide{bits64(index)} * n) >> 64);
  }

 private:
  __extension__ using Wide = unsigned __int128;  // outside ISO C++, in every compiler we build with
  static constexpr uint64_t mix(uint64_t z) {    // splitmix64's finaliser
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
    return z ^ (z >> 31);
  }
  uint64_t key_;
  uint64_t step_;
};

}  // namespace degu
