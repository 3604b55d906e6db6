// The operators that arithmetic bounds: grouped matrix products and attention, at the sizes of the
// bars.
#include <algorithm>

#include "base/random.h"
#include "cli/kernel_bench.h"
#include "kernels/api/attention.h"
#include "kernels/api/grouped_gemm.h"
#include "tensor/tensor.h"

namespace degu {
namespace {

struct GemmSize {
  int64_t experts, rows, inner, outer;
};
constexpr GemmSize kWide = {8, 4096, 512, 1024};
constexpr GemmSize kNarrow = {8, 8192, 256, 512};
// On a GPU, whose cases have four times the rows: an MoE layer of 64 experts and 16k tokens that
// visit 8 each.
constexpr GemmSize kGpu = {64, 32768, 2048, 1024};

const GemmSize& size_for(const Context& context, const GemmSize& on_cpu) {
  return context.device() == DeviceType::kCpu ? on_cpu : kGpu;
}
constexpr int64_t kUnits = 8;

// x_RD, y_RF, and W in both packings; rows are dealt to experts at random, as a router's are.
struct GemmData {
  GemmData(Context& context, const GemmSize& size)
      : x(DType::kBF16, {size.rows, size.inner}, context.device()),
        y(DType::kBF16, {size.rows, size.outer}, context.device()),
        w(DType::kBF16, {size.experts, size.outer, size.inner}, context.device()),
        dw(DType::kF32, {size.experts, size.outer, size.inner}, context.device()) {
    fill_random(context, x, 1);
    fill_random(context, y, 2);
    fill_random(context, w, 3, 0.05);
    const RandomStream stream(4, "bench rows");
    std::vector<int64_t> count(static_cast<size_t>(size.experts * kUnits));
    for (int64_t r = 0; r < size.rows; ++r) {
      const int64_t unit = r * kUnits / size.rows;
      const auto e = static_cast<int64_t>(
          stream.below(static_cast<uint64_t>(r), static_cast<uint64_t>(size.experts)));
      ++count[static_cast<size_t>(e * kUnits + unit)];
    }
    unit_offsets.push_back(0);
    for (int64_t each : count) unit_offsets.push_back(unit_offsets.back() + each);
    for (int64_t e = 0; e <= size.experts; ++e) {
      offsets.push_back(unit_offsets[static_cast<size_t>(e * kUnits)]);
    }
    const auto pack = [&](Tensor& memory, Orientation orientation, int64_t outputs, int64_t inner) {
      memory = Tensor(DType::kU8,
                      {static_cast<int64_t>(
                          packed_bytes(context, Scheme::kBf16, size.experts, outputs, inner))},
                      context.device());
      return pack_weight(context, w, Scheme::kBf16, orientation, memory.view().data);
    };
    forward = pack(forward_bytes, Orientation::kForward, size.outer, size.inner);
    backward = pack(backward_bytes, Orientation::kBackward, size.inner, size.outer);
  }

  Tensor x, y, w, dw, forward_bytes, backward_bytes;
  PackedWeight forward, backward;
  std::vector<int64_t> offsets, unit_offsets;
};

template <class Run>
KernelCase gemm_case(Context& context, double scale, GemmSize size, const char* name, double bar,
                     Run run) {
  size.rows = std::max<int64_t>(64, static_cast<int64_t>(scale * static_cast<double>(size.rows)));
  KernelCase out;
  out.name = name;
  out.shape =
      fmt::format("E={} R={} D={} F={} bf16", size.experts, size.rows, size.inner, size.outer);
  out.bound = Bound::kBf16;
  out.work = 2.0 * static_cast<double>(size.rows * size.inner * size.outer);
  out.bar = bar;
  auto data = std::make_shared<GemmData>(context, size);
  out.run = [d = data.get(), run](Context& c) { run(c, *d); };
  out.data = std::move(data);
  return out;
}

KernelCase gemm_forward(Context& context, double scale, const GemmSize& size) {
  return gemm_case(context, scale, size, "grouped_gemm", 0.75, [](Context& c, GemmData& d) {
    grouped_gemm(c, d.x, d.forward, {d.offsets}, d.y);
  });
}
KernelCase gemm_dx(Context& context, double scale, const GemmSize& size) {
  return gemm_case(context, scale, size, "grouped_gemm dX", 0.68, [](Context& c, GemmData& d) {
    grouped_gemm(c, d.y, d.backward, {d.offsets}, d.x);
  });
}
KernelCase gemm_dw(Context& context, double scale, const GemmSize& size) {
  return gemm_case(context, scale, size, "grouped_gemm_dw, 8 units", 0.68,
                   [experts = size.experts](Context& c, GemmData& d) {
                     grouped_gemm_dw(c, d.y, d.x, {d.unit_offsets, experts, 1, kUnits}, d.dw);
                   });
}

KernelCase wide_forward(Context& c, double s) {
  return gemm_forward(c, s, size_for(c, kWide));
}
KernelCase wide_dx(Context& c, double s) {
  return gemm_dx(c, s, size_for(c, kWide));
}
KernelCase wide_dw(Context& c, double s) {
  return gemm_dw(c, s, size_for(c, kWide));
}
KernelCase narrow_forward(Context& c, double s) {
  return gemm_forward(c, s, kNarrow);
}
KernelCase narrow_dx(Context& c, double s) {
  return gemm_dx(c, s, kNarrow);
}
KernelCase narrow_dw(Context& c, double s) {
  return gemm_dw(c, s, kNarrow);
}

// Eight heads of width 64 with a key/value head each, sequences of 512.
struct AttentionData {
  static constexpr int64_t kHeads = 8, kHeadWidth = 64, kSequence = 512;

