// Rows go to the ranks of their experts and back, in one round or several, of one chunk or several.
#include "moe/dispatch.h"

#include <algorithm>
#include <array>
#include <catch2/catch.hpp>
#include <set>
#include <string>
#include <vector>

#include "base/random.h"
#include "comm/thread_comm.h"
#include "tensor/tensor.h"
#include "tests/comm/late_comm.h"

namespace degu {
namespace {

constexpr int64_t kTokens = 24;
constexpr int64_t kUnits = 4;

struct Case {
  const char* name;
  int ranks;
  int64_t experts;
  int64_t top_k;
  double headroom;
  int favourite;   // percent of tokens whose first expert is 0
  int64_t rounds;  // 0: whatever there are
  bool unit_slots;
  bool swapped = false;  // experts lie in the slots from the last to the first
  int64_t chunks = 1;
};

// Distinct experts for each token of each rank.
void choose(const Case& c, int rank, View<int32_t> expert_TK) {
  const RandomStream stream(static_cast<uint64_t>(11 + rank), c.name);
  uint64_t index = 0;
  for (int64_t t = 0; t < kTokens; ++t) {
    std::set<int32_t> taken;
    while (static_cast<int64_t>(taken.size()) < c.top_k) {
      const bool first =
          taken.empty() && stream.below(index++, 100) < static_cast<uint64_t>(c.favourite);
      const auto e =
          first ? 0 : static_cast<int32_t>(stream.below(index++, static_cast<uint64_t>(c.experts)));
      if (taken.insert(e).second)
        expert_TK[t * c.top_k + static_cast<int64_t>(taken.size()) - 1] = e;
    }
  }
}

// Catch's assertions belong to one thread: what a rank found wrong.
class Faults {
 public:
  void expect(bool good, const char* what) {
    if (!good && found_.find(what) == std::string::npos) found_ += std::string(what) + "; ";
  }
  const std::string& found() const { return found_; }

