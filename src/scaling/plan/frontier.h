// Compute-optimal and lifetime-optimal sizes of a law over a continuous family of models.
//
// Sardana et al. 2024 (arXiv 2401.00448) count the inference bill: minimise train(N) D +
// inference(N) D_inf subject to L(N, D) = l. Its solutions for all l are the same curve as the best
// losses for all lifetime budgets.
#pragma once

#include <memory>
#include <span>
#include <string>

#include "scaling/laws/law.h"
#include "scaling/laws/multipliers.h"

namespace degu::scaling {

// A model of a family at one size.
struct FamilyMember {
  double n = 0;                // under the law's definition
  double total = 0;            // all parameters
  double train_flops = 0;      // per token
  double inference_flops = 0;  // per token
};

// Models that differ in one continuous size.
class Family {
 public:
  virtual ~Family() = default;
  virtual FamilyMember at(double size, const ExpertGroup& group) const = 0;
  virtual Interval sizes() const = 0;
};

// Any law: size is N, 6 N FLOPs per training token, 2 N per inference token.
std::unique_ptr<Family> make_six_nd_family();
// Krajewski et al. 2024: width d, d/64 blocks, N = d² (8X + 4) d/64 for expansion rate X = experts
// / granularity, FLOPs per token (12 d² · 6 + 14 d X G) d/64.
std::unique_ptr<Family> make_krajewski_family();
// Ludziejewski et al. 2025: width d, d/64 blocks, vocabulary V: N_act = 2 d V + 13 d² d/64,
// N_total = 2 d V + (4 + 9 E) d² d/64, 6 N_act FLOPs per token.
std::unique_ptr<Family> make_ludziejewski_family(double vocabulary);
// The one its authors used.
std::unique_ptr<Family> family_of(const Law& law);

struct FrontierPoint {
  double size = 0;
  FamilyMember model;
  double d = 0;
  double loss = 0;
  double train_flops = 0;     // of the whole training
  double lifetime_flops = 0;  // with inference_tokens · inference_flops
};

struct FrontierProblem {
  const Law* law = nullptr;
  std::span<const double> params;  // published
  const Family* family = nullptr;
  ExpertGroup group;
  int group_index = 0;  // for a multiplier law
  double inference_tokens = 0;
  double max_total = 0;  // largest total parameters; 0: no limit
};

// Lowest loss with training FLOPs = flops.
FrontierPoint best_for_training(const FrontierProblem& problem, double flops);
// Lowest loss with training + inference FLOPs = flops.
FrontierPoint best_for_lifetime(const FrontierProblem& problem, double flops);
// Cheapest lifetime that reaches `loss`. NumericError when no size does.
FrontierPoint cheapest_for_loss(const FrontierProblem& problem, double loss);

// Tokens at which a model of this n reaches `loss`; infinity when it never does.
double tokens_for_loss(const Law& law, std::span<const double> params, LawInput x, double loss);

}  // namespace degu::scaling
