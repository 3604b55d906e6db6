// Products in every quantized scheme: many rows, which arithmetic bounds, and one row, which the
// bytes of the weight bound.
#include <algorithm>
#include <cstring>

#include "cli/kernel_bench.h"
#include "kernels/api/grouped_gemm.h"
#include "tensor/tensor.h"

namespace degu {
namespace {

// A packed weight [E, F, D] whose codes are a repeated random row, and rows of activations.
struct SchemeData {
  SchemeData(Context& context, Scheme scheme, int64_t experts, int64_t rows, int64_t inner,
             int64_t outer)
      : x(DType::kBF16, {rows, inner}, context.device()),
        y(DType::kBF16, {rows, outer}, context.device()) {
    fill_random(context, x, 1);
    const int64_t groups = scale_groups(inner);
    if (scheme_info(scheme).integer_activations()) {
      codes = Tensor(DType::kI8, {rows, groups * kScaleGroup}, context.device());
      scales = Tensor(DType::kF32, {rows, groups}, context.device());
      quantize_rows(context, x, {codes, scales});
    }
    const size_t bytes = packed_bytes(context, scheme, experts, outer, inner);
    memory = Tensor(DType::kU8, {static_cast<int64_t>(bytes)}, context.device());
    pack(context, scheme, {experts, outer, inner});
    for (int64_t e = 0; e <= experts; ++e) offsets.push_back(rows * e / experts);
  }

  Activation activation() const { return scales ? Activation(codes, scales) : Activation(x); }

  Tensor x, y, codes, scales, memory;
  PackedWeight weight;
  std::vector<int64_t> offsets;

 private:
  void pack(Context& context, Scheme scheme, const Shape& shape) {
    constexpr int64_t kDistinctRows = 32;
    const int64_t inner = shape[2];
    const Tensor w(DType::kF32, {kDistinctRows, inner});
    fill_random(context, w, 3, 0.05);
    Context host({.threads = 1});  // quantizes for every device
    const auto numbers = [&](const Shape& s) {
      return std::pair(Tensor(scheme_info(scheme).weight, code_shape(scheme, s)),
                       Tensor(DType::kBF16, scale_shape(s)));
    };
    const auto [few, few_scales] = numbers(w.shape());
    quantize_weight(host, w, {scheme, w.shape(), few, few_scales});
    auto [all, all_scales] = numbers(shape);
    const auto repeat = [&](const AnyView& from, const AnyView& to) {
      const size_t row = from.bytes() / kDistinctRows;
      context.parallel_for(shape[0] * shape[1], [&](int64_t r, int) {
        std::memcpy(
            static_cast<std::byte*>(to.data) + static_cast<size_t>(r) * row,
            static_cast<const std::byte*>(from.data) + static_cast<size_t>(r % kDistinctRows) * row,
            row);
      });
    };
    repeat(few, all);
    repeat(few_scales, all_scales);
    const Tensor codes_there = on_device(context, std::move(all));
    const Tensor scales_there = on_device(context, std::move(all_scales));
    weight = pack_weight(context, {scheme, shape, codes_there, scales_there}, memory.view().data);
  }
};

void set_run(KernelCase& out, std::shared_ptr<SchemeData> data) {
  out.run = [d = data.get()](Context& c) {
    grouped_gemm(c, d->activation(), d->weight, {d->offsets}, d->y);
  };
  out.data = std::move(data);
}

template <Scheme kScheme>
KernelCase many_rows(Context& context, double scale) {
  constexpr int64_t kExperts = 8, kInner = 512, kOuter = 1024;
  const int64_t rows = std::max<int64_t>(64, static_cast<int64_t>(4096 * scale));
  const SchemeInfo& info = scheme_info(kScheme);
  KernelCase out;
  out.name = fmt::format("grouped_gemm {}", info.name);
  out.shape = fmt::format("E={} R={} D={} F={}", kExperts, rows, kInner, kOuter);
  out.bound = info.integer_activations() ? Bound::kInt8 : Bound::kBf16;
  out.work = 2.0 * static_cast<double>(rows * kInner * kOuter);
  out.bar = info.integer_activations() ? 0.40 : 0;
  set_run(out, std::make_shared<SchemeData>(context, kScheme, kExperts, rows, kInner, kOuter));
  return out;
}

template <Scheme kScheme>
KernelCase one_row(Context& context, double scale) {
  constexpr int64_t kInner = 2048;
  constexpr double kBytes = 300 << 20;  // outside the caches
  const SchemeInfo& info = scheme_info(kScheme);
  const double weights = scale * kBytes * 8 / info.bits;
  const auto outer = std::max<int64_t>(64, static_cast<int64_t>(weights / kInner) / 64 * 64);
  KernelCase out;
  out.name = fmt::format("gemm {}, 1 row", info.name);
  out.shape = fmt::format("R=1 D={} F={}", kInner, outer);
  out.bound = Bound::kMemory;
  auto data = std::make_shared<SchemeData>(context, kScheme, 1, 1, kInner, outer);
  out.streams = {{StreamKind::kRead, static_cast<int64_t>(data->memory.bytes())}};
  out.bar = info.integer_activations() ? 0.90 : 0;
  set_run(out, std::move(data));
  return out;
}

KernelCase quantize(Context& context, double scale) {
  constexpr int64_t kInner = 2048;
  const int64_t rows = std::max<int64_t>(16, static_cast<int64_t>(32768 * scale));
  KernelCase out;
  out.name = "quantize_rows";
  out.shape = fmt::format("R={} D={} bf16", rows, kInner);
  auto data = std::make_shared<SchemeData>(context, Scheme::kW8A8, 1, rows, kInner, 32);
  out.streams = {{StreamKind::kRead, static_cast<int64_t>(data->x.bytes())},
                 {StreamKind::kWrite, static_cast<int64_t>(data->codes.bytes())},
                 {StreamKind::kWrite, static_cast<int64_t>(data->scales.bytes())}};
  out.run = [d = data.get()](Context& c) { quantize_rows(c, d->x, {d->codes, d->scales}); };
  out.data = std::move(data);
  return out;
}

constexpr MakeCase kCases[] = {
    many_rows<Scheme::kW8A8>,
    many_rows<Scheme::kW4A8>,
    many_rows<Scheme::kW8A16>,
    many_rows<Scheme::kW4A16>,
    many_rows<Scheme::kFp8>,
    one_row<Scheme::kW8A8>,
    one_row<Scheme::kW4A8>,
    one_row<Scheme::kW8A16>,
    one_row<Scheme::kW4A16>,
    one_row<Scheme::kFp8>,
    quantize,
};

}  // namespace

std::span<const MakeCase> scheme_cases() {
  return kCases;
}

}  // namespace degu