 private:
  std::string found_;
};

// What a row carries: who it is.
float tag(int rank, int64_t token) {
  return static_cast<float>(rank * 1000 + token);
}

constexpr std::array<int64_t, kUnits + 1> kUnitOffsets = {0, 5, 12, 12, kTokens};

// The rows of a chunk on the expert side are those of its experts, sorted, in their units.
void check_chunk(const Case& c, const Dispatch& dispatch, const DispatchChunk& chunk,
                 const UnitSegments& segments, View<float> value_R, Faults& faults) {
  faults.expect(segments.offsets.back() == chunk.rows, "rows of segments");
  const int64_t per_expert = segments.slots * segments.units;
  int64_t part = -1;  // which of the runs into which the experts here are parted
  for (int64_t e = 0; e < dispatch.experts_here(); ++e) {
    const int64_t first = chunk.expert_offsets[static_cast<size_t>(e)];
    const int64_t last = chunk.expert_offsets[static_cast<size_t>(e) + 1];
    faults.expect(segments.offsets[static_cast<size_t>(e * per_expert)] == first, "expert");
    const int64_t own = e * c.chunks / dispatch.experts_here();
    if (first < last && part < 0) part = own;
    faults.expect(first == last || part == own, "experts of two chunks");
    // By source rank, then by token: hence by unit.
    for (int64_t i = first; i + 1 < last; ++i) faults.expect(value_R[i] < value_R[i + 1], "order");
    for (int64_t s = 0; s < per_expert && c.unit_slots; ++s) {
      const size_t at = static_cast<size_t>(e * per_expert + s);
      for (int64_t i = segments.offsets[at]; i < segments.offsets[at + 1]; ++i) {
        const auto from = static_cast<int64_t>(value_R[i]);
        const auto unit = static_cast<size_t>(s % kUnits);
        faults.expect(from / 1000 == s / kUnits, "slot");
        faults.expect(from % 1000 >= kUnitOffsets[unit] && from % 1000 < kUnitOffsets[unit + 1],
                      "unit");
      }
    }
  }
}

// One rank: sends every row, checks what arrives, sends it back changed, checks that.
std::string travel(const Case& c, Communicator& group) {
  Faults faults;
  Context context({.threads = 1, .scratch_bytes = size_t{1} << 22});
  std::vector<int32_t> slots;
  for (int64_t e = 0; c.swapped && e < c.experts; ++e) {
    slots.push_back(static_cast<int32_t>(c.experts - 1 - e));
  }
  const Dispatch dispatch(
      {.group = &group, .unit_slots = c.unit_slots, .headroom = c.headroom, .chunks = c.chunks},
      c.experts, c.top_k, slots);
  Arena counter = Arena::measuring();
  dispatch.take(counter, kTokens);
  Arena arena(counter.used());
  DispatchState state = dispatch.take(arena, kTokens);
  const int64_t room = dispatch.most_rows(kTokens);
  const Tensor expert(DType::kI32, {kTokens, c.top_k});
  choose(c, group.rank(), expert.view().as<int32_t>());
  const UnitSegments units{.offsets = kUnitOffsets, .groups = 1, .slots = 1, .units = kUnits};
  const std::vector<int64_t> whole = {0, kTokens};
  dispatch.plan(context, expert, 0, whole, units, state);
  const auto rounds = static_cast<int64_t>(state.rounds.size());
  faults.expect(c.rounds > 0 ? rounds == c.rounds : rounds > 1, "rounds");

  const View<const int32_t> token = state.token_R.as<const int32_t>();
  const View<const int32_t> row = state.row_TK.as<const int32_t>();
  const Tensor back(DType::kF32, {kTokens * c.top_k, 1});
  int64_t sent_before = 0;
  for (const DispatchRound& round : state.rounds) {
    faults.expect(round.first_sent == sent_before, "first_sent");
    faults.expect(round.rows <= room, "room");
    sent_before += round.sent_rows;
    if (rounds == 1) {
      faults.expect(static_cast<int64_t>(round.chunks.size()) == c.chunks, "chunks");
    }
    dispatch.begin(context, state, round);
    const Tensor sent(DType::kF32, {round.sent_rows, 1});
    for (int64_t i = 0; i < round.sent_rows; ++i) {
      sent.view().as<float>()[i] = tag(group.rank(), token[round.first_sent + i]);
    }
    const Tensor here(DType::kF32, {room, 1});
    const RoundRows rows{.sent_RD = sent,
                         .in_RD = here,
                         .out_RD = here,
                         .answer_RD = back.view().rows(round.first_sent, round.sent_rows)};
    std::vector<float> answers;
    dispatch.travel(context, state, round, rows, [&](const DispatchChunk& chunk) {
      faults.expect(chunk.first_row == static_cast<int64_t>(answers.size()), "first_row");
      const View<float> value = here.view().rows(chunk.first_row, chunk.rows).as<float>();
      check_chunk(c, dispatch, chunk, dispatch.segments(context, units, state, chunk), value,
                  faults);
      // What comes back says which slot answered.
      for (int64_t e = 0; e < dispatch.experts_here(); ++e) {
        const int64_t last = chunk.expert_offsets[static_cast<size_t>(e) + 1];
        for (int64_t i = chunk.expert_offsets[static_cast<size_t>(e)]; i < last; ++i) {
          value[i] += 100000.0f * static_cast<float>(group.rank() * dispatch.experts_here() + e);
          answers.push_back(value[i]);
        }
      }
    });
    const View<float> value = here.view().as<float>();
    faults.expect(std::equal(answers.begin(), answers.end(), value.data()),
                  "chunks of a round lie side by side");
  }
  faults.expect(sent_before == kTokens * c.top_k, "every row travels");
  for (int64_t t = 0; t < kTokens; ++t) {
    for (int64_t k = 0; k < c.top_k; ++k) {
      const int32_t e = expert.view().as<int32_t>()[t * c.top_k + k];
      const int32_t slot = slots.empty() ? e : slots[static_cast<size_t>(e)];
      faults.expect(back.view().as<float>()[row[t * c.top_k + k]] ==
                        tag(group.rank(), t) + 100000.0f * static_cast<float>(slot),
                    "answer");
    }
  }
  return faults.found();
}

TEST_CASE("every row reaches its expert and comes back, in as many rounds as there is room for") {
  const std::vector<Case> cases = {
      {"worst case laid out", 4, 8, 2, 0, 100, 1, true},
      {"room enough", 2, 4, 2, 2, 100, 1, true},
      {"all to one expert: as many rounds as ranks", 4, 4, 1, 1, 100, 4, true},
      {"all to one expert, one segment", 4, 4, 1, 1, 100, 4, false},
      {"a little over", 4, 8, 2, 1, 30, 0, true},
      {"a little over, another placement", 4, 8, 2, 1, 30, 0, true, true},
      {"all to one expert, another placement", 4, 8, 2, 1, 100, 0, false, true},
      {"many experts", 3, 12, 4, 1.25, 80, 0, true},
      {"two chunks", 2, 4, 2, 0, 50, 1, true, false, 2},
      {"three chunks of five experts", 2, 10, 3, 0, 30, 1, true, false, 3},
      {"a chunk for each expert, one of which gets all", 4, 16, 1, 0, 100, 1, false, false, 4},
      {"two chunks, another placement", 4, 8, 2, 4, 50, 1, true, true, 2},
      {"two chunks in several rounds", 4, 8, 2, 1, 30, 0, true, false, 2},
      {"three chunks in several rounds, another placement", 3, 12, 4, 1, 80, 0, true, true, 3},
  };
  for (const Case& c : cases) {
    INFO(c.name);
    std::vector<std::string> faults(static_cast<size_t>(c.ranks));
    for (bool late : {false, true}) {
      run_as_threads(c.ranks, [&](Communicator& ranks) {
        test::LateCommunicator postponing(ranks);
        Communicator& group = late ? postponing : ranks;
        faults[static_cast<size_t>(group.rank())] = travel(c, group);
      });
      for (const std::string& fault : faults) {
        INFO(fault);
        CHECK(fault.empty());
      }
    }
  }
}

}  // namespace
}  // namespace degu
