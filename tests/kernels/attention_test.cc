#include "kernels/api/attention.h"

#include <algorithm>

#include "tests/support/device_testing.h"

namespace degu::testing {
namespace {

struct Shapes {
  int64_t heads = 1;
  int64_t kv_heads = 1;
  int64_t width = 16;
};

// Rows of one batch: a length and a first position per sequence, and a page table.
struct Ragged {
  std::vector<int64_t> offsets;
  std::vector<int64_t> first;
  std::vector<int32_t> table;
  int64_t max_pages = 0;
  int64_t pages = 0;

  explicit Ragged(const std::vector<int64_t>& lengths, std::vector<int64_t> starts = {},
                  bool reversed = false)
      : offsets(offsets_of(lengths)), first(std::move(starts)) {
    first.resize(lengths.size(), 0);
    for (size_t s = 0; s < lengths.size(); ++s) {
      max_pages = std::max(max_pages, kv_pages_for(first[s] + lengths[s]));
    }
    pages = max_pages * static_cast<int64_t>(lengths.size());
    for (int64_t i = 0; i < pages; ++i) {
      table.push_back(static_cast<int32_t>(reversed ? pages - 1 - i : i));
    }
  }
  Sequences sequences() const { return {offsets, first}; }
  int64_t rows() const { return offsets.back(); }
};

struct Pages {
  Tensor memory;
  KvView view;
  Pages(const Context& context, DType type, const Shapes& shapes, const Ragged& ragged) {
    const auto bytes = kv_page_bytes(context, type, shapes.kv_heads, shapes.width);
    memory = Tensor(DType::kU8, {std::max<int64_t>(1, ragged.pages), static_cast<int64_t>(bytes)},
                    context.device());
    view = {.pages = memory.view().data,
            .dtype = type,
            .kv_heads = shapes.kv_heads,
            .head_width = shapes.width,
            .table = ragged.table,
            .max_pages = ragged.max_pages};
  }
  Tensor on_host(Context& context) const {
    Tensor copy(DType::kU8, memory.shape());
    degu::copy(context, memory, copy);
    return copy;
  }
};

struct Inputs {
  Tensor q, k, v, dout;
  float scale;
  Inputs(DType type, const Shapes& shapes, int64_t rows, uint64_t seed = 7)
      : q(random_tensor(type, {rows, shapes.heads, shapes.width}, "q", 1, seed)),
        k(random_tensor(type, {rows, shapes.kv_heads, shapes.width}, "k", 1, seed)),
        v(random_tensor(type, {rows, shapes.kv_heads, shapes.width}, "v", 1, seed)),
        dout(random_tensor(type, {rows, shapes.heads, shapes.width}, "dout", 1, seed)),
        scale(static_cast<float>(1 / std::sqrt(static_cast<double>(shapes.width)))) {}
};

std::vector<double> doubles(const AnyView& view) {
  std::vector<double> values;
  for (int64_t i = 0; i < view.elements(); ++i) values.push_back(element(view, i));
  return values;
}

// One head of one sequence in double precision, by the definition; [n][A] row-major.
struct HeadReference {
  int64_t n, width;
  double scale;
  std::vector<double> p, out, lse;  // p [n][n]
  std::vector<double> score_error;  // [n]: bound on the error of any fp32 score of the row
  std::vector<double> dq, dk, dv;

