// Decode passes on a GPU as CUDA graphs.
//
// A pass with one new token of each sequence is hundreds of small kernels, and starting them one by
// one takes the host longer than they run. So a pass of some size is captured once and launched
// from then on: one call of the host. What differs from pass to pass (tokens, positions, pages)
// lies in a block of the GPU's memory that is uploaded before each launch.
//
// Sizes. A graph is for a number of sequences and a number of pages of each: attention lays out its
// work for that many, and finds most of it empty when sequences are shorter. A pass takes the next
// size that has room. Rows that it lacks repeat its shortest sequence: they write the keys that
// this one writes, to the same place, and visit no expert that it does not visit; nobody reads
// their results. So the results of a pass do not depend on the size it was run in.
//
// The first pass of a size is run as it is, then captured: whatever a kernel needs once is done by
// then, and a pass that cannot be captured has its results all the same. Why it cannot is said
// once, in the log and in the stats, and all later passes run as they are.
//
// Memory. The kernels of a graph keep the addresses they were captured with: activations are the
// runner's own, scratch is used from the same mark on by each pass. Other passes may use both in
// between, for nothing of a pass lives in them when the next one begins.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "infer/kv_cache.h"
#include "nn/batch.h"
#include "tensor/device.h"

namespace degu {

struct PassPlan;

struct GraphStats {
  int64_t captured = 0;
  int64_t launched = 0;  // passes that were a launch of a graph
  std::string off;       // why none is captured (any more); empty while they are

  std::string text() const;  // "3 captured, launched 120 times"
};

class DecodeGraphs {
 public:
  struct Size {
    int64_t sequences = 0;
    int64_t pages = 0;  // of each
    friend bool operator<(const Size& a, const Size& b) {
      return std::pair(a.sequences, a.pages) < std::pair(b.sequences, b.pages);
    }
  };
  // Most sequences times pages in a graph: tables of pages stay small, and so does the scratch
  // memory for parts of sequences (at most one per 8 pages).
  static constexpr int64_t kMostEntries = int64_t{1} << 18;
  // Memory for what is uploaded, of all graphs. When it is full they are captured anew.
  static constexpr int64_t kInputBytes = int64_t{8} << 20;

  // For passes of at most so many sequences. `inputs`: kInputBytes of the context's device.
  // References outlive this object.
  DecodeGraphs(Context& context, KvMemory& kv, AnyView inputs, int64_t most_sequences,
               int64_t vocab);

  // Whether `plan` is a pass that graphs are for. False also when one was not captured, when a
  // trace is taken (it wants the operators one by one), and when a token is outside the vocabulary
  // (which an ordinary pass reports). The first pass that is too large for one is logged.
  bool takes(const PassPlan& plan);
  // Runs pass(batch) for a plan that it takes, or a graph of it. `batch` has at least the rows of
  // the plan, in its order. What pass does depends on the batch's sizes alone, and is done on the
  // device, but for what one run leaves behind as another does.
  void run(const PassPlan& plan, const std::function<void(const Batch&)>& pass);

  const GraphStats& stats() const { return stats_; }

  // The size that a pass with so many sequences, the longest of them with so many pages, runs in.
  static Size size_for(int64_t sequences, int64_t pages, int64_t most_sequences);

 private:
  // What is uploaded, in the order of the members: [first + 1] offsets, and so on.
  struct Inputs {
    explicit Inputs(Size size);
    std::vector<int64_t> offsets, first_position;
    std::vector<int32_t> tokens, positions, table;
    size_t bytes() const;
  };
  struct Graph {
    std::byte* inputs = nullptr;  // on the device
    std::unique_ptr<DeviceGraph> graph;
  };

  Graph& graph_of(Size size);
  void fill(const PassPlan& plan, Size size);
  Batch upload(Size size, std::byte* to);
  void capture(Size size, Graph& graph, const std::function<void()>& pass);
  void stop(const std::string& reason);

  Context& context_;
  KvMemory& kv_;
  AnyView memory_;
  int64_t most_sequences_;
  int64_t vocab_;
  size_t mark_ = 0;  // of scratch, where passes begin
  size_t used_ = 0;  // of memory_
  std::map<Size, Graph> graphs_;
  Inputs inputs_{Size{}};
  std::vector<std::byte> packed_;
  bool said_large_ = false;
  GraphStats stats_;
};

}  // namespace degu
