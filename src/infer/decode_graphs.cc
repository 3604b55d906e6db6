#include "infer/decode_graphs.h"

#include <algorithm>
#include <bit>
#include <utility>

#include "base/log.h"
#include "base/timer.h"
#include "infer/runner.h"
#include "tensor/trace.h"

namespace degu {
namespace {

int64_t round_up(int64_t value, int64_t to) {
  return (value + to - 1) / to * to;
}

int64_t pages_of(const SequenceRows& s) {
  return kv_pages_for(s.first_position + s.rows());
}

int64_t most_pages(const PassPlan& plan) {
  int64_t most = 0;
  for (const SequenceRows& s : plan.sequences) most = std::max(most, pages_of(s));
  return most;
}

}  // namespace

std::string GraphStats::text() const {
  const std::string counts = fmt::format("{} captured, launched {} times", captured, launched);
  return off.empty() ? counts : fmt::format("{}; off: {}", counts, off);
}

DecodeGraphs::Inputs::Inputs(Size size)
    : offsets(static_cast<size_t>(size.sequences + 1)),
      first_position(static_cast<size_t>(size.sequences)),
      tokens(static_cast<size_t>(size.sequences)),
      positions(static_cast<size_t>(size.sequences)),
      table(static_cast<size_t>(size.sequences * size.pages), -1) {}

size_t DecodeGraphs::Inputs::bytes() const {
  return (offsets.size() + first_position.size()) * sizeof(int64_t) +
         (tokens.size() + positions.size() + table.size()) * sizeof(int32_t);
}

DecodeGraphs::DecodeGraphs(Context& context, KvMemory& kv, AnyView inputs, int64_t most_sequences,
                           int64_t vocab)
    : context_(context), kv_(kv), memory_(inputs), most_sequences_(most_sequences), vocab_(vocab) {}

// Few sizes, and little more rows than are needed: a row costs attention over its keys and its part
// of the products. Twice as many pages from size to size: an empty piece of work costs a block of
// threads that ends at once.
DecodeGraphs::Size DecodeGraphs::size_for(int64_t sequences, int64_t pages,
                                          int64_t most_sequences) {
  constexpr uint64_t kLeastPages = 8;  // 512 keys: one split of attention
  const int64_t padded = sequences <= 8
                             ? static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(sequences)))
                         : sequences <= 64 ? round_up(sequences, 8)
                                           : round_up(sequences, 16);
  return {.sequences = std::max(sequences, std::min(padded, most_sequences)),
          .pages = static_cast<int64_t>(
              std::max(kLeastPages, std::bit_ceil(static_cast<uint64_t>(pages))))};
}

bool DecodeGraphs::takes(const PassPlan& plan) {
  const auto count = static_cast<int64_t>(plan.sequences.size());
  if (!stats_.off.empty() || context_.trace() != nullptr) return false;
  if (count == 0 || count > most_sequences_) return false;
  for (const SequenceRows& s : plan.sequences) {
    if (s.rows() != 1 || s.logit_rows() != 1) return false;
    if (s.tokens[0] < 0 || s.tokens[0] >= vocab_) return false;
  }
  const Size size = size_for(count, most_pages(plan), most_sequences_);
  if (size.sequences * size.pages <= kMostEntries) return true;
  if (!std::exchange(said_large_, true)) {
    log_info(
        "decode passes of {} sequences of up to {} tokens run without graphs: too large a table "
        "of pages",
        size.sequences, size.pages * kKvPageKeys);
  }
  return false;
}