  void forward(const std::vector<double>& q, const std::vector<double>& k,
               const std::vector<double>& v) {
    const auto size = static_cast<size_t>(n);
    p.assign(size * size, 0);
    out.assign(size * static_cast<size_t>(width), 0);
    lse.assign(size, 0);
    score_error.assign(size, 0);
    for (int64_t i = 0; i < n; ++i) {
      std::vector<double> s;
      double top = -INFINITY;
      for (int64_t j = 0; j <= i; ++j) {
        double dot = 0, magnitude = 0;
        for (int64_t d = 0; d < width; ++d) {
          dot += q[at(i, d)] * k[at(j, d)];
          magnitude += std::fabs(q[at(i, d)] * k[at(j, d)]);
        }
        s.push_back(scale * dot);
        top = std::max(top, s.back());
        auto& error = score_error[static_cast<size_t>(i)];
        error = std::max(error, 2 * static_cast<double>(width + 4) * 0x1p-24 * scale * magnitude);
      }
      double sum = 0;
      for (double x : s) sum += std::exp(x - top);
      lse[static_cast<size_t>(i)] = top + std::log(sum);
      for (int64_t j = 0; j <= i; ++j) {
        const double weight = std::exp(s[static_cast<size_t>(j)] - lse[static_cast<size_t>(i)]);
        p[static_cast<size_t>(i * n + j)] = weight;
        for (int64_t d = 0; d < width; ++d) out[at(i, d)] += weight * v[at(j, d)];
      }
    }
  }

  void backward(const std::vector<double>& q, const std::vector<double>& k,
                const std::vector<double>& v, const std::vector<double>& dout) {
    const size_t size = static_cast<size_t>(n * width);
    dq.assign(size, 0);
    dk.assign(size, 0);
    dv.assign(size, 0);
    for (int64_t i = 0; i < n; ++i) {
      for (int64_t j = 0; j <= i; ++j) {
        const double ds = score_gradient(i, j, v, dout);
        for (int64_t d = 0; d < width; ++d) {
          dv[at(j, d)] += p[static_cast<size_t>(i * n + j)] * dout[at(i, d)];
          dq[at(i, d)] += scale * ds * k[at(j, d)];
          dk[at(j, d)] += scale * ds * q[at(i, d)];
        }
      }
    }
  }

  double score_gradient(int64_t i, int64_t j, const std::vector<double>& v,
                        const std::vector<double>& dout) const {
    double dp = 0, delta = 0;
    for (int64_t d = 0; d < width; ++d) {
      dp += dout[at(i, d)] * v[at(j, d)];
      delta += dout[at(i, d)] * out[at(i, d)];
    }
    return p[static_cast<size_t>(i * n + j)] * (dp - delta);
  }

  size_t at(int64_t row, int64_t d) const { return static_cast<size_t>(row * width + d); }
};

// Rows [first, first + n) of one head of a [T, heads, A] tensor.
std::vector<double> head_rows(const AnyView& x, int64_t first, int64_t n, int64_t head) {
  std::vector<double> rows;
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t d = 0; d < x.dim(2); ++d) {
      rows.push_back(element(x, ((first + i) * x.dim(1) + head) * x.dim(2) + d));
    }
  }
  return rows;
}

// Expected values and tolerances of whole tensors, filled head by head.
struct ExpectedTensor {
  Expected expected;
  int64_t heads, width;
  ExpectedTensor(int64_t rows, int64_t h, int64_t w) : heads(h), width(w) {
    expected.value.assign(static_cast<size_t>(rows * h * w), 0);
    expected.tolerance.assign(static_cast<size_t>(rows * h * w), 0x1p-126);
  }
  void add(int64_t row, int64_t head, int64_t d, double value, double tolerance) {
    const auto at = static_cast<size_t>((row * heads + head) * width + d);
    expected.value[at] += value;
    expected.tolerance[at] += tolerance;
  }
  void add_rounding(DType type) {
    for (size_t i = 0; i < expected.value.size(); ++i) {
      expected.tolerance[i] +=
          unit_roundoff(type) * (std::fabs(expected.value[i]) + expected.tolerance[i]);
    }
  }
};

struct ExpectedAll {
  ExpectedTensor out, lse, dq, dk, dv;
  ExpectedAll(const Shapes& s, int64_t rows)
      : out(rows, s.heads, s.width),
        lse(rows, s.heads, 1),
        dq(rows, s.heads, s.width),
        dk(rows, s.kv_heads, s.width),
        dv(rows, s.kv_heads, s.width) {}
};

