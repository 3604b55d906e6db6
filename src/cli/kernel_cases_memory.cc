// The operators that memory bounds, at sizes outside the caches, with the bytes each must move:
// every input once, every output once, what is changed in place twice (read and written).
#include <algorithm>

#include "base/random.h"
#include "cli/kernel_bench.h"
#include "kernels/api/adamw.h"
#include "kernels/api/cross_entropy.h"
#include "kernels/api/elementwise.h"
#include "kernels/api/embedding.h"
#include "kernels/api/permute.h"
#include "kernels/api/rmsnorm.h"
#include "kernels/api/rotary.h"
#include "kernels/api/router.h"
#include "kernels/api/swiglu.h"
#include "tensor/tensor.h"

namespace degu {
namespace {

constexpr double kBar = 0.80;
constexpr int64_t kWidth = 512;

int64_t scaled(double scale, int64_t rows) {
  return std::max<int64_t>(8, static_cast<int64_t>(scale * static_cast<double>(rows)));
}

// Tensors, indices and offsets of one case.
struct Data {
  std::vector<Tensor> tensors;
  std::vector<int32_t> tokens;
  std::vector<int64_t> offsets;

  AnyView at(size_t i) const { return tensors[i]; }
};

class Builder {
 public:
  Builder(Context& context, std::string name, std::string shape) : context_(context) {
    case_.name = std::move(name);
    case_.shape = std::move(shape);
    case_.bar = kBar;
  }
  // Adds a tensor; `kind` says how the operator uses it.
  Builder& stream(StreamKind kind, DType type, Shape shape) {
    add(type, shape);
    case_.streams.push_back({kind, static_cast<int64_t>(data_->tensors.back().bytes())});
    return *this;
  }
  Builder& read(DType type, Shape shape) { return stream(StreamKind::kRead, type, shape); }
  Builder& write(DType type, Shape shape) { return stream(StreamKind::kWrite, type, shape); }
  Builder& update(DType type, Shape shape) { return stream(StreamKind::kUpdate, type, shape); }
  // Adds a tensor that counts for nothing: small, or counted otherwise by `bytes`.
  Builder& add(DType type, Shape shape) {
    data_->tensors.emplace_back(type, shape, context_.device());
    if (type == DType::kF32 || type == DType::kBF16) {
      fill_random(context_, data_->tensors.back(), data_->tensors.size());
    }
    return *this;
  }
  Builder& bytes(StreamKind kind, int64_t count) {
    case_.streams.push_back({kind, count});
    return *this;
  }
  Builder& bar(double bar) {
    case_.bar = bar;
    return *this;
  }
  Data& data() { return *data_; }
  template <class Run>
  KernelCase runs(Run run) {
    case_.data = data_;
    case_.run = [d = data_.get(), run](Context& context) { run(context, *d); };
    return case_;
  }

