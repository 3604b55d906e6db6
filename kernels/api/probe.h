// What this machine reaches at best: the peaks that operators are measured against.
//
// Figures are per second over all threads of the context, or over the whole GPU, medians of several
// short rounds; a probe says what the context's instruction set can do, so that a forced lesser set
// has lesser peaks.
#pragma once

#include <span>

#include "tensor/context.h"

namespace degu {

// Arithmetic in registers alone, two operations per multiply-add:
//   kF32   fused multiply-add (multiply, then add on the portable set)
//   kBF16  vdpbf16ps where the set has it, else fp32 arithmetic: what bf16 products are made with
//          there
//   kI8    vpdpbusd where the set has it, else 16-bit multiply-add (vpmaddwd; portable: 32-bit)
// On a GPU: fused multiply-add, and the tensor cores by mma.sync, which on Hopper does not reach
// what its asynchronous products (wgmma) and so the vendor's libraries can.
// Takes about 0.2 s. ShapeError for other types.
double probe_peak_flops(Context& context, DType type);

// One stream of a pass over memory. An update reads and writes the same bytes in place: it counts
// twice.
enum class StreamKind : uint8_t { kRead, kUpdate, kWrite };
struct ProbeStream {
  StreamKind kind = StreamKind::kRead;
  int64_t bytes = 0;
};

// The bytes that such streams move: reads and writes once, updates twice.
int64_t moved_bytes(std::span<const ProbeStream> streams);

// Bytes per second of the plainest loop that moves these streams side by side, the best of several
// ways: on the CPU plain and non-temporal stores at several block lengths, on a GPU accesses in
// flight and blocks of threads. Streams are given their bytes of the context's
// scratch memory; sizes outside the caches measure memory.
class BandwidthProbe {
 public:
  // Touches the memory and finds the best way. The scratch memory is held until destruction.
  BandwidthProbe(Context& context, std::span<const ProbeStream> streams);
  ~BandwidthProbe();
  BandwidthProbe(const BandwidthProbe&) = delete;
  BandwidthProbe& operator=(const BandwidthProbe&) = delete;

  double run();  // one pass

 private:
  static constexpr int kMostStreams = 8;
  double pass(int way);

  Context& context_;
  size_t mark_;
  int count_ = 0;
  ProbeStream streams_[kMostStreams];
  std::byte* memory_[kMostStreams] = {};
  int way_ = 0;
};

}  // namespace degu