// Adds one head of one sequence with what rounding may do to it. u: of the tensors' type (weights
// and their gradients are rounded to it); e: relative error of a weight.
void expect_head(const Shapes& shapes, const Inputs& in, int64_t first, int64_t n, int64_t head,
                 ExpectedAll& all) {
  const int64_t kv_head = head / (shapes.heads / shapes.kv_heads);
  const DType type = in.q.dtype();
  const double u = type == DType::kBF16 ? unit_roundoff(type) : 0;
  const auto q = head_rows(in.q, first, n, head);
  const auto k = head_rows(in.k, first, n, kv_head);
  const auto v = head_rows(in.v, first, n, kv_head);
  const auto dout = head_rows(in.dout, first, n, head);
  HeadReference ref{.n = n, .width = shapes.width, .scale = in.scale};
  ref.forward(q, k, v);
  ref.backward(q, k, v, dout);
  const double sums = 4.0 * static_cast<double>(n + shapes.width) * 0x1p-24;
  for (int64_t i = 0; i < n; ++i) {
    const auto row = static_cast<size_t>(i);
    const double e = 2 * ref.score_error[row] + (8 + 4 * std::fabs(ref.lse[row])) * 0x1p-24 + sums;
    all.lse.add(first + i, head, 0, ref.lse[row], e);
    double out_error = 0;  // of delta: the stored out is rounded
    for (int64_t d = 0; d < shapes.width; ++d) {
      double magnitude = 0;
      for (int64_t j = 0; j <= i; ++j) {
        magnitude += ref.p[static_cast<size_t>(i * n + j)] * std::fabs(v[ref.at(j, d)]);
      }
      const double error = magnitude * (u + 2 * e);
      all.out.add(first + i, head, d, ref.out[ref.at(i, d)], error);
      out_error +=
          std::fabs(dout[ref.at(i, d)]) *
          (error + (unit_roundoff(type) + sums) * (std::fabs(ref.out[ref.at(i, d)]) + error));
    }
    for (int64_t j = 0; j <= i; ++j) {
      const double p = ref.p[static_cast<size_t>(i * n + j)];
      const double ds = ref.score_gradient(i, j, v, dout);
      double dp_error = out_error;
      for (int64_t d = 0; d < shapes.width; ++d) {
        dp_error += sums * std::fabs(dout[ref.at(i, d)] * v[ref.at(j, d)]);
      }
      const double ds_error = std::fabs(ds) * (u + 2 * e) + p * dp_error * (1 + u);
      for (int64_t d = 0; d < shapes.width; ++d) {
        all.dv.add(first + j, kv_head, d, 0,
                   p * std::fabs(dout[ref.at(i, d)]) * (u + 2 * e + sums));
        const double scaled = in.scale * (ds_error + sums * std::fabs(ds));
        all.dq.add(first + i, head, d, 0, scaled * std::fabs(k[ref.at(j, d)]));
        all.dk.add(first + j, kv_head, d, 0, scaled * std::fabs(q[ref.at(i, d)]));
      }
    }
  }
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t d = 0; d < shapes.width; ++d) {
      all.dq.add(first + i, head, d, ref.dq[ref.at(i, d)], 0);
      all.dk.add(first + i, kv_head, d, ref.dk[ref.at(i, d)], 0);
      all.dv.add(first + i, kv_head, d, ref.dv[ref.at(i, d)], 0);
    }
  }
}

ExpectedAll expect(const Shapes& shapes, const Inputs& in, const Ragged& ragged) {
  ExpectedAll all(shapes, ragged.rows());
  for (int64_t s = 0; s + 1 < static_cast<int64_t>(ragged.offsets.size()); ++s) {
    const int64_t first = ragged.offsets[static_cast<size_t>(s)];
    const int64_t n = ragged.offsets[static_cast<size_t>(s) + 1] - first;
    for (int64_t h = 0; h < shapes.heads; ++h) expect_head(shapes, in, first, n, h, all);
  }
  for (ExpectedTensor* x : {&all.out, &all.dq, &all.dk, &all.dv}) x->add_rounding(in.q.dtype());
  return all;
}

