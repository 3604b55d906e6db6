// Guessing the next tokens, so that one pass can settle several.
//
// A guess ("draft") is checked by the model's own pass: it stands iff it is the token that the
// request's sampler draws from the model's logits at that position, noise included. So text is the
// same with any drafter, at any depth, or without. What changes is time, and in a
// Mixture-of-Experts not always for the better: each draft may wake experts that nobody else needs.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "infer/kv_cache.h"
#include "infer/lanes.h"
#include "infer/sampling.h"

namespace degu {

inline constexpr int kMaxDraftDepth = 16;

// A sequence that wants drafts.
struct DraftTask {
  uint64_t key = 0;                        // the same for the same sequence at every call
  std::span<const int32_t> tokens;         // known so far; at least one
  const Sampler* sampler = nullptr;        // as the target's, for drafters that sample
  int depth = 0;                           // how many drafts are wanted
  std::vector<int32_t>* drafts = nullptr;  // at most `depth` are put here
};

class Drafter {
 public:
  virtual ~Drafter() = default;
  virtual void propose(std::span<DraftTask> tasks) = 0;
  virtual void forget(uint64_t) {}  // the sequence is gone
};

// The tokens that followed when the sequence last ended in the same 4, 3 or 2 tokens.
class NgramDrafter : public Drafter {
 public:
  void propose(std::span<DraftTask> tasks) override;
};

// A smaller model with the same vocabulary, on this rank. Each sequence has pages of its own in the
// draft's cache, as far as there are any: without, it gets no drafts. Sequences that the draft has
// not read yet catch up over several calls.
class ModelDrafter : public Drafter {
 public:
  // `lane`: of the draft model. ConfigError when the vocabularies differ in size.
  ModelDrafter(Lanes& lane, int64_t vocab);
  ~ModelDrafter() override;
  void propose(std::span<DraftTask> tasks) override;
  void forget(uint64_t key) override;

 private:
  struct State;
  State& state_of(uint64_t key);
  bool reach(State& state, int64_t tokens);
  void catch_up(std::span<DraftTask> tasks);

  Lanes& lane_;
  PagePool pool_;
  std::vector<std::unique_ptr<State>> states_;
  std::vector<int32_t> fresh_;
};

// How deep to speculate: the depth with the most expected tokens per second, by running estimates
// of
//   a_i      how often draft i stands when those before it did
//   x(n)     distinct experts per MoE layer that n rows of a pass touch: the part touched[n] of
//            what independent choices would, E (1 - (1 - K/E)^n)
//   seconds(n, x) = c0 + c1 n + c2 x   of a pass, by least squares over the passes seen
//   s_draft  seconds per draft and sequence
// Expected: sequences * (1 + sum_d a_1 … a_d) tokens in seconds(sequences * (1 + depth), …) +
// drafting. A depth must promise 2 % more than none to be chosen. At depth 0 one pass in 64 tries
// two drafts, and rarer (to one in 1024, and so that drafting takes 1 % of the time) while this
// does not change the choice.
class DepthChooser {
 public:
  // `experts`, `top_k`: of a MoE layer; 0 for dense models. `most`: largest depth; `fixed`: always
  // that depth.
  DepthChooser(int64_t experts, int64_t top_k, int most, bool fixed);

  int choose(int64_t sequences);

  // A pass of decoding sequences alone took `seconds` for `rows` rows, which touched
  // `distinct` experts per MoE layer on average.
  void saw_pass(int64_t rows, double distinct, double seconds);
  void saw_draft(int64_t drafts, double seconds);
  // Of one sequence's `proposed` drafts the first `accepted` stood.
  void saw_acceptance(int64_t proposed, int64_t accepted);

  double acceptance(int position) const;  // the estimate a_i, position from 0
  double predicted_distinct(int64_t rows) const;
  double predicted_seconds(int64_t rows) const;

 private:
  double independent(double rows) const;
  double gain(int depth, double sequences) const;

  double experts_, top_k_;
  int most_;
  bool fixed_;
  std::array<double, kMaxDraftDepth> accepted_{}, offered_{};
  double overlap_ = 1;  // distinct / independent, of passes with more than one row
  // Least squares: decayed sums of (1, n, x) (1, n, x)^T and (1, n, x) seconds.
  std::array<std::array<double, 3>, 3> normal_{};
  std::array<double, 3> right_{};
  std::array<double, 3> cost_{};
  double passes_ = 0;
  double draft_seconds_ = 0;
  double since_trial_ = 0;  // seconds in passes since the last trial
  double trial_cost_ = 0;   // seconds of drafting for it
  int64_t until_trial_ = 8;
  int64_t trial_gap_ = 64;
};

}  // namespace degu