  AttentionData(Context& context, int64_t sequences_count) {
    const int64_t tokens = sequences_count * kSequence;
    const Shape shape = {tokens, kHeads, kHeadWidth};
    for (Tensor* each : {&q, &k, &v, &out, &dout, &dq, &dk, &dv}) {
      *each = Tensor(DType::kBF16, shape, context.device());
      fill_random(context, *each, static_cast<uint64_t>(each - &q));
    }
    lse = Tensor(DType::kF32, {tokens, kHeads}, context.device());
    const int64_t per_sequence = kv_pages_for(kSequence);
    for (int64_t s = 0; s <= sequences_count; ++s) offsets.push_back(s * kSequence);
    first.assign(static_cast<size_t>(sequences_count), 0);
    for (int64_t p = 0; p < sequences_count * per_sequence; ++p) {
      table.push_back(static_cast<int32_t>(p));
    }
    const size_t page = kv_page_bytes(context, DType::kBF16, kHeads, kHeadWidth);
    pages = Tensor(DType::kU8, {static_cast<int64_t>(table.size() * page)}, context.device());
    kv = {pages.view().data, DType::kBF16, kHeads, kHeadWidth, table, per_sequence};
    sequences = {offsets, first};
    kv_store(context, k, v, sequences, kv);
  }

  Tensor q, k, v, out, dout, dq, dk, dv;  // in this order in memory: seeded by position
  Tensor lse, pages;
  std::vector<int64_t> offsets, first;
  std::vector<int32_t> table;
  KvView kv;
  Sequences sequences;
};

KernelCase attention_both(Context& context, double scale) {
  using D = AttentionData;
  const int64_t count = std::max<int64_t>(1, static_cast<int64_t>(8 * scale));
  KernelCase out;
  out.name = "attention + backward";
  out.shape =
      fmt::format("{} x S={} H={} A={} bf16", count, D::kSequence, D::kHeads, D::kHeadWidth);
  out.bound = Bound::kBf16;
  // Per unmasked pair and head: 4 A forward (scores, values), 10 A backward (five products).
  const double pairs = 0.5 * static_cast<double>(D::kSequence * (D::kSequence + 1));
  out.work = 14.0 * static_cast<double>(D::kHeadWidth * D::kHeads * count) * pairs;
  out.bar = 0.35;
  auto data = std::make_shared<D>(context, count);
  out.run = [d = data.get()](Context& c) {
    constexpr float kScale = 0.125f;  // 1 / sqrt(A)
    attention(c, d->q, d->kv, d->sequences, kScale, d->out, d->lse);
    attention_backward(c, d->q, d->kv, d->sequences, kScale, d->out, d->lse, d->dout, d->dq, d->dk,
                       d->dv);
  };
  out.data = std::move(data);
  return out;
}

constexpr MakeCase kCases[] = {
    wide_forward, wide_dx, wide_dw, narrow_forward, narrow_dx, narrow_dw, attention_both,
};

}  // namespace

std::span<const MakeCase> compute_cases() {
  return kCases;
}

}  // namespace degu