struct Outputs {
  Tensor out, lse, dq, dk, dv;
  Outputs(DType type, const Shapes& s, int64_t rows)
      : out(type, {rows, s.heads, s.width}),
        lse(DType::kF32, {rows, s.heads}),
        dq(type, {rows, s.heads, s.width}),
        dk(type, {rows, s.kv_heads, s.width}),
        dv(type, {rows, s.kv_heads, s.width}) {
    for (const Tensor* x : {&out, &lse, &dq, &dk, &dv}) fill_nan(*x);
  }
};

Outputs run_all(Context& context, const Shapes& shapes, const Inputs& in, const Ragged& ragged) {
  const DType type = in.q.dtype();
  Pages pages(context, type, shapes, ragged);
  Outputs got(type, shapes, ragged.rows());
  const Sequences sequences = ragged.sequences();
  run(context, kv_store, in.k, in.v, sequences, pages.view);
  run(context, attention, in.q, pages.view, sequences, in.scale, got.out, got.lse);
  run(context, attention_backward, in.q, pages.view, sequences, in.scale, got.out, got.lse, in.dout,
      got.dq, got.dk, got.dv);
  return got;
}

void check_same_outputs(const Outputs& got, const Outputs& expected) {
  check_same_bits("out", got.out, expected.out);
  check_same_bits("lse", got.lse, expected.lse);
  check_same_bits("dq", got.dq, expected.dq);
  check_same_bits("dk", got.dk, expected.dk);
  check_same_bits("dv", got.dv, expected.dv);
}

// Rows [begin, begin + count) of a tensor's first dimension, copied.
Tensor part_of(const Tensor& x, int64_t begin, int64_t count) {
  return copy_of(x.view().rows(begin, count));
}

const std::vector<Shapes> kShapes = {
    {1, 1, 16}, {2, 1, 32}, {4, 2, 64}, {2, 2, 96},  {1, 1, 128},
    {3, 1, 24}, {2, 1, 10}, {2, 2, 7},  {20, 1, 16}, {2, 1, 200},
};
const std::vector<std::vector<int64_t>> kLengths = {
    {1}, {2, 0, 3}, {15, 16, 17}, {63, 0, 64, 65}, {130, 31}, {0},
};
constexpr DType kTypes[] = {DType::kF32, DType::kBF16};

TEST_CASE("attention and its gradients agree with the definition in double precision",
          "[attention]") {
  for_each_backend([&](Context& context) {
    for (DType type : kTypes) {
      for (const Shapes& shapes : kShapes) {
        for (const auto& lengths : kLengths) {
          INFO(dtype_name(type) << ", H " << shapes.heads << ", G " << shapes.kv_heads << ", A "
                                << shapes.width << ", first length " << lengths[0]);
          const Ragged ragged(lengths);
          const Inputs in(type, shapes, ragged.rows());
          const Outputs got = run_all(context, shapes, in, ragged);
          const ExpectedAll expected = expect(shapes, in, ragged);
          check_close("out", got.out, expected.out.expected);
          check_close("lse", got.lse, expected.lse.expected);
          check_close("dq", got.dq, expected.dq.expected);
          check_close("dk", got.dk, expected.dk.expected);
          check_close("dv", got.dv, expected.dv.expected);
        }
      }
    }
  });
}

TEST_CASE("the reference gradient of attention is the slope of the reference", "[attention]") {
  const int64_t n = 9;
  const int64_t width = 6;
  const Shapes shapes{1, 1, width};
  const Inputs in(DType::kF32, shapes, n);
  std::vector<double> x[3] = {doubles(in.q), doubles(in.k), doubles(in.v)};
  const auto dout = doubles(in.dout);
  HeadReference ref{.n = n, .width = width, .scale = 0.4};
  ref.forward(x[0], x[1], x[2]);
  ref.backward(x[0], x[1], x[2], dout);
  const std::vector<double> gradients[3] = {ref.dq, ref.dk, ref.dv};
  const auto objective = [&] {
    HeadReference moved{.n = n, .width = width, .scale = 0.4};
    moved.forward(x[0], x[1], x[2]);
    return std::inner_product(dout.begin(), dout.end(), moved.out.begin(), 0.0);
  };
  for (size_t which = 0; which < 3; ++which) {
    for (size_t i = 0; i < x[which].size(); ++i) {
      const double h = 1e-5;
      const double kept = x[which][i];
      x[which][i] = kept + h;
      const double above = objective();
      x[which][i] = kept - h;
      const double below = objective();
      x[which][i] = kept;
      CHECK(gradients[which][i] == Approx((above - below) / (2 * h)).epsilon(1e-6).margin(1e-8));
    }
  }
}

