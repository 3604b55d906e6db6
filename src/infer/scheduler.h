// Which tokens of which sequences run in the next pass, and who holds which page.
//
// Rules
// - A sequence is its known tokens and the number of them whose keys are cached. What is missing is
//   computed in passes; a sequence that lacks only its last token decodes, one that lacks more is
//   in prefill. A preempted one gives its pages back and later starts over: with the same bits, so
//   its text does not change.
// - Each lane (a rank with its pages) runs at most PassLimits::rows tokens per pass: first one
//   token for every decoding sequence, then drafts (at most half of what is left while anybody is
//   in prefill), then prefill, shared evenly among the sequences in prefill, what is left over to
//   the oldest.
// - Sequences are served in the order of their arrival. One waits while the lane lacks the pages
//   for its tokens. When a page is needed and none is free, cached prefixes go first (least
//   recently used); then the youngest sequence of the lane is preempted. The oldest is never
//   preempted, so somebody always finishes.
//
// Threads: belongs to the thread of the engine.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "infer/prefix_cache.h"
#include "infer/runner.h"

namespace degu {

struct SchedulerOptions {
  PassLimits pass;
  int max_running = 64;  // per lane; at most pass.rows and pass.logit_rows
  int32_t pages = 0;     // per lane
  int lanes = 1;
  bool prefix_cache = true;
};

struct Sequence {
  uint64_t arrival = 0;         // order of service
  std::vector<int32_t> tokens;  // known: the prompt and what was sampled
  int64_t score_from = -1;      // logits are wanted from this position on; -1: the newest only
  bool reuse_prefix = true;     // false when positions of the prompt want logits
  std::vector<int32_t> drafts;  // guesses at the next tokens, set before `plan`

  // The scheduler's own:
  int lane = -1;         // -1: waiting
  int64_t computed = 0;  // tokens whose keys are cached
  int64_t reused = 0;    // of these, found in the prefix cache at the last start
  int64_t preemptions = 0;
  std::vector<int32_t> pages;
  PrefixCache::Node* node = nullptr;  // of the last page that the prefix cache knows …
  int64_t known_pages = 0;            // … which is this many pages in

  int64_t pending() const { return static_cast<int64_t>(tokens.size()) - computed; }
  bool decoding() const { return lane >= 0 && pending() == 1; }
};

// A sequence's part of a pass.
struct Planned {
  Sequence* sequence = nullptr;
  int64_t rows = 0;    // known tokens
  int64_t drafts = 0;  // and then the first so many of its drafts
};

struct LanePlan {
  std::vector<Planned> planned;
  PassPlan pass;  // the same, for the runner
};

class Scheduler {
 public:
  explicit Scheduler(const SchedulerOptions& options);

  // The sequence must stay where it is until `remove`.
  void add(Sequence& sequence);
  void remove(Sequence& sequence);  // its pages become free, or stay as cached prefix

  // The next pass of each lane; all empty when there is nothing to do.
  std::vector<LanePlan> plan();
  // `computed` moved on after a pass: remembers whole pages for later sequences.
  void advance(Sequence& sequence, int64_t computed);

  // Tokens a sequence can have at most for the lane's pages.
  int64_t longest() const { return int64_t{options_.pages} * kKvPageKeys; }
  int64_t running() const;
  int64_t waiting() const { return static_cast<int64_t>(waiting_.size()); }
  int64_t pages_in_use() const;  // held by sequences, all lanes
  int64_t pages_cached() const;  // held by prefix caches alone
  int64_t preemptions() const { return preemptions_; }
  const std::vector<Sequence*>& running(int lane) const {
    return lanes_[static_cast<size_t>(lane)].running;
  }

 private:
  struct Lane {
    explicit Lane(int32_t pages) : pool(std::make_unique<PagePool>(pages)) {}
    std::unique_ptr<PagePool> pool;
    std::unique_ptr<PrefixCache> cache;
    std::vector<Sequence*> running;  // by arrival
  };
  struct Room;

  bool has_room(const Lane& lane, const Sequence& sequence) const;
  void admit(const std::vector<Room>& rooms);
  void start(Sequence& sequence, Lane& lane, int index);
  void release(Sequence& sequence);
  void preempt(Sequence& sequence);
  int32_t take_page(Lane& lane);
  int64_t reach(Lane& lane, Sequence& sequence, int64_t tokens, bool may_preempt);
  void plan_decode(Lane& lane, Room& room, LanePlan& plan);
  void plan_drafts(Lane& lane, Room& room, LanePlan& plan);
  void plan_prefill(Lane& lane, Room& room, LanePlan& plan);
  PassPlan fill(const LanePlan& plan) const;

  SchedulerOptions options_;
  std::vector<Lane> lanes_;
  std::vector<Sequence*> waiting_;           // by arrival
  std::vector<std::vector<int32_t>> fresh_;  // pages taken since the last pass, per lane
  int64_t preemptions_ = 0;
};

}  // namespace degu
