#include "infer/scheduler.h"

#include <algorithm>

namespace degu {
namespace {

// Prefill in smaller pieces than this costs more passes than fairness is worth.
constexpr int64_t kLeastChunk = 16;

void insert_by_arrival(std::vector<Sequence*>& list, Sequence& sequence) {
  const auto at = std::find_if(list.begin(), list.end(), [&](const Sequence* other) {
    return other->arrival > sequence.arrival;
  });
  list.insert(at, &sequence);
}

// Of `rows` known tokens from `computed` on: how many want logits.
int64_t logit_rows(const Sequence& s, int64_t rows) {
  const auto known = static_cast<int64_t>(s.tokens.size());
  const int64_t from = s.score_from >= 0 ? std::min(s.score_from, known - 1) : known - 1;
  return std::max<int64_t>(0, s.computed + rows - std::max(from, s.computed));
}

}  // namespace

struct Scheduler::Room {
  int64_t rows;
  int64_t logits;
};

Scheduler::Scheduler(const SchedulerOptions& options)
    : options_(options), fresh_(static_cast<size_t>(options.lanes)) {
  if (options_.pages < 1) {
    throw ConfigError("the key/value cache has {} pages; give it room for at least one",
                      options_.pages);
  }
  options_.max_running = static_cast<int>(std::min<int64_t>(
      options_.max_running, std::min(options_.pass.rows, options_.pass.logit_rows)));
  for (int i = 0; i < options_.lanes; ++i) {
    Lane& lane = lanes_.emplace_back(options_.pages);
    if (options_.prefix_cache) lane.cache = std::make_unique<PrefixCache>(*lane.pool);
  }
}

void Scheduler::add(Sequence& sequence) {
  insert_by_arrival(waiting_, sequence);
}

void Scheduler::remove(Sequence& sequence) {
  if (sequence.lane < 0) {
    std::erase(waiting_, &sequence);
  } else {
    release(sequence);
  }
}

void Scheduler::release(Sequence& sequence) {
  Lane& lane = lanes_[static_cast<size_t>(sequence.lane)];
  for (int32_t page : sequence.pages) lane.pool->drop(page);
  std::erase(lane.running, &sequence);
  sequence.pages.clear();
  sequence.computed = sequence.known_pages = sequence.reused = 0;
  sequence.node = nullptr;
  sequence.lane = -1;
}

void Scheduler::preempt(Sequence& sequence) {
  release(sequence);
  ++sequence.preemptions;
  ++preemptions_;
  insert_by_arrival(waiting_, sequence);
}

int32_t Scheduler::take_page(Lane& lane) {
  int32_t page = lane.pool->take();
  if (page < 0 && lane.cache && lane.cache->evict()) page = lane.pool->take();
  return page;
}

// Gives the sequence pages for its first `tokens` positions, as far as there are any; preempts
// younger sequences for it when `may_preempt`. Returns how many positions it has pages for; 0 when
// it was preempted itself.
int64_t Scheduler::reach(Lane& lane, Sequence& sequence, int64_t tokens, bool may_preempt) {
  while (static_cast<int64_t>(sequence.pages.size()) < kv_pages_for(tokens)) {
    const int32_t page = take_page(lane);
    if (page >= 0) {
      sequence.pages.push_back(page);
      fresh_[static_cast<size_t>(sequence.lane)].push_back(page);
      continue;
    }
    if (!may_preempt) break;
    Sequence& youngest = *lane.running.back();
    const bool itself = &youngest == &sequence;
    preempt(youngest);
    if (itself) return 0;
  }
  return static_cast<int64_t>(sequence.pages.size()) * kKvPageKeys;
}

void Scheduler::start(Sequence& sequence, Lane& lane, int index) {
  sequence.lane = index;
  insert_by_arrival(lane.running, sequence);
  if (!lane.cache || !sequence.reuse_prefix) return;
  // The last token is computed in any case: its logits are wanted.
  const int64_t most = (static_cast<int64_t>(sequence.tokens.size()) - 1) / kKvPageKeys;
  sequence.pages = lane.cache->match(sequence.tokens, most, sequence.node);
  sequence.known_pages = static_cast<int64_t>(sequence.pages.size());
  sequence.computed = sequence.reused = sequence.known_pages * kKvPageKeys;
}

// Whether the lane has the pages for the sequence beside what its running ones lack for their own
// tokens and one page more each, so that a start does not make the next passes preempt.
bool Scheduler::has_room(const Lane& lane, const Sequence& sequence) const {
  if (static_cast<int>(lane.running.size()) >= options_.max_running) return false;
  if (lane.running.empty()) return true;
  int64_t needed = kv_pages_for(static_cast<int64_t>(sequence.tokens.size()) + 1);
  for (const Sequence* s : lane.running) {
    const auto ahead = static_cast<int64_t>(s->tokens.size()) + kKvPageKeys;
    needed += std::max<int64_t>(0, kv_pages_for(ahead) - static_cast<int64_t>(s->pages.size()));
  }
  const int64_t free = lane.pool->free_pages();
  return free >= needed || (lane.cache && free + lane.cache->evictable() >= needed);
}

// Starts waiting sequences in order, each in the lane with the fewest that has room.
void Scheduler::admit(const std::vector<Room>& rooms) {
  while (!waiting_.empty()) {
    int best = -1;
    for (int i = 0; i < options_.lanes; ++i) {
      const Lane& lane = lanes_[static_cast<size_t>(i)];
      if (rooms[static_cast<size_t>(i)].rows == 0 || !has_room(lane, *waiting_.front())) continue;
      if (best < 0 || lane.running.size() < lanes_[static_cast<size_t>(best)].running.size()) {
        best = i;
      }
    }
    if (best < 0) return;
    Sequence& next = *waiting_.front();
    waiting_.erase(waiting_.begin());
    start(next, lanes_[static_cast<size_t>(best)], best);
  }
}

void Scheduler::plan_decode(Lane& lane, Room& room, LanePlan& plan) {
  const std::vector<Sequence*> candidates = lane.running;  // preemption changes the list
  for (Sequence* s : candidates) {
    if (!s->decoding() || room.rows == 0 || room.logits == 0) continue;
    if (reach(lane, *s, s->computed + 1, /*may_preempt=*/true) == 0) continue;
    plan.planned.push_back({.sequence = s, .rows = 1, .drafts = 0});
    --room.rows;
    --room.logits;
  }
}

void Scheduler::plan_drafts(Lane& lane, Room& room, LanePlan& plan) {
  const bool prefill = std::any_of(lane.running.begin(), lane.running.end(),
                                   [](const Sequence* s) { return s->pending() > 1; });
  int64_t left = std::min(prefill ? room.rows / 2 : room.rows, room.logits);
  for (Planned& p : plan.planned) {
    Sequence& s = *p.sequence;
    if (s.lane < 0) continue;  // preempted by an older one after it was planned
    const auto wanted = std::min(left, static_cast<int64_t>(s.drafts.size()));
    if (wanted == 0) continue;
    const int64_t pages = kv_pages_for(s.computed + 1 + wanted);
    // Guesses take no page from anybody.
    while (static_cast<int64_t>(s.pages.size()) < pages && lane.pool->free_pages() > 0) {
      s.pages.push_back(lane.pool->take());
      fresh_[static_cast<size_t>(s.lane)].push_back(s.pages.back());
    }
    const int64_t reachable = static_cast<int64_t>(s.pages.size()) * kKvPageKeys;
    p.drafts = std::clamp<int64_t>(reachable - s.computed - 1, 0, wanted);
    left -= p.drafts;
    room.rows -= p.drafts;
    room.logits -= p.drafts;
  }
}

void Scheduler::plan_prefill(Lane& lane, Room& room, LanePlan& plan) {
  std::vector<Sequence*> todo;
  for (Sequence* s : lane.running) {
    if (s->pending() > 1) todo.push_back(s);
  }
  // Even shares first, then what is left to the oldest.
  std::vector<int64_t> rows(todo.size(), 0);
  int64_t left = room.rows;
  const int64_t share =
      todo.empty() ? 0 : std::max(kLeastChunk, left / static_cast<int64_t>(todo.size()));
  for (int round = 0; round < 2; ++round) {
    for (size_t i = 0; i < todo.size(); ++i) {
      const int64_t more =
          std::min({todo[i]->pending() - rows[i], left, round == 0 ? share : left});
      rows[i] += more;
      left -= more;
    }
  }
  for (size_t i = 0; i < todo.size(); ++i) {
    Sequence& s = *todo[i];
    if (rows[i] == 0 || s.lane < 0) continue;
    int64_t reached = reach(lane, s, s.computed + rows[i], /*may_preempt=*/false);
    if (reached <= s.computed) {
      reached = reach(lane, s, s.computed + 1, /*may_preempt=*/true);
      if (reached == 0) continue;
    }
    rows[i] = std::min(rows[i], reached - s.computed);
    while (logit_rows(s, rows[i]) > room.logits && rows[i] > 0) --rows[i];
    if (rows[i] == 0) continue;
    room.rows -= rows[i];
    room.logits -= logit_rows(s, rows[i]);
    plan.planned.push_back({.sequence = &s, .rows = rows[i], .drafts = 0});
  }
}

PassPlan Scheduler::fill(const LanePlan& plan) const {
  PassPlan pass;
  for (const Planned& p : plan.planned) {
    const Sequence& s = *p.sequence;
    SequenceRows& rows = pass.sequences.emplace_back();
    rows.first_position = s.computed;
    const auto first = s.tokens.begin() + s.computed;
    rows.tokens.assign(first, first + p.rows);
    rows.tokens.insert(rows.tokens.end(), s.drafts.begin(), s.drafts.begin() + p.drafts);
    rows.pages.assign(s.pages.begin(), s.pages.begin() + kv_pages_for(s.computed + rows.rows()));
    rows.logits_from = p.rows - logit_rows(s, p.rows);
  }
  return pass;
}

std::vector<LanePlan> Scheduler::plan() {
  std::vector<LanePlan> plans(lanes_.size());
  std::vector<Room> rooms(lanes_.size(), Room{options_.pass.rows, options_.pass.logit_rows});
  for (size_t i = 0; i < lanes_.size(); ++i) plan_decode(lanes_[i], rooms[i], plans[i]);
  admit(rooms);
  for (size_t i = 0; i < lanes_.size(); ++i) {
    LanePlan& plan = plans[i];
    plan_drafts(lanes_[i], rooms[i], plan);
    plan_prefill(lanes_[i], rooms[i], plan);
    std::erase_if(plan.planned, [](const Planned& p) { return p.sequence->lane < 0; });
    plan.pass = fill(plan);
    // Pages taken for a sequence that was preempted again are zeroed as well: harmless.
    if (!plan.pass.sequences.empty()) {
      plan.pass.sequences.front().fresh = std::exchange(fresh_[i], {});
    }
  }
  return plans;
}

void Scheduler::advance(Sequence& sequence, int64_t computed) {
  sequence.computed = computed;
  Lane& lane = lanes_[static_cast<size_t>(sequence.lane)];
  if (!lane.cache) return;
  while ((sequence.known_pages + 1) * kKvPageKeys <= computed) {
    const std::span<const int32_t> tokens(sequence.tokens);
    const auto at = static_cast<size_t>(sequence.known_pages);
    sequence.node = lane.cache->insert(
        sequence.node,
        tokens.subspan(at * static_cast<size_t>(kKvPageKeys), static_cast<size_t>(kKvPageKeys)),
        sequence.pages[at]);
    ++sequence.known_pages;
  }
}

int64_t Scheduler::running() const {
  int64_t count = 0;
  for (const Lane& lane : lanes_) count += static_cast<int64_t>(lane.running.size());
  return count;
}

int64_t Scheduler::pages_cached() const {
  int64_t count = 0;
  for (const Lane& lane : lanes_) count += lane.cache ? lane.cache->evictable() : 0;
  return count;
}

int64_t Scheduler::pages_in_use() const {
  int64_t count = -pages_cached();
  for (const Lane& lane : lanes_) count += lane.pool->pages() - lane.pool->free_pages();
  return count;
}

}  // namespace degu