TEST_CASE("attention gives the same bits for any number of threads", "[attention]") {
  const Shapes shapes{4, 2, 32};
  const Ragged ragged({130, 1, 64, 77});
  for (Isa isa : supported_isas()) {
    for (DType type : kTypes) {
      const Inputs in(type, shapes, ragged.rows());
      Context one(test_options(isa, 1));
      const Outputs expected = run_all(one, shapes, in, ragged);
      for_each_thread_count(isa, [&](Context& context) {
        check_same_outputs(run_all(context, shapes, in, ragged), expected);
      });
    }
  }
}

TEST_CASE("a sequence's attention does not depend on its neighbours", "[attention]") {
  const Shapes shapes{4, 2, 64};
  const std::vector<int64_t> lengths = {70, 3, 0, 129};
  for_each_backend([&](Context& context) {
    for (DType type : kTypes) {
      const Ragged ragged(lengths);
      const Inputs in(type, shapes, ragged.rows());
      const Outputs together = run_all(context, shapes, in, ragged);
      for (size_t s = 0; s < lengths.size(); ++s) {
        const int64_t first = ragged.offsets[s];
        const int64_t n = lengths[s];
        if (n == 0) continue;
        Inputs alone(type, shapes, n);
        alone.q = part_of(in.q, first, n);
        alone.k = part_of(in.k, first, n);
        alone.v = part_of(in.v, first, n);
        alone.dout = part_of(in.dout, first, n);
        const Outputs got = run_all(context, shapes, alone, Ragged({n}));
        check_same_bits("out", got.out, together.out.view().rows(first, n));
        check_same_bits("lse", got.lse, together.lse.view().rows(first, n));
        check_same_bits("dq", got.dq, together.dq.view().rows(first, n));
        check_same_bits("dk", got.dk, together.dk.view().rows(first, n));
        check_same_bits("dv", got.dv, together.dv.view().rows(first, n));
      }
    }
  });
}

// Feeds two sequences through the pages in chunks of at most `chunk` rows each.
Outputs in_chunks(Context& context, const Shapes& shapes, const Inputs& in,
                  const std::vector<int64_t>& lengths, int64_t chunk, bool reversed) {
  const DType type = in.q.dtype();
  const Ragged whole(lengths, {}, reversed);
  Pages pages(context, type, shapes, whole);
  Outputs got(type, shapes, whole.rows());
  const int64_t longest = *std::max_element(lengths.begin(), lengths.end());
  for (int64_t start = 0; start < longest; start += chunk) {
    for (size_t s = 0; s < lengths.size(); ++s) {
      const int64_t n = std::min(chunk, lengths[s] - start);
      if (n <= 0) continue;
      std::vector<int64_t> counts(lengths.size(), 0);
      std::vector<int64_t> starts(lengths.size(), start);
      counts[s] = n;
      const auto offsets = offsets_of(counts);
      const Sequences step{offsets, starts};
      const int64_t row = whole.offsets[s] + start;
      run(context, kv_store, in.k.view().rows(row, n), in.v.view().rows(row, n), step, pages.view);
      run(context, attention, in.q.view().rows(row, n), pages.view, step, in.scale,
          got.out.view().rows(row, n), got.lse.view().rows(row, n));
    }
  }
  return got;
}

