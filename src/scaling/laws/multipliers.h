// The small-sample form for sweeps with few expert counts: dense and routed models share exponents,
// each (E, K, granularity) gets one effective-parameter multiplier m_g on the parameters that a
// token uses:
//
//     L = E + A/(m_g N)^alpha + B/D^beta,     m_g = 1 for the reference group (dense models where
//     there are any).
//
// Fitted as ln A_g = ln A − alpha ln m_g, which keeps the exponentials affine in the coefficients.
// One group more costs one parameter, so three runs of an (E, K, granularity) already say something
// about it.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "scaling/laws/law.h"

namespace degu::scaling {

// A kind of feed-forward. {1, 1, 1} is dense.
struct ExpertGroup {
  double experts = 1;
  double top_k = 1;
  double granularity = 1;
  double shared = 0;  // experts that every token visits
  bool operator==(const ExpertGroup&) const = default;
  auto operator<=>(const ExpertGroup&) const = default;  // NOLINT(modernize-use-nullptr): not ours
  bool dense() const { return experts <= 1; }
  std::string label() const;  // "dense", "E8 K2 G2", "E8 K2 G2 S1"
};

// groups[0] is the reference. Published: E, A, B, alpha, beta, then m of groups[1], groups[2], …
std::unique_ptr<Law> make_multipliers(std::vector<ExpertGroup> groups);

}  // namespace degu::scaling
