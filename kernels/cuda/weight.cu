#include "kernels/tables/weight.h"

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/pack.cuh"
#include "kernels/cuda/table.h"
#include "kernels/cuda/weight_layout.cuh"

namespace degu {
namespace {

using namespace degu::cuda;

constexpr int kWarps = kThreads / 32;

int64_t float_panels(int64_t outputs) {
  return (outputs + kFloatPanel - 1) / kFloatPanel;
}
int64_t float_depth(int64_t inner) {
  return (inner + kFloatStep - 1) / kFloatStep * kFloatStep;
}

size_t bytes_of(Scheme scheme, int64_t experts, int64_t outputs, int64_t inner) {
  int64_t bytes = 0;
  visit_format(scheme, [&]<class Format>() {
    if constexpr (Format::kInfo.scheme == Scheme::kFp32) {
      bytes = float_panels(outputs) * float_depth(inner) * kFloatPanel * 4;
    } else {
      using Layout = Chunk<Format>;
      bytes = Layout::strips(outputs) * Layout::chunks(inner) * Layout::kBytes;
    }
  });
  return static_cast<size_t>(experts * bytes);
}

// The numbers of a weight as a product meets them.
template <class Source>
struct Numbers {
  const Source* data;
  int64_t outputs;
  int64_t inner;
  bool outputs_adjacent;  // kBackward: [experts, inner, outputs]

  __device__ Source at(int64_t expert, int64_t output, int64_t i) const {
    if (output >= outputs || i >= inner) return Source{};
    return data[outputs_adjacent ? (expert * inner + i) * outputs + output
                                 : (expert * outputs + output) * inner + i];
  }
};

__device__ inline uint32_t bf16_bits(float value) {
  bf16 rounded;
  assign(rounded, value);
  return rounded.bits;
}
__device__ inline uint32_t bf16_bits(bf16 value) {
  return value.bits;
}

// The place of a warp's chunk, or panel, in the weight.
struct PiecePlace {
  int64_t expert;
  int64_t strip;
  int64_t step;

