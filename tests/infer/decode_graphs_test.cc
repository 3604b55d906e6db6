// Decode passes as graphs: the bits of passes that are none.
#include "infer/decode_graphs.h"

#include <algorithm>
#include <catch2/catch.hpp>
#include <cstring>
#include <map>
#include <set>

#include "infer/runner.h"
#include "tensor/trace.h"
#include "tests/infer/filled_parameters.h"
#include "tests/infer/small_models.h"
#include "tests/support/device_testing.h"

namespace degu {
namespace {

using testing::ModelCase;
using testing::serving_models;

ContextOptions gpu_options() {
  return {.threads = 1, .scratch_bytes = size_t{1} << 27, .device = DeviceType::kCuda};
}

// ---- two runners, one with graphs ----

struct Setting {
  ModelShape shape;
  DType type = DType::kBF16;
  Scheme scheme = Scheme::kBf16;
  DType kv = DType::kBF16;
  PassLimits limits = {.rows = 96, .logit_rows = 24};
  int32_t pages = 40;
};

// Sequences of one model, each pass run with and without graphs.
class Twice {
 public:
  explicit Twice(const Setting& s)
      : context_(gpu_options()),
        parameters_(context_, s.shape, s.type, {0, s.shape.moe.experts},
                    [&](const ParameterSpec&) { return s.scheme; }),
        model_(filled(s.scheme)),
        plain_(context_, parameters_, model_, s.limits, s.kv, s.pages, /*graphs=*/false),
        graphs_(context_, parameters_, model_, s.limits, s.kv, s.pages) {
    for (int32_t page = s.pages; page-- > 0;) free_.push_back(page);
  }

  Context& context() { return context_; }
  GraphStats stats() const { return graphs_.graph_stats(); }

  // Begins with the first `shared` pages of sequence `like`.
  void begin(int id, int like = -1, int64_t shared = 0) {
    Sequence& s = sequences_[id];
    if (like < 0) return;
    const std::vector<int32_t>& from = sequences_.at(like).pages;
    s.pages.assign(from.begin(), from.begin() + shared);
    s.length = shared * kKvPageKeys;
    s.shared = shared;
  }
  void end(int id) {
    const Sequence& s = sequences_.at(id);
    free_.insert(free_.end(), s.pages.begin() + s.shared, s.pages.end());
    sequences_.erase(id);
  }

  // rows[id] new tokens of each; logits of the last, or of the last `logits`.
  void pass(const std::map<int, int64_t>& rows, int64_t logits = 1) {
    PassPlan plan;
    for (const auto& [id, count] : rows) plan.sequences.push_back(rows_of(id, count, logits));
    compare(plan);
  }
  void decode(const std::set<int>& ids) {
    std::map<int, int64_t> rows;
    for (int id : ids) rows[id] = 1;
    pass(rows);
  }
  void compare(const PassPlan& plan) {
    const std::vector<std::byte> expected = bytes_of(plain_.run(plan));
    const std::vector<std::byte> got = bytes_of(graphs_.run(plan));
    INFO("pass " << ++passes_ << " of " << plan.sequences.size() << " sequences");
    REQUIRE(expected.size() == got.size());
    CHECK(std::memcmp(expected.data(), got.data(), got.size()) == 0);
  }

 private:
  struct Sequence {
    int64_t length = 0;
    int64_t shared = 0;
    std::vector<int32_t> pages;
  };

  const Transformer& filled(Scheme scheme) {
    testing::fill_parameters(context_, parameters_, scheme);
    made_.emplace(parameters_);
    return *made_;
  }

  SequenceRows rows_of(int id, int64_t count, int64_t logits) {
    Sequence& s = sequences_[id];
    SequenceRows rows{.first_position = s.length,
                      .logits_from = std::max<int64_t>(0, count - logits)};
    for (int64_t i = 0; i < count; ++i) {
      drawn_ = drawn_ * 1103515245u + 12345u;
      rows.tokens.push_back(static_cast<int32_t>(drawn_ / 65536u % 75u));
    }
    s.length += count;
    while (static_cast<int64_t>(s.pages.size()) < kv_pages_for(s.length)) {
      REQUIRE_FALSE(free_.empty());
      s.pages.push_back(free_.back());
      rows.fresh.push_back(free_.back());
      free_.pop_back();
    }
    rows.pages = s.pages;
    return rows;
  }

