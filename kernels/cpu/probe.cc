#include <algorithm>
#include <bit>
#include <vector>

#include "base/timer.h"
#include "kernels/cpu/isa.h"
#include "kernels/cpu/sweep.h"
#include "kernels/tables/probe.h"

namespace degu {
namespace {

// Twelve chains in named registers: latency 4 x 2 pipes = 8 on the processors at hand, up to 6 x 2
// on others; with two operands they fit in sixteen registers. In an array they would spill and the
// figure halve; did start(i) not differ, the compiler would merge them into one.
template <class V, class Start, class Step, class Sum>
double run_chains(V a, V b, Start start, int64_t rounds, double per_step, Step step, Sum sum,
                  float* sink) {
  V c0 = start(0), c1 = start(1), c2 = start(2), c3 = start(3), c4 = start(4), c5 = start(5);
  V c6 = start(6), c7 = start(7), c8 = start(8), c9 = start(9), c10 = start(10), c11 = start(11);
  for (int64_t i = 0; i < rounds; ++i) {
    c0 = step(c0, a, b);
    c1 = step(c1, a, b);
    c2 = step(c2, a, b);
    c3 = step(c3, a, b);
    c4 = step(c4, a, b);
    c5 = step(c5, a, b);
    c6 = step(c6, a, b);
    c7 = step(c7, a, b);
    c8 = step(c8, a, b);
    c9 = step(c9, a, b);
    c10 = step(c10, a, b);
    c11 = step(c11, a, b);
  }
  *sink += sum(c0) + sum(c1) + sum(c2) + sum(c3) + sum(c4) + sum(c5);
  *sink += sum(c6) + sum(c7) + sum(c8) + sum(c9) + sum(c10) + sum(c11);
  return static_cast<double>(rounds) * 12 * per_step;
}

// `sink` is given a value that depends on all the work, so that none of it can be left out. Each
// thread's lies away from the others' cache lines.
struct alignas(64) Sink {
  float value = 0.0f;
};

// Operands depend on `sink`, which the compiler cannot know and which is never -1.
inline uint32_t unknown(const float* sink, uint32_t word) {
  return *sink == -1.0f ? 0u : word;
}

double fp32_chains(int64_t rounds, float* sink) {
  const VecF one = broadcast(std::bit_cast<float>(unknown(sink, 0x3f800000u)));
  return run_chains(
      one, one, [](int i) { return broadcast(static_cast<float>(i)); }, rounds, 2.0 * VecF::kLanes,
      [](VecF c, VecF a, VecF b) { return fma(a, b, c); }, [](VecF c) { return sum_lanes(c); },
      sink);
}

double bf16_chains(int64_t rounds, float* sink) {
#if defined(__AVX512BF16__)
  const VecPairs ones = broadcast_word(unknown(sink, 0x3f803f80u));
  return run_chains(
      ones, ones,
      [](int i) { return VecPairs{_mm512_castps_si512(broadcast(static_cast<float>(i)).v)}; },
      rounds, 4.0 * VecF::kLanes,
      [](VecPairs c, VecPairs a, VecPairs b) {
        return VecPairs{_mm512_castps_si512(dot_bf16({_mm512_castsi512_ps(c.v)}, a, b).v)};
      },
      [](VecPairs c) { return sum_lanes({_mm512_castsi512_ps(c.v)}); }, sink);
#else
  return fp32_chains(rounds, sink);
#endif
}

double int8_chains(int64_t rounds, float* sink) {
  const uint32_t word = unknown(sink, 0x01010101u);
#if defined(__AVX512VNNI__)
  const __m512i ones = _mm512_set1_epi32(static_cast<int>(word));
  return run_chains(
      ones, ones, [](int i) { return _mm512_set1_epi32(i); }, rounds, 8.0 * 16,
      [](__m512i c, __m512i a, __m512i b) { return _mm512_dpbusd_epi32(c, a, b); },
      [](__m512i c) { return static_cast<float>(_mm512_reduce_add_epi32(c) & 1); }, sink);
#elif defined(__AVX2__)
  // The addition depends on its own chain; the product's operand does too, lest it be taken out of
  // the loop.
  const __m256i ones = _mm256_set1_epi32(static_cast<int>(word));
  return run_chains(
      ones, ones, [](int i) { return _mm256_set1_epi32(i); }, rounds, 4.0 * 8,
      [](__m256i c, __m256i a, __m256i) { return _mm256_add_epi32(c, _mm256_madd_epi16(c, a)); },
      [](__m256i c) { return static_cast<float>(_mm256_extract_epi32(c, 0) & 1); }, sink);
#else
  const Word4 ones = {word, word, word, word};
  const auto start = [](int i) {
    const auto n = static_cast<uint32_t>(i);
    return Word4{n, n, n, n};
  };
  return run_chains(
      ones, ones, start, rounds, 2.0 * 4, [](Word4 c, Word4 a, Word4 b) { return c * a + b; },
      [](Word4 c) { return static_cast<float>(c[0] & 1u); }, sink);
#endif
}

// Returns the operations done.
double chains(DType type, int64_t rounds, float* sink) {
  switch (type) {
    case DType::kBF16:
      return bf16_chains(rounds, sink);
    case DType::kI8:
      return int8_chains(rounds, sink);
    default:
      return fp32_chains(rounds, sink);
  }
}

double arithmetic(Context& context, DType type, int64_t rounds) {
  std::vector<Sink> sinks(static_cast<size_t>(context.threads()));
  std::vector<double> done(sinks.size());
  const Timer timer;
  context.parallel_for(context.threads(), [&](int64_t task, int) {
    const auto i = static_cast<size_t>(task);
    done[i] = chains(type, rounds, &sinks[i].value);
  });
  double total = 0;
  for (double each : done) total += each;
  return total / timer.seconds();
}

template <bool kStream>
void write_lines(float* p, int64_t n, VecF value) {
  for (int64_t i = 0; i < n; i += VecF::kLanes) put<kStream>(p + i, value);
  if constexpr (kStream) stream_fence();
}

// Reads, updates or writes `bytes` (a multiple of a line) at a line-aligned address.
void move(StreamKind kind, bool non_temporal, std::byte* at, int64_t bytes, float* sink) {
  auto* p = reinterpret_cast<float*>(at);
  const int64_t n = bytes / static_cast<int64_t>(sizeof(float));
  const VecF factor = broadcast(*sink);
  constexpr int64_t kLanes = VecF::kLanes;
  if (kind == StreamKind::kWrite) {
    non_temporal ? write_lines<true>(p, n, factor) : write_lines<false>(p, n, factor);
  } else if (kind == StreamKind::kUpdate) {
    for (int64_t i = 0; i < n; i += kLanes) store(p + i, load(p + i) * factor);
  } else {
    VecF sum0 = zero(), sum1 = zero(), sum2 = zero(), sum3 = zero();
    int64_t i = 0;
    for (; i + 4 * kLanes <= n; i += 4 * kLanes) {
      sum0 = sum0 + load(p + i);
      sum1 = sum1 + load(p + i + kLanes);
      sum2 = sum2 + load(p + i + 2 * kLanes);
      sum3 = sum3 + load(p + i + 3 * kLanes);
    }
    for (; i < n; i += kLanes) sum0 = sum0 + load(p + i);
    *sink += sum_lanes((sum0 + sum1) + (sum2 + sum3));
  }
}

constexpr int64_t kLine = 64;

// Lines of the largest stream that a step moves, and how.
struct Way {
  int64_t block_lines;
  bool non_temporal;
};
constexpr Way kWays[] = {{1024, false}, {16, false}, {16, true},
                         {64, false},   {64, true},  {1024, true}};

// Streams advance together: in each step the largest one moves `block_lines`, the others their
// share.
double pass(Context& context, std::span<const ProbeStream> streams, std::byte* const* memory,
            int way) {
  const int64_t block_lines = kWays[way].block_lines;
  const bool non_temporal = kWays[way].non_temporal;
  int64_t most = 0;
  for (const ProbeStream& stream : streams) most = std::max(most, stream.bytes);
  const int64_t steps = std::max<int64_t>(1, most / (block_lines * kLine));
  std::vector<Sink> sinks(static_cast<size_t>(context.threads()));
  const Timer timer;
  context.parallel_for(context.threads(), [&](int64_t task, int) {
    const int64_t threads = context.threads();
    Sink sink;
    for (int64_t s = steps * task / threads; s < steps * (task + 1) / threads; ++s) {
      for (size_t i = 0; i < streams.size(); ++i) {
        const int64_t lines = streams[i].bytes / kLine;
        const int64_t begin = lines * s / steps;
        const int64_t end = lines * (s + 1) / steps;
        if (begin == end) continue;
        move(streams[i].kind, non_temporal, memory[i] + begin * kLine, (end - begin) * kLine,
             &sink.value);
      }
    }
    sinks[static_cast<size_t>(task)] = sink;
  });
  return static_cast<double>(moved_bytes(streams)) / timer.seconds();
}

}  // namespace

template <>
const ProbeKernels cpu::Table<ProbeKernels, cpu::kThisIsa>::value = {
    &arithmetic, &pass, static_cast<int>(std::size(kWays))};

}  // namespace degu