  __device__ PiecePlace(int64_t item, int64_t strips, int64_t steps)
      : expert(item / (strips * steps)), strip(item / steps % strips), step(item % steps) {}
};

// The words of a warp's chunk: bits_of(output, inner) is one number, as the chunk holds it.
template <class Layout, int kUnroll, class BitsOf>
__device__ inline void write_cells(const PiecePlace& place, std::byte* chunk, BitsOf&& bits_of) {
  const int lane = static_cast<int>(threadIdx.x % 32);
#pragma unroll(kUnroll)
  for (int cell = 0; cell < Layout::kCells; ++cell) {
    Words<16> out;
#pragma unroll
    for (int word = 0; word < 4; ++word) {
      out.word[word] = 0;
#pragma unroll
      for (int i = 0; i < Layout::kPerWord; ++i) {
        const ChunkElement e = Layout::element(cell, word, lane, i);
        out.word[word] |=
            bits_of(place.strip * kStripOutputs + e.output, place.step * Layout::kInner + e.inner)
            << i * Layout::kBits;
      }
    }
    *reinterpret_cast<Words<16>*>(chunk + cell * kCellBytes + lane * 16) = out;
  }
}

// A warp per chunk: its reads are runs of at least 32 bytes in either orientation.
template <class Source>
__global__ void __launch_bounds__(kThreads)
    pack_numbers_kernel(Numbers<Source> w, int64_t items, std::byte* packed) {
  using Layout = Chunk<Bf16Format>;
  const int64_t item = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32;
  if (item >= items) return;
  const PiecePlace place(item, Layout::strips(w.outputs), Layout::chunks(w.inner));
  write_cells<Layout, Layout::kCells>(
      place, packed + item * Layout::kBytes,
      [&](int64_t output, int64_t i) { return bf16_bits(w.at(place.expert, output, i)); });
}

// A warp per 8 inner elements of a panel; a lane has one output.
constexpr int kFloatRun = 8;

template <class Source>
__global__ void __launch_bounds__(kThreads)
    pack_floats_kernel(Numbers<Source> w, int64_t items, int64_t panels, int64_t depth,
                       float* packed) {
  const int64_t item = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32;
  if (item >= items) return;
  const PiecePlace place(item, panels, depth / kFloatRun);
  const int lane = static_cast<int>(threadIdx.x % 32);
#pragma unroll
  for (int j = 0; j < kFloatRun; ++j) {
    packed[(item * kFloatRun + j) * kFloatPanel + lane] =
        to_float(w.at(place.expert, place.strip * kFloatPanel + lane, place.step * kFloatRun + j));
  }
}

template <class Source>
void pack_source(Context& context, AnyView w, const PackedWeight& packed) {
  const Numbers<Source> numbers{.data = static_cast<const Source*>(w.data),
                                .outputs = packed.outputs,
                                .inner = packed.inner,
                                .outputs_adjacent = packed.orientation == Orientation::kBackward};
  if (packed.scheme == Scheme::kFp32) {
    const int64_t panels = float_panels(packed.outputs);
    const int64_t depth = float_depth(packed.inner);
    const int64_t items = packed.experts * panels * (depth / kFloatRun);
    if (items == 0) return;
    launch_kernel(context, "pack_weight", {blocks_for(items, kWarps), kThreads},
                  &pack_floats_kernel<Source>, numbers, items, panels, depth,
                  static_cast<float*>(packed.bytes));
  } else {
    using Layout = Chunk<Bf16Format>;
    const int64_t items =
        packed.experts * Layout::strips(packed.outputs) * Layout::chunks(packed.inner);
    if (items == 0) return;
    launch_kernel(context, "pack_weight", {blocks_for(items, kWarps), kThreads},
                  &pack_numbers_kernel<Source>, numbers, items,
                  static_cast<std::byte*>(packed.bytes));
  }
}

void pack(Context& context, AnyView w, const PackedWeight& packed) {
  w.dtype == DType::kBF16 ? pack_source<bf16>(context, w, packed)
                          : pack_source<float>(context, w, packed);
}

// Codes and scales as a checkpoint holds them.
struct StoredCodes {
  const uint8_t* codes;
  const bf16* scales;
  int64_t outputs;
  int64_t inner;
};

// A code as the chunk holds it; stops at one that the scheme does not have.
template <class Format>
__device__ inline uint32_t code_at(const StoredCodes& w, int64_t expert, int64_t output,
                                   int64_t i) {
  using Layout = Chunk<Format>;
  const bool nibble = Layout::kCodes == Codes::kInt4;
  uint32_t code = nibble ? 8 : 0;
  if (output < w.outputs && i < w.inner) {
    const int64_t row = expert * w.outputs + output;
    code = stored_code(Layout::kCodes, w.codes + row * code_bytes(Layout::kCodes, w.inner), i);
    require(nibble                           ? code != 0
            : Layout::kCodes == Codes::kE4M3 ? (code & 0x7f) != 0x7f
                                             : code != 0x80);
  }
  return nibble && Layout::kInteger ? code ^ 8 : code;
}

template <class Format>
__global__ void __launch_bounds__(kThreads)
    pack_codes_kernel(StoredCodes w, int64_t items, std::byte* packed) {
  using Layout = Chunk<Format>;
  const int64_t item = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32;
  if (item >= items) return;
  const PiecePlace place(item, Layout::strips(w.outputs), Layout::chunks(w.inner));
  const int lane = static_cast<int>(threadIdx.x % 32);
  std::byte* chunk = packed + item * Layout::kBytes;
  write_cells<Layout, 1>(place, chunk, [&](int64_t output, int64_t i) {
    return code_at<Format>(w, place.expert, output, i);
  });
  auto* scales = reinterpret_cast<bf16*>(chunk + Layout::kScalesAt);
  const int64_t groups = scale_groups(w.inner);
  for (int i = lane; i < Layout::kGroups * kStripOutputs; i += 32) {
    const int64_t output = place.strip * kStripOutputs + i % kStripOutputs;
    const int64_t group = place.step * Layout::kGroups + i / kStripOutputs;
    bf16 scale;
    if (output < w.outputs && group < groups) {
      scale = w.scales[(place.expert * w.outputs + output) * groups + group];
    }
    scales[i] = scale;
  }
}

void pack_codes(Context& context, const QuantizedWeight& weight, const PackedWeight& packed) {
  const StoredCodes stored{.codes = static_cast<const uint8_t*>(weight.codes.data),
                           .scales = static_cast<const bf16*>(weight.scales.data),
                           .outputs = packed.outputs,
                           .inner = packed.inner};
  visit_format(packed.scheme, [&]<class Format>() {
    if constexpr (Format::kInfo.quantized()) {
      using Layout = Chunk<Format>;
      const int64_t items =
          packed.experts * Layout::strips(packed.outputs) * Layout::chunks(packed.inner);
      if (items == 0) return;
      launch_kernel(context, "pack_weight", {blocks_for(items, kWarps), kThreads},
                    &pack_codes_kernel<Format>, stored, items,
                    static_cast<std::byte*>(packed.bytes));
    }
  });
}

// A row of a matrix lies in its strip's chunks with four lanes of each cell.
constexpr int kRowLanes = 4;

// A thread per row, chunk and one of those lanes.
template <class Format, class T>
__global__ void __launch_bounds__(kThreads)
    unpack_rows_kernel(const std::byte* packed, const int32_t* rows, int64_t items, int64_t chunks,
                       int64_t inner, T* y) {
  using Layout = Chunk<Format>;
  const int64_t item = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (item >= items) return;
  const int64_t t = item / (chunks * kRowLanes);
  const int64_t step = item / kRowLanes % chunks;
  const int64_t strip = rows[t] / kStripOutputs;
  const int output = rows[t] % kStripOutputs;
  const int lane = output % 8 * kRowLanes + static_cast<int>(item % kRowLanes);
  const std::byte* chunk = packed + (strip * chunks + step) * Layout::kBytes;
  for (int cell = 0; cell < Layout::kCells; ++cell) {
    const auto* words = reinterpret_cast<const uint32_t*>(chunk + cell * kCellBytes + lane * 16);
    for (int word = 0; word < 4; ++word) {
      for (int i = 0; i < Layout::kPerWord; ++i) {
        const ChunkElement e = Layout::element(cell, word, lane, i);
        const int64_t column = step * Layout::kInner + e.inner;
        if (e.output != output || column >= inner) continue;
        const uint32_t bits = words[word] >> i * Layout::kBits & ((1u << Layout::kBits) - 1);
        float value;
        if constexpr (Layout::kCodes == Codes::kNone) {
          value = __uint_as_float(bits << 16);
        } else {
          const bool flipped = Layout::kCodes == Codes::kInt4 && Layout::kInteger;
          const auto* scales = reinterpret_cast<const bf16*>(chunk + Layout::kScalesAt);
          value = code_value(Layout::kCodes, static_cast<uint8_t>(flipped ? bits ^ 8 : bits)) *
                  to_float(scales[e.inner / kScaleGroup * kStripOutputs + output]);
        }
        assign(y[t * inner + column], value);
      }
    }
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    unpack_floats_kernel(const float* packed, const int32_t* rows, int64_t items, int64_t depth,
                         int64_t inner, T* y) {
  const int64_t item = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (item >= items) return;
  const int64_t row = rows[item / inner];
  assign(y[item],
         packed[(row / kFloatPanel * depth + item % inner) * kFloatPanel + row % kFloatPanel]);
}

template <class T>
void unpack_typed(Context& context, const PackedWeight& table, const int32_t* rows, int64_t count,
                  T* y) {
  visit_format(table.scheme, [&]<class Format>() {
    if constexpr (Format::kInfo.scheme == Scheme::kFp32) {
      const int64_t items = count * table.inner;
      launch_kernel(context, "unpack_rows", {blocks_for(items, kThreads), kThreads},
                    &unpack_floats_kernel<T>, static_cast<const float*>(table.bytes), rows, items,
                    float_depth(table.inner), table.inner, y);
    } else {
      const int64_t chunks = Chunk<Format>::chunks(table.inner);
      const int64_t items = count * chunks * kRowLanes;
      launch_kernel(context, "unpack_rows", {blocks_for(items, kThreads), kThreads},
                    &unpack_rows_kernel<Format, T>, static_cast<const std::byte*>(table.bytes),
                    rows, items, chunks, table.inner, y);
    }
  });
}

void look_up(Context& context, const PackedWeight& table, const RowNumbers& rows_T, AnyView y) {
  if (y.elements() == 0) return;
  const ScratchScope scope(context.scratch());
  const int32_t* rows = on_device(context, rows_T.host, rows_T.device);
  const auto count = static_cast<int64_t>(rows_T.size());
  y.dtype == DType::kBF16 ? unpack_typed(context, table, rows, count, static_cast<bf16*>(y.data))
                          : unpack_typed(context, table, rows, count, static_cast<float*>(y.data));
}

}  // namespace

template <>
const WeightKernels cuda::Table<WeightKernels>::value = {&bytes_of, &pack, &pack_codes, &look_up};

}  // namespace degu