TEST_CASE("prefill in one go, in chunks and token by token gives the same bits", "[attention]") {
  const std::vector<int64_t> lengths = {150, 67};
  for_each_backend([&](Context& context) {
    for (DType type : kTypes) {
      for (const Shapes& shapes : {Shapes{4, 1, 32}, Shapes{2, 2, 10}, Shapes{3, 1, 7}}) {
        const Ragged ragged(lengths);
        const Inputs in(type, shapes, ragged.rows());
        const Outputs expected = run_all(context, shapes, in, ragged);
        for (int64_t chunk : {1, 7, 16, 63, 64, 65, 100}) {
          INFO("chunk " << chunk << ", " << dtype_name(type) << ", A " << shapes.width);
          const Outputs got = in_chunks(context, shapes, in, lengths, chunk, chunk % 2 == 0);
          check_same_bits("out", got.out, expected.out);
          check_same_bits("lse", got.lse, expected.lse);
        }
      }
    }
  });
}

// Positions on both sides of the cuts that kernels make along the keys, alone and as one batch of
// more sequences than a GPU has room for at once: however the work is shared, each row has the bits
// of the prefill.
TEST_CASE("a query far into its sequence has the same bits alone and in any company",
          "[attention]") {
  const int64_t length = 1150;
  const Ragged ragged({length});
  std::vector<int64_t> positions = {0, 63, 64, 510, 511, 512, 513, 575, 1023, 1024, 1025, 1149};
  const size_t alone = positions.size();
  for (int64_t p = 1; p < length; p += 4) positions.push_back(p);
  const auto count = static_cast<int64_t>(positions.size());
  for (const Shapes& shapes : {Shapes{2, 1, 16}, Shapes{5, 1, 8}}) {
    for (DType type : kTypes) {
      const Inputs in(type, shapes, length);
      const ExpectedAll expected = expect(shapes, in, ragged);
      for_each_backend([&](Context& context) {
        INFO(dtype_name(type) << ", width " << shapes.width);
        const Outputs whole = run_all(context, shapes, in, ragged);
        check_close("out", whole.out, expected.out.expected);
        check_close("lse", whole.lse, expected.lse.expected);
        check_close("dq", whole.dq, expected.dq.expected);
        check_close("dk", whole.dk, expected.dk.expected);
        check_close("dv", whole.dv, expected.dv.expected);
        Pages pages(context, type, shapes, ragged);
        run(context, kv_store, in.k, in.v, ragged.sequences(), pages.view);
        Tensor q(type, {count, shapes.heads, shapes.width});
        Tensor wanted(type, q.shape()), out(type, q.shape());
        std::vector<int32_t> table;  // every sequence reads the same pages
        for (int64_t i = 0; i < count; ++i) {
          const int64_t p = positions[static_cast<size_t>(i)];
          std::memcpy(q.view().rows(i, 1).data, in.q.view().rows(p, 1).data,
                      q.view().rows(i, 1).bytes());
          std::memcpy(wanted.view().rows(i, 1).data, whole.out.view().rows(p, 1).data,
                      q.view().rows(i, 1).bytes());
          table.insert(table.end(), ragged.table.begin(), ragged.table.end());
        }
        const auto offsets = offsets_of(std::vector<int64_t>(positions.size(), 1));
        KvView shared = pages.view;
        shared.table = table;
        run(context, attention, q, shared, Sequences{offsets, positions}, in.scale, out, AnyView{});
        check_same_bits("in company", out, wanted);
        fill_nan(out);
        for (size_t i = 0; i < alone; ++i) {
          const std::vector<int64_t> one = {0, 1}, first = {positions[i]};
          const auto row = static_cast<int64_t>(i);
          run(context, attention, q.view().rows(row, 1), pages.view, Sequences{one, first},
              in.scale, out.view().rows(row, 1), AnyView{});
          check_same_bits("alone", out.view().rows(row, 1), wanted.view().rows(row, 1));
        }
        const std::vector<int64_t> some = {0, 130}, start = {length - 130};
        Tensor last(type, {130, shapes.heads, shapes.width});
        run(context, attention, in.q.view().rows(length - 130, 130), pages.view,
            Sequences{some, start}, in.scale, last, AnyView{});
        check_same_bits("a chunk", last, whole.out.view().rows(length - 130, 130));
      });
    }
  }
}