  static std::vector<std::byte> bytes_of(const PassOutput& out) {
    std::vector<std::byte> bytes;
    const auto add = [&](const AnyView& view) {
      const auto* from = static_cast<const std::byte*>(view.data);
      bytes.insert(bytes.end(), from, from + view.bytes());
    };
    add(out.logit_RV);
    for (const AnyView& experts : out.expert_LTK) add(experts);
    return bytes;
  }

  Context context_;
  ParameterSet parameters_;
  std::optional<Transformer> made_;
  const Transformer& model_;
  ModelRunner plain_, graphs_;
  std::map<int, Sequence> sequences_;
  std::vector<int32_t> free_;
  uint32_t drawn_ = 1;
  int passes_ = 0;
};

// Sequences that begin, cross pages, share one, end, and leave their pages to others.
void serve(Twice& twice) {
  for (int id : {0, 1, 2}) twice.begin(id);
  twice.pass({{0, 5}, {1, 62}, {2, 1}});
  for (int i = 0; i < 3; ++i) twice.decode({0, 1, 2});  // padded to 4; one reaches its next page
  twice.begin(3, 1, 1);
  twice.pass({{0, 1}, {2, 1}, {3, 2}});  // who decodes beside a prefill
  twice.decode({0, 1, 2, 3});
  twice.end(1);
  twice.begin(4);
  twice.pass({{4, 4}}, 4);
  twice.decode({0, 2, 3, 4});
  twice.decode({0, 4});
  twice.decode({4});
  twice.decode({2});
  twice.decode({0, 2, 3});
}

TEST_CASE("decode passes have the same bits as graphs and without, for every model", "[device]") {
  if (!testing::has_gpu()) return;
  for (const ModelCase& c : serving_models()) {
    for (Scheme scheme : {Scheme::kBf16, Scheme::kW8A8}) {
      INFO(c.name << ", " << scheme_info(scheme).name);
      Twice twice({.shape = c.shape, .scheme = scheme});
      serve(twice);
      const GraphStats stats = twice.stats();
      INFO(stats.text());
      if (c.shape.moe.experts > 0 && c.shape.moe.router == RouterKind::kHash) {
        // Its table of experts lies on the host.
        CHECK(stats.captured == 0);
        CHECK_THAT(stats.off, Catch::Contains("hash_router") && Catch::Contains("of the host's"));
        continue;
      }
      CHECK(stats.off.empty());
      CHECK(stats.captured == 3);  // of 4, 2 and 1 sequences
      CHECK(stats.launched == 6);
    }
  }
}

TEST_CASE("graphs serve int8 pages, fp32 and 4-bit weights", "[device]") {
  if (!testing::has_gpu()) return;
  const ModelShape shape = serving_models().front().shape;
  const Setting settings[] = {
      {.shape = shape, .kv = DType::kI8},
      {.shape = shape, .type = DType::kF32, .scheme = Scheme::kFp32, .kv = DType::kF32},
      {.shape = shape, .scheme = Scheme::kW4A16}};
  for (const Setting& setting : settings) {
    Twice twice(setting);
    serve(twice);
    CHECK(twice.stats().captured == 3);
  }
}

TEST_CASE("a graph serves every length of its class, and every number of sequences", "[device]") {
  if (!testing::has_gpu()) return;
  Twice twice({.shape = serving_models().front().shape});
  twice.begin(0);
  twice.pass({{0, 2}});
  twice.decode({0});
  CHECK(twice.stats().captured == 1);  // where the longest has 3 tokens
  twice.begin(1);
  for (int i = 0; i < 6; ++i) twice.pass({{1, 85}});
  for (int i = 0; i < 2; ++i) twice.decode({1});  // 511 and 512 tokens
  CHECK(twice.stats().captured == 1);
  CHECK(twice.stats().launched == 2);
  for (int i = 0; i < 2; ++i) twice.decode({1});  // the next class, in two splits of attention
  twice.decode({0});
  CHECK(twice.stats().captured == 2);
  CHECK(twice.stats().launched == 4);
  for (int id = 2; id < 21; ++id) {
    twice.begin(id);
    twice.pass({{id, id}});
  }
  std::set<int> ids = {0};
  for (int id = 2; id < 21; ++id) {  // 9 to 16 sequences are padded to 16, and 17 to 20 to 24
    ids.insert(id);
    if (id == 6 || id == 8 || id == 11 || id == 13 || id == 17 || id == 20) twice.decode(ids);
  }
  CHECK(twice.stats().captured == 5);  // of 8, 16 and 24
  CHECK(twice.stats().launched == 7);
}

TEST_CASE("what is no decode pass, or cannot be one, runs as ever", "[device]") {
  if (!testing::has_gpu()) return;
  Twice twice({.shape = serving_models().front().shape});
  twice.begin(0);
  twice.pass({{0, 3}});
  twice.pass({{0, 1}}, 0);  // no logits
  twice.pass({{0, 2}}, 2);  // drafts
  CHECK(twice.stats().captured == 0);
  PassPlan plan;
  plan.sequences.push_back({.tokens = {75}, .pages = {39}, .fresh = {39}});
  CHECK_THROWS_WITH(twice.compare(plan), Catch::Contains("outside the table"));
  Trace trace;
  twice.context().set_trace(&trace);
  twice.decode({0});
  twice.context().set_trace(nullptr);
  CHECK(twice.stats().captured == 0);
  for (int i = 0; i < 2; ++i) twice.decode({0});
  CHECK(twice.stats().launched == 1);
  // Scratch that somebody holds moves what passes take: they are captured anew and leave it alone.
  Context& context = twice.context();
  const ScratchScope scope(context.scratch());
  const AnyView held = context.scratch().take(DType::kI8, {1 << 14});
  zero(context, held);
  for (int i = 0; i < 2; ++i) twice.decode({0});
  const OnHost still(context, held);
  const auto* bytes = still.as<int8_t>().data();
  CHECK(std::all_of(bytes, bytes + (1 << 14), [](int8_t byte) { return byte == 0; }));
  CHECK(twice.stats().captured == 2);
  CHECK(twice.stats().launched == 2);
}

// ---- without a model: a pass that copies what it was given ----

struct Copied {
  Context context{gpu_options()};
  KvMemory kv{context, testing::small_shape().resolved(), DType::kBF16, 4};
  Tensor inputs;
  DecodeGraphs graphs;
  Tensor tokens{DType::kI32, {32}, DeviceType::kCuda};
  Tensor positions{DType::kI32, {32}, DeviceType::kCuda};
  Tensor table{DType::kI32, {32 * 16}, DeviceType::kCuda};
  Tensor first{DType::kI64, {32}, DeviceType::kCuda};

