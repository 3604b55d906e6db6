#include "infer/speculation.h"

#include <algorithm>
#include <cmath>

namespace degu {
namespace {

constexpr size_t kLongestGram = 4;
constexpr size_t kShortestGram = 2;
// A trial waits until passes have taken this many times what drafting took for the last one.
constexpr double kTrialShare = 100;

// Where the last `n` tokens occurred last, before the end; the index behind them, or 0.
size_t behind_last_match(std::span<const int32_t> tokens, size_t n) {
  if (tokens.size() <= n) return 0;
  const auto tail = tokens.last(n);
  for (size_t at = tokens.size() - n; at-- > 0;) {
    if (std::equal(tail.begin(), tail.end(), tokens.begin() + static_cast<std::ptrdiff_t>(at))) {
      return at + n;
    }
  }
  return 0;
}

}  // namespace

void NgramDrafter::propose(std::span<DraftTask> tasks) {
  for (DraftTask& task : tasks) {
    for (size_t n = kLongestGram; n >= kShortestGram && task.drafts->empty(); --n) {
      size_t at = behind_last_match(task.tokens, n);
      if (at == 0) continue;
      // A run that reaches the end repeats itself.
      const size_t period = task.tokens.size() - at;
      for (int d = 0; d < task.depth; ++d, ++at) {
        task.drafts->push_back(at < task.tokens.size()
                                   ? task.tokens[at]
                                   : (*task.drafts)[static_cast<size_t>(d) - period]);
      }
    }
  }
}

// ---- a draft model ----

struct ModelDrafter::State {
  uint64_t key = 0;
  std::vector<int32_t> tokens;  // whose keys are cached
  std::vector<int32_t> pages;
};

ModelDrafter::ModelDrafter(Lanes& lane, int64_t vocab) : lane_(lane), pool_(lane.pages()) {
  if (lane.shape().vocab != vocab) {
    throw ConfigError(
        "the draft model has a vocabulary of {} tokens and the model one of {}; a draft must be "
        "trained with the same tokenizer",
        lane.shape().vocab, vocab);
  }
}
ModelDrafter::~ModelDrafter() = default;

ModelDrafter::State& ModelDrafter::state_of(uint64_t key) {
  for (auto& state : states_) {
    if (state->key == key) return *state;
  }
  states_.push_back(std::make_unique<State>());
  states_.back()->key = key;
  return *states_.back();
}

void ModelDrafter::forget(uint64_t key) {
  std::erase_if(states_, [&](const std::unique_ptr<State>& state) {
    if (state->key != key) return false;
    for (int32_t page : state->pages) pool_.drop(page);
    return true;
  });
}

bool ModelDrafter::reach(State& state, int64_t tokens) {
  while (static_cast<int64_t>(state.pages.size()) < kv_pages_for(tokens)) {
    const int32_t page = pool_.take();
    if (page < 0) return false;
    state.pages.push_back(page);
    fresh_.push_back(page);
  }
  return true;
}

// Reads what the sequences know and the draft does not, all but the last token, in as many tokens
// as one pass takes. A sequence that is not ready then gets depth 0.
void ModelDrafter::catch_up(std::span<DraftTask> tasks) {
  PassPlan plan;
  int64_t room = lane_.limits().rows;
  for (DraftTask& task : tasks) {
    State& state = state_of(task.key);
    const auto known = static_cast<int64_t>(task.tokens.size()) - 1;
    const auto same = std::mismatch(state.tokens.begin(), state.tokens.end(), task.tokens.begin(),
                                    task.tokens.begin() + known);
    state.tokens.erase(same.first, state.tokens.end());
    const auto done = static_cast<int64_t>(state.tokens.size());
    const int64_t rows = std::min(known - done, room);
    if (!reach(state, known + 1 + task.depth) || done + rows < known) task.depth = 0;
    if (rows == 0 || static_cast<int64_t>(state.pages.size()) < kv_pages_for(done + rows)) continue;
    SequenceRows& part = plan.sequences.emplace_back();
    part.first_position = done;
    part.tokens.assign(task.tokens.begin() + done, task.tokens.begin() + done + rows);
    part.pages = state.pages;
    part.logits_from = rows;
    state.tokens.insert(state.tokens.end(), part.tokens.begin(), part.tokens.end());
    room -= rows;
  }
  if (plan.sequences.empty()) return;
  plan.sequences.front().fresh = std::exchange(fresh_, {});
  lane_.run({&plan, 1});
}

void ModelDrafter::propose(std::span<DraftTask> tasks) {
  catch_up(tasks);
  struct Walk {
    DraftTask* task;
    State* state;
    Sampler sampler;
    int32_t next;
  };
  std::vector<Walk> walks;
  for (DraftTask& task : tasks) {
    if (task.depth == 0) continue;
    walks.push_back({&task, &state_of(task.key), *task.sampler, task.tokens.back()});
  }
  const auto most = static_cast<size_t>(std::min(lane_.limits().rows, lane_.limits().logit_rows));
  if (walks.size() > most)
    walks.erase(walks.begin() + static_cast<std::ptrdiff_t>(most), walks.end());
  while (!walks.empty()) {
    PassPlan plan;
    for (Walk& walk : walks) {
      SequenceRows& part = plan.sequences.emplace_back();
      part.first_position = static_cast<int64_t>(walk.state->tokens.size());
      part.tokens = {walk.next};
      part.pages = walk.state->pages;
      walk.state->tokens.push_back(walk.next);
    }
    plan.sequences.front().fresh = std::exchange(fresh_, {});
    const std::vector<PassOutput> out = lane_.run({&plan, 1});
    for (size_t i = 0; i < walks.size(); ++i) {
      Walk& walk = walks[i];
      const View<float> logits = out.front().logit_RV;
      const Sampled drawn = walk.sampler.sample(
          {logits.row(static_cast<int64_t>(i)), static_cast<size_t>(logits.dim(1))},
          static_cast<int64_t>(walk.state->tokens.size()));
      walk.next = drawn.token;
      if (drawn.token < 0) {
        walk.task->depth = 0;
        continue;
      }
      walk.sampler.observe(drawn.token);
      walk.task->drafts->push_back(drawn.token);
    }
    std::erase_if(walks, [](const Walk& walk) {
      return static_cast<int>(walk.task->drafts->size()) >= walk.task->depth;
    });
  }
}

// ---- the depth ----

DepthChooser::DepthChooser(int64_t experts, int64_t top_k, int most, bool fixed)
    : experts_(static_cast<double>(experts)),
      top_k_(static_cast<double>(top_k)),
      most_(std::min(most, kMaxDraftDepth)),
      fixed_(fixed) {
  // A little hope for every position, soon outweighed by what is seen.
  accepted_.fill(0.5);
  offered_.fill(1.0);
}

double DepthChooser::independent(double rows) const {
  if (experts_ == 0) return 0;
  return experts_ * (1 - std::pow(1 - std::min(1.0, top_k_ / experts_), rows));
}

double DepthChooser::predicted_distinct(int64_t rows) const {
  const double n = static_cast<double>(rows);
  return rows <= 1 ? independent(n) : std::max(independent(1), overlap_ * independent(n));
}

double DepthChooser::predicted_seconds(int64_t rows) const {
  return cost_[0] + cost_[1] * static_cast<double>(rows) + cost_[2] * predicted_distinct(rows);
}

double DepthChooser::acceptance(int position) const {
  const auto i = static_cast<size_t>(position);
  return accepted_[i] / offered_[i];
}

// Expected tokens per second relative to depth 0.
double DepthChooser::gain(int depth, double sequences) const {
  double tokens = 1;
  double all = 1;
  for (int d = 0; d < depth; ++d) tokens += all *= acceptance(d);
  const auto rows = static_cast<int64_t>(sequences);
  const double plain = predicted_seconds(rows);
  const double with = predicted_seconds(rows * (1 + depth)) + draft_seconds_ * sequences * depth;
  return plain > 0 && with > 0 ? tokens * plain / with : 0;
}

int DepthChooser::choose(int64_t sequences) {
  if (fixed_ || most_ == 0 || sequences == 0) return most_;
  if (passes_ < 6) return passes_ < 4 ? 0 : std::min(most_, 2);  // both kinds, to fit the cost
  int best = 0;
  double best_gain = 1.02;
  for (int d = 1; d <= most_; ++d) {
    const double g = gain(d, static_cast<double>(sequences));
    if (g > best_gain) {
      best = d;
      best_gain = g;
    }
  }
  if (best > 0) {
    trial_gap_ = 64;
    until_trial_ = trial_gap_;
    since_trial_ = trial_cost_ = 0;
    return best;
  }
  if (--until_trial_ > 0 || since_trial_ < kTrialShare * trial_cost_) return 0;
  since_trial_ = trial_cost_ = 0;
  trial_gap_ = std::min<int64_t>(1024, trial_gap_ * 2);
  until_trial_ = trial_gap_;
  return std::min(most_, 2);
}

void DepthChooser::saw_acceptance(int64_t proposed, int64_t accepted) {
  constexpr double kKeep = 0.99;  // of what was seen, per look: about the last 100
  for (int64_t i = 0; i < std::min<int64_t>(proposed, accepted + 1); ++i) {
    const auto at = static_cast<size_t>(std::min<int64_t>(i, kMaxDraftDepth - 1));
    offered_[at] = kKeep * offered_[at] + 1;
    accepted_[at] = kKeep * accepted_[at] + (i < accepted ? 1 : 0);
  }
}

void DepthChooser::saw_draft(int64_t drafts, double seconds) {
  trial_cost_ += seconds;
  if (drafts == 0) return;
  const double each = seconds / static_cast<double>(drafts);
  // The first drafts of a sequence pay for reading its prompt: an estimate comes down faster than
  // it goes up.
  const double pull = draft_seconds_ == 0 ? 1.0 : each < draft_seconds_ ? 0.5 : 0.05;
  draft_seconds_ += pull * (each - draft_seconds_);
}

void DepthChooser::saw_pass(int64_t rows, double distinct, double seconds) {
  const double n = static_cast<double>(rows);
  since_trial_ += seconds;
  if (rows > 1 && experts_ > 0) {
    overlap_ = 0.95 * overlap_ + 0.05 * std::min(1.5, distinct / independent(n));
  }
  const std::array<double, 3> x = {1, n, distinct};
  constexpr double kKeep = 0.98;
  passes_ = std::min(1e6, passes_ + 1);
  for (size_t i = 0; i < 3; ++i) {
    for (size_t j = 0; j < 3; ++j) normal_[i][j] = kKeep * normal_[i][j] + x[i] * x[j];
    right_[i] = kKeep * right_[i] + x[i] * seconds;
  }
  // Solved with a ridge on the slopes, relative to their size: passes of one kind alone say nothing
  // about the others.
  auto a = normal_;
  auto b = right_;
  for (size_t i = 0; i < 3; ++i) a[i][i] += 1e-4 * normal_[i][i] + 1e-12;
  for (size_t p = 0; p < 3; ++p) {
    for (size_t r = p + 1; r < 3; ++r) {
      const double f = a[r][p] / a[p][p];
      for (size_t c = p; c < 3; ++c) a[r][c] -= f * a[p][c];
      b[r] -= f * b[p];
    }
  }
  for (size_t p = 3; p-- > 0;) {
    double sum = b[p];
    for (size_t c = p + 1; c < 3; ++c) sum -= a[p][c] * cost_[c];
    cost_[p] = sum / a[p][p];
  }
  // More rows or experts never cost less.
  cost_[1] = std::max(0.0, cost_[1]);
  cost_[2] = std::max(0.0, cost_[2]);
}

}  // namespace degu