TEST_CASE("page placement leaves no trace in attention", "[attention]") {
  const Shapes shapes{4, 2, 64};
  const std::vector<int64_t> lengths = {200, 65};
  for_each_backend([&](Context& context) {
    for (DType type : kTypes) {
      const Ragged in_order(lengths);
      const Inputs in(type, shapes, in_order.rows());
      check_same_outputs(run_all(context, shapes, in, Ragged(lengths, {}, true)),
                         run_all(context, shapes, in, in_order));
    }
  });
}

TEST_CASE("storing keys touches nothing else of a page", "[attention]") {
  for_each_backend([&](Context& context) {
    for (DType type : kTypes) {
      const Shapes shapes{2, 2, 10};
      const Ragged whole({100});
      const Inputs in(type, shapes, 100);
      Pages at_once(context, type, shapes, whole);
      Pages backwards(context, type, shapes, whole);
      run(context, kv_store, in.k, in.v, whole.sequences(), at_once.view);
      for (int64_t t = 99; t >= 0; --t) {
        const std::vector<int64_t> offsets = {0, 1};
        const std::vector<int64_t> first = {t};
        run(context, kv_store, in.k.view().rows(t, 1), in.v.view().rows(t, 1),
            Sequences{offsets, first}, backwards.view);
      }
      check_same_bits("pages", backwards.on_host(context), at_once.on_host(context));
    }
  });
}

TEST_CASE("attention stands large scores", "[attention]") {
  for_each_backend([&](Context& context) {
    for (DType type : kTypes) {
      const Shapes shapes{1, 1, 16};
      const Ragged ragged({80});
      Inputs in(type, shapes, 80);
      in.scale = 40.0f;
      const Outputs got = run_all(context, shapes, in, ragged);
      const ExpectedAll expected = expect(shapes, in, ragged);
      check_close("out", got.out, expected.out.expected);
      check_close("lse", got.lse, expected.lse.expected);
      check_close("dv", got.dv, expected.dv.expected);
      check_close("dq", got.dq, expected.dq.expected);
    }
  });
}

TEST_CASE("attention refuses what does not fit", "[attention]") {
  Context context(test_options(default_isa(), 1));
  const Shapes shapes{4, 2, 16};
  const Ragged ragged({10, 70});
  const Inputs in(DType::kF32, shapes, 80);
  Pages pages(context, DType::kF32, shapes, ragged);
  Outputs got(DType::kF32, shapes, 80);
  const auto call = [&](const Inputs& inputs, const KvView& kv, const Sequences& sequences,
                        float scale) {
    attention(context, inputs.q, kv, sequences, scale, got.out, got.lse);
  };
  CHECK_NOTHROW(call(in, pages.view, ragged.sequences(), 1));
  CHECK_THROWS_AS(call(Inputs(DType::kF32, {3, 2, 16}, 80), pages.view, ragged.sequences(), 1),
                  ShapeError);
  CHECK_THROWS_AS(call(Inputs(DType::kBF16, shapes, 80), pages.view, ragged.sequences(), 1),
                  ShapeError);
  CHECK_THROWS_AS(call(Inputs(DType::kF32, shapes, 79), pages.view, ragged.sequences(), 1),
                  ShapeError);
  CHECK_THROWS_AS(call(in, pages.view, ragged.sequences(), 0), ShapeError);
  KvView narrow = pages.view;
  narrow.head_width = 8;
  CHECK_THROWS_AS(call(in, narrow, ragged.sequences(), 1), ShapeError);
  const std::vector<int64_t> late = {0, 60};
  CHECK_THROWS_AS(call(in, pages.view, {ragged.offsets, late}, 1), ShapeError);
  const std::vector<int64_t> started = {1, 0};
  CHECK_THROWS_AS(attention_backward(context, in.q, pages.view, {ragged.offsets, started}, 1,
                                     got.out, got.lse, in.dout, got.dq, got.dk, got.dv),
                  ShapeError);
}

}  // namespace
}  // namespace degu::testing