  explicit Copied(int64_t bytes, int64_t most = 24)
      : inputs(DType::kU8, {bytes}, DeviceType::kCuda),
        graphs(context, kv, inputs, most, /*vocab=*/75) {}

  void pass(const Batch& batch) {
    DeviceState& state = *context.device_state();
    const auto rows = static_cast<size_t>(batch.tokens());
    const KvView& view = batch.kv_L[0];
    const size_t entries = rows * static_cast<size_t>(view.max_pages);
    state.move(tokens.view().data, batch.device_tokens_T, rows * 4);
    state.move(positions.view().data, batch.device_positions_T, rows * 4);
    state.move(first.view().data, batch.sequences.device_first_position, rows * 8);
    state.move(table.view().data, view.device_table, entries * 4);
  }

  // The plan's sequence i has token token + i, positions[i] keys and pages from 100 i on.
  void run(int32_t token, const std::vector<int64_t>& keys) {
    PassPlan plan;
    for (size_t i = 0; i < keys.size(); ++i) {
      SequenceRows& s = plan.sequences.emplace_back();
      s.first_position = keys[i];
      s.tokens = {token + static_cast<int32_t>(i)};
      for (int32_t p = 0; p < kv_pages_for(keys[i] + 1); ++p) {
        s.pages.push_back(static_cast<int32_t>(100 * i) + p);
      }
    }
    REQUIRE(graphs.takes(plan));
    graphs.run(plan, [&](const Batch& batch) { pass(batch); });
    check(plan);
  }