// A place for the size's inputs; all graphs are forgotten when there is none, and when scratch is
// used from another mark on than it was.
DecodeGraphs::Graph& DecodeGraphs::graph_of(Size size) {
  const size_t mark = context_.scratch().mark();
  if (mark != mark_) graphs_.clear();
  mark_ = mark;
  const auto found = graphs_.find(size);
  if (found != graphs_.end()) return found->second;
  constexpr size_t kAligned = 256;
  const size_t bytes = (Inputs(size).bytes() + kAligned - 1) / kAligned * kAligned;
  if (graphs_.empty() || used_ + bytes > memory_.bytes()) {
    graphs_.clear();
    used_ = 0;
  }
  Graph& graph = graphs_[size];
  graph.inputs = static_cast<std::byte*>(memory_.data) + used_;
  used_ += bytes;
  return graph;
}

void DecodeGraphs::fill(const PassPlan& plan, Size size) {
  inputs_ = Inputs(size);
  const auto shortest = std::min_element(
      plan.sequences.begin(), plan.sequences.end(),
      [](const auto& a, const auto& b) { return a.first_position < b.first_position; });
  for (int64_t i = 0; i < size.sequences; ++i) {
    const auto at = static_cast<size_t>(i);
    const SequenceRows& s = at < plan.sequences.size() ? plan.sequences[at] : *shortest;
    DEGU_DCHECK(pages_of(s) <= static_cast<int64_t>(s.pages.size()));
    inputs_.offsets[at + 1] = i + 1;
    inputs_.first_position[at] = s.first_position;
    inputs_.tokens[at] = s.tokens[0];
    inputs_.positions[at] = static_cast<int32_t>(s.first_position);
    std::copy_n(s.pages.begin(), pages_of(s),
                inputs_.table.begin() + static_cast<std::ptrdiff_t>(i * size.pages));
  }
}

Batch DecodeGraphs::upload(Size size, std::byte* to) {
  packed_.clear();
  const auto put = [&]<class T>(const std::vector<T>& values) {
    const auto* there = reinterpret_cast<const T*>(to + packed_.size());
    const auto* bytes = reinterpret_cast<const std::byte*>(values.data());
    packed_.insert(packed_.end(), bytes, bytes + values.size() * sizeof(T));
    return there;
  };
  const int64_t* offsets = put(inputs_.offsets);
  const int64_t* first = put(inputs_.first_position);
  const int32_t* tokens = put(inputs_.tokens);
  const int32_t* positions = put(inputs_.positions);
  const int32_t* table = put(inputs_.table);
  context_.device_state()->upload(to, packed_.data(), packed_.size());
  return {.tokens_T = inputs_.tokens,
          .positions_T = inputs_.positions,
          .sequences = {.offsets = inputs_.offsets,
                        .first_position = inputs_.first_position,
                        .device_offsets = offsets,
                        .device_first_position = first},
          .device_tokens_T = tokens,
          .device_positions_T = positions,
          .kv_L = kv_.views(inputs_.table, size.pages, table)};
}

void DecodeGraphs::run(const PassPlan& plan, const std::function<void(const Batch&)>& pass) {
  const Size size =
      size_for(static_cast<int64_t>(plan.sequences.size()), most_pages(plan), most_sequences_);
  Graph& graph = graph_of(size);
  fill(plan, size);
  const Batch batch = upload(size, graph.inputs);
  if (graph.graph) {
    const TraceScope span(context_, "decode_graph");
    graph.graph->launch();
    ++stats_.launched;
    return;
  }
  pass(batch);
  capture(size, graph, [&] { pass(batch); });
}

void DecodeGraphs::capture(Size size, Graph& graph, const std::function<void()>& pass) {
  const Timer timer;
  try {
    graph.graph = context_.device_state()->capture(pass);
  } catch (const DeviceError& error) {
    return stop(error.what());
  }
  ++stats_.captured;
  log_info("decode graph {}: {} sequences of up to {} tokens, {} nodes, {:.1f} ms", stats_.captured,
           size.sequences, size.pages * kKvPageKeys, graph.graph->nodes(), timer.seconds() * 1e3);
}

void DecodeGraphs::stop(const std::string& reason) {
  graphs_.clear();
  stats_.off = reason;
  log_warn("decode passes run without graphs: {}", reason);
}

}  // namespace degu