 private:
  Context& context_;
  KernelCase case_;
  std::shared_ptr<Data> data_ = std::make_shared<Data>();
};

std::string rows_by_width(int64_t rows, DType type) {
  return fmt::format("T={} D={} {}", rows, kWidth, dtype_name(type));
}

KernelCase cast_case(Context& context, double scale, DType from, DType to) {
  const int64_t n = scaled(scale, int64_t{32} << 20);
  return Builder(context, fmt::format("cast {} to {}", dtype_name(from), dtype_name(to)),
                 fmt::format("n={}", n))
      .read(from, {n})
      .write(to, {n})
      .runs([](Context& c, Data& d) { cast(c, d.at(0), d.at(1)); });
}
KernelCase narrow(Context& context, double scale) {
  return cast_case(context, scale, DType::kF32, DType::kBF16);
}
KernelCase widen(Context& context, double scale) {
  return cast_case(context, scale, DType::kBF16, DType::kF32);
}

KernelCase add_bf16(Context& context, double scale) {
  const int64_t n = scaled(scale, int64_t{32} << 20);
  return Builder(context, "add", fmt::format("n={} bf16", n))
      .read(DType::kBF16, {n})
      .read(DType::kBF16, {n})
      .write(DType::kBF16, {n})
      .runs([](Context& c, Data& d) { add(c, d.at(0), d.at(1), d.at(2)); });
}

KernelCase scale_fp32(Context& context, double scale) {
  const int64_t n = scaled(scale, int64_t{32} << 20);
  return Builder(context, "scale", fmt::format("n={} fp32", n))
      .update(DType::kF32, {n})
      .runs([](Context& c, Data& d) { degu::scale(c, d.at(0), -1.0f); });
}

KernelCase zero_fp32(Context& context, double scale) {
  const int64_t n = scaled(scale, int64_t{32} << 20);
  return Builder(context, "fill_zero", fmt::format("n={} fp32", n))
      .write(DType::kF32, {n})
      .runs([](Context& c, Data& d) { fill_zero(c, d.at(0)); });
}

KernelCase norm_case(Context& context, double scale, DType type) {
  const int64_t rows = scaled(scale, 65536);
  return Builder(context, "rmsnorm", rows_by_width(rows, type))
      .read(type, {rows, kWidth})
      .write(type, {rows, kWidth})
      .add(DType::kF32, {kWidth})
      .add(DType::kF32, {rows})
      .runs([](Context& c, Data& d) { rmsnorm(c, d.at(0), d.at(2), 1e-5, d.at(1), d.at(3)); });
}
KernelCase norm_bf16(Context& context, double scale) {
  return norm_case(context, scale, DType::kBF16);
}
KernelCase norm_fp32(Context& context, double scale) {
  return norm_case(context, scale, DType::kF32);
}

KernelCase norm_backward_bf16(Context& context, double scale) {
  constexpr DType kType = DType::kBF16;
  const int64_t rows = scaled(scale, 65536);
  Builder b(context, "rmsnorm_backward", rows_by_width(rows, kType) + ", 8 units");
  for (int64_t u = 0; u <= 8; ++u) b.data().offsets.push_back(rows * u / 8);
  for (int i = 0; i < 3; ++i) b.read(kType, {rows, kWidth});
  b.write(kType, {rows, kWidth});
  b.add(DType::kF32, {kWidth}).add(DType::kF32, {rows}).add(DType::kF32, {kWidth});
  return b.runs([](Context& c, Data& d) {
    rmsnorm_backward(c, d.at(0), d.at(1), d.at(4), d.at(5), {d.offsets, 1, 1, 8}, d.at(2), d.at(3),
                     d.at(6));
  });
}

KernelCase swiglu_case(Context& context, double scale, DType type) {
  const int64_t rows = scaled(scale, 65536);
  return Builder(context, "swiglu", rows_by_width(rows, type))
      .read(type, {rows, kWidth})
      .read(type, {rows, kWidth})
      .write(type, {rows, kWidth})
      .runs([rows](Context& c, Data& d) { swiglu(c, d.at(0), d.at(1), d.at(2), rows); });
}
KernelCase swiglu_bf16(Context& context, double scale) {
  return swiglu_case(context, scale, DType::kBF16);
}
KernelCase swiglu_fp32(Context& context, double scale) {
  return swiglu_case(context, scale, DType::kF32);
}

KernelCase swiglu_backward_case(Context& context, double scale, DType type) {
  const int64_t rows = scaled(scale, 65536);
  Builder b(context, "swiglu_backward", rows_by_width(rows, type));
  for (int i = 0; i < 3; ++i) b.read(type, {rows, kWidth});
  for (int i = 0; i < 2; ++i) b.write(type, {rows, kWidth});
  return b.runs([rows](Context& c, Data& d) {
    swiglu_backward(c, d.at(0), d.at(1), d.at(2), d.at(3), d.at(4), rows);
  });
}
KernelCase swiglu_backward_bf16(Context& context, double scale) {
  return swiglu_backward_case(context, scale, DType::kBF16);
}
KernelCase swiglu_backward_fp32(Context& context, double scale) {
  return swiglu_backward_case(context, scale, DType::kF32);
}

// Tokens drawn evenly, which no cache helps.
void draw_tokens(Data& data, int64_t rows, int64_t vocab) {
  const RandomStream stream(1, "bench tokens");
  for (int64_t t = 0; t < rows; ++t) {
    data.tokens.push_back(
        static_cast<int32_t>(stream.below(static_cast<uint64_t>(t), static_cast<uint64_t>(vocab))));
  }
}

KernelCase embedding_bf16(Context& context, double scale) {
  const int64_t rows = scaled(scale, 65536);
  Builder b(context, "embedding", fmt::format("V={} ", rows) + rows_by_width(rows, DType::kBF16));
  draw_tokens(b.data(), rows, rows);
  return b.read(DType::kBF16, {rows, kWidth})
      .write(DType::kBF16, {rows, kWidth})
      .runs([](Context& c, Data& d) { embedding(c, d.at(0), d.tokens, d.at(1)); });
}

KernelCase embedding_backward_bf16(Context& context, double scale) {
  const int64_t rows = scaled(scale, 65536);
  const int64_t vocab = rows / 2;
  Builder b(context, "embedding_backward",
            fmt::format("V={} ", vocab) + rows_by_width(rows, DType::kBF16) + ", 8 units");
  draw_tokens(b.data(), rows, vocab);
  for (int64_t u = 0; u <= 8; ++u) b.data().offsets.push_back(rows * u / 8);
  return b.read(DType::kBF16, {rows, kWidth})
      .write(DType::kF32, {vocab, kWidth})
      .runs([](Context& c, Data& d) {
        embedding_backward(c, d.at(0), d.tokens, {d.offsets, 1, 1, 8}, d.at(1));
      });
}

// T tokens, each with two of eight experts drawn evenly. Tensors 0 … 2: row_TK, token_R, gate_TK.
int64_t plan_routes(Context& context, Builder& b, int64_t tokens) {
  constexpr int64_t kExperts = 8, kTopK = 2;
  b.add(DType::kI32, {tokens, kTopK}).add(DType::kI32, {tokens * kTopK});
  b.add(DType::kF32, {tokens, kTopK});
  Tensor expert(DType::kI32, {tokens, kTopK});
  const RandomStream stream(2, "bench routes");
  for (int64_t t = 0; t < tokens; ++t) {
    const auto first = static_cast<int32_t>(stream.below(static_cast<uint64_t>(2 * t), kExperts));
    const auto step =
        static_cast<int32_t>(stream.below(static_cast<uint64_t>(2 * t + 1), kExperts - 1));
    expert.as<int32_t>()(t, 0) = first;
    expert.as<int32_t>()(t, 1) = static_cast<int32_t>((first + 1 + step) % kExperts);
  }
  const Tensor offsets(DType::kI64, {kExperts + 1}, context.device());
  const Tensor dropped(DType::kI64, {1}, context.device());
  const Tensor chosen = on_device(context, std::move(expert));
  route_plan(context, chosen, kExperts, 0, {}, offsets, b.data().at(0), b.data().at(1), dropped);
  return tokens * kTopK;
}

std::string routed_shape(int64_t tokens) {
  return fmt::format("R={} ", 2 * tokens) + rows_by_width(tokens, DType::kBF16);
}

// A row of x is read once per expert that its token visits, each time in another sweep over memory.
KernelCase gather_bf16(Context& context, double scale) {
  const int64_t tokens = scaled(scale, 49152);
  Builder b(context, "gather_rows", routed_shape(tokens));
  const int64_t routed = plan_routes(context, b, tokens);
  b.add(DType::kBF16, {tokens, kWidth}).bytes(StreamKind::kRead, routed * kWidth * 2);
  return b.write(DType::kBF16, {routed, kWidth}).runs([](Context& c, Data& d) {
    gather_rows(c, d.at(3), d.at(1), d.at(4));
  });
}

KernelCase combine_bf16(Context& context, double scale) {
  const int64_t tokens = scaled(scale, 49152);
  Builder b(context, "combine", routed_shape(tokens));
  const int64_t routed = plan_routes(context, b, tokens);
  return b.read(DType::kBF16, {routed, kWidth})
      .read(DType::kBF16, {tokens, kWidth})
      .write(DType::kBF16, {tokens, kWidth})
      .runs([](Context& c, Data& d) { combine(c, d.at(3), d.at(0), d.at(2), d.at(4), d.at(5)); });
}

KernelCase combine_backward_bf16(Context& context, double scale) {
  const int64_t tokens = scaled(scale, 49152);
  Builder b(context, "combine_backward", routed_shape(tokens));
  const int64_t routed = plan_routes(context, b, tokens);
  return b.read(DType::kBF16, {tokens, kWidth})
      .read(DType::kBF16, {routed, kWidth})
      .write(DType::kBF16, {routed, kWidth})
      .add(DType::kF32, {tokens, 2})
      .runs([](Context& c, Data& d) {
        combine_backward(c, d.at(3), d.at(4), d.at(0), d.at(2), d.at(5), d.at(6));
      });
}

KernelCase adamw_case(Context& context, double scale, DType moments) {
  const int64_t n = scaled(scale, int64_t{12} << 20);
  const std::string_view kept = moments == DType::kF32 ? "" : " and moments";
  Builder b(context, "adamw", fmt::format("n={}, bf16 weights{}", n, kept));
  for (DType type : {DType::kF32, moments, moments}) b.update(type, {n});
  b.read(DType::kF32, {n}).write(DType::kBF16, {n});
  fill_zero(context, b.data().at(2));  // second moments are not negative
  return b.runs([](Context& c, Data& d) {
    adamw(c, {.learning_rate = 1e-4, .weight_decay = 0.1, .step = 10}, {}, d.at(0), d.at(1),
          d.at(2), d.at(3), d.at(4));
  });
}

KernelCase adamw_bf16(Context& context, double scale) {
  return adamw_case(context, scale, DType::kF32);
}

KernelCase adamw_bf16_moments(Context& context, double scale) {
  return adamw_case(context, scale, DType::kBF16);
}

KernelCase square_sums(Context& context, double scale) {
  const int64_t n = scaled(scale, int64_t{32} << 20);
  Builder b(context, "block_square_sums", fmt::format("n={}", n));
  b.read(DType::kF32, {n}).add(DType::kF64, {(n + kNormBlock - 1) / kNormBlock});
  return b.runs([](Context& c, Data& d) { block_square_sums(c, d.at(0), d.at(1)); });
}

KernelCase rotary_bf16(Context& context, double scale) {
  const int64_t rows = scaled(scale, 65536);
  Builder b(context, "rotary", fmt::format("T={} H=8 A=64 bf16", rows));
  for (int64_t t = 0; t < rows; ++t) b.data().tokens.push_back(static_cast<int32_t>(t % 512));
  return b.update(DType::kBF16, {rows, 8, 64}).runs([](Context& c, Data& d) {
    rotary(c, d.at(0), d.tokens, 10000.0);
  });
}

// Exponentials and the selection take longer than the bytes: reported without a bar.
KernelCase router_case(Context& context, double scale) {
  const int64_t rows = scaled(scale, 131072);
  const int64_t experts = 64;
  return Builder(context, "router_topk", fmt::format("T={} E={} K=2", rows, experts))
      .read(DType::kF32, {rows, experts})
      .write(DType::kF32, {rows, experts})
      .add(DType::kI32, {rows, 2})
      .add(DType::kF32, {rows, 2})
      .add(DType::kF32, {rows})
      .bar(0)
      .runs([](Context& c, Data& d) {
        router_topk(c, d.at(0), AnyView{}, {.top_k = 2}, d.at(1), d.at(2), d.at(3), d.at(4));
      });
}

KernelCase cross_entropy_case(Context& context, double scale) {
  const int64_t rows = scaled(scale, 2048);
  const int64_t vocab = 8192;
  Builder b(context, "cross_entropy", fmt::format("T={} V={}, bf16 gradient", rows, vocab));
  draw_tokens(b.data(), rows, vocab);
  return b.read(DType::kF32, {rows, vocab})
      .write(DType::kBF16, {rows, vocab})
      .add(DType::kF32, {rows})
      .bar(0)
      .runs([](Context& c, Data& d) {
        cross_entropy(c, d.at(0), d.tokens, 1.0f, 0.0f, d.at(2), d.at(1));
      });
}

constexpr MakeCase kCases[] = {
    narrow,
    widen,
    add_bf16,
    scale_fp32,
    zero_fp32,
    norm_bf16,
    norm_fp32,
    norm_backward_bf16,
    swiglu_bf16,
    swiglu_fp32,
    swiglu_backward_bf16,
    swiglu_backward_fp32,
    embedding_bf16,
    embedding_backward_bf16,
    gather_bf16,
    combine_bf16,
    combine_backward_bf16,
    adamw_bf16,
    adamw_bf16_moments,
    square_sums,
    rotary_bf16,
    router_case,
    cross_entropy_case,
};

}  // namespace

std::span<const MakeCase> memory_cases() {
  return kCases;
}

}  // namespace degu