  void check(const PassPlan& plan) {
    const auto count = static_cast<int64_t>(plan.sequences.size());
    int64_t most = 0;
    size_t shortest = 0;
    for (size_t i = 0; i < plan.sequences.size(); ++i) {
      const SequenceRows& s = plan.sequences[i];
      most = std::max(most, static_cast<int64_t>(s.pages.size()));
      if (s.first_position < plan.sequences[shortest].first_position) shortest = i;
    }
    const DecodeGraphs::Size size = DecodeGraphs::size_for(count, most, 24);
    const OnHost t(context, tokens), p(context, positions), f(context, first), b(context, table);
    for (int64_t i = 0; i < size.sequences; ++i) {
      const auto from = i < count ? static_cast<size_t>(i) : shortest;
      const SequenceRows& s = plan.sequences[from];
      CHECK(t.as<int32_t>()[i] == s.tokens[0]);
      CHECK(p.as<int32_t>()[i] == s.first_position);
      CHECK(f.as<int64_t>()[i] == s.first_position);
      for (size_t page = 0; page < s.pages.size(); ++page) {
        CHECK(b.as<int32_t>()[i * size.pages + static_cast<int64_t>(page)] == s.pages[page]);
      }
    }
  }
};

TEST_CASE("each launch reads the pass's own tokens, positions and pages", "[device]") {
  if (!testing::has_gpu()) return;
  Copied copied(1 << 16);
  copied.run(1, {5, 700, 2});
  copied.run(9, {60, 701, 700});
  copied.run(20, {64, 900, 800, 65});
  CHECK(copied.graphs.stats().captured == 1);
  CHECK(copied.graphs.stats().launched == 2);
  CHECK(copied.graphs.stats().text() == "1 captured, launched 2 times");
  PassPlan many;
  many.sequences.assign(16, {.first_position = int64_t{1} << 20, .tokens = {1}});
  CHECK_FALSE(copied.graphs.takes(many));  // 32,768 pages of each
  many.sequences.resize(8);
  CHECK(copied.graphs.takes(many));
  many.sequences.assign(25, {.tokens = {1}});
  CHECK_FALSE(copied.graphs.takes(many));  // more than it was made for
}

TEST_CASE("graphs are captured anew when the memory for their inputs is full", "[device]") {
  if (!testing::has_gpu()) return;
  Copied copied(1 << 10);
  for (int round = 0; round < 2; ++round) {
    for (size_t count : {1, 2, 4, 8}) {  // 256, 256, 256 and 512 bytes
      copied.run(7, std::vector<int64_t>(count, 3));
      copied.run(8, std::vector<int64_t>(count, 4));
    }
  }
  CHECK(copied.graphs.stats().captured == 8);
  CHECK(copied.graphs.stats().launched == 8);
}

TEST_CASE("a pass that no graph can hold says so, and has its results", "[device]") {
  if (!testing::has_gpu()) return;
  Copied copied(1 << 16);
  const PassPlan plan{.sequences = {{.tokens = {3}, .pages = {1}}}};
  int runs = 0;
  copied.graphs.run(plan, [&](const Batch& batch) {
    ++runs;
    copied.pass(batch);
    const TraceScope span(copied.context, "somebody");
    copied.context.device_state()->synchronize();
  });
  CHECK(runs == 2);
  copied.check(plan);
  CHECK_THAT(copied.graphs.stats().off, Catch::Contains("somebody: synchronize"));
  CHECK_THAT(copied.graphs.stats().text(),
             Catch::Contains("0 captured") && Catch::Contains("off:"));
  CHECK_FALSE(copied.graphs.takes(plan));
}

TEST_CASE("sizes of graphs have room and little more") {
  const auto size = [](int64_t sequences, int64_t pages) {
    const DecodeGraphs::Size s = DecodeGraphs::size_for(sequences, pages, 250);
    return std::pair(s.sequences, s.pages);
  };
  CHECK(size(1, 1) == std::pair<int64_t, int64_t>(1, 8));
  CHECK(size(3, 8) == std::pair<int64_t, int64_t>(4, 8));
  CHECK(size(5, 9) == std::pair<int64_t, int64_t>(8, 16));
  CHECK(size(9, 17) == std::pair<int64_t, int64_t>(16, 32));
  CHECK(size(17, 1) == std::pair<int64_t, int64_t>(24, 8));
  CHECK(size(64, 1) == std::pair<int64_t, int64_t>(64, 8));
  CHECK(size(65, 1) == std::pair<int64_t, int64_t>(80, 8));
  CHECK(size(243, 1) == std::pair<int64_t, int64_t>(250, 8));
  CHECK(size(250, 1) == std::pair<int64_t, int64_t>(250, 8));
}

TEST_CASE("a runner without graphs says why") {
  Context context({.threads = 1, .scratch_bytes = size_t{1} << 27});
  const ModelShape shape = testing::small_shape();
  ParameterSet parameters(context, shape, DType::kBF16, {0, shape.moe.experts}, false);
  const Transformer model(parameters);
  const ModelRunner runner(context, parameters, model, {}, DType::kBF16, 4);
  CHECK(runner.graph_stats().off == "no GPU");
  const ModelRunner unwanted(context, parameters, model, {}, DType::kBF16, 4, false);
  CHECK(unwanted.graph_stats().off == "not wanted");
}

}  // namespace
}  // namespace degu
