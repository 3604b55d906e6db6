// What attention's tests share: ragged batches over pages, on the host or on a GPU, and the
// operator and its gradients in double precision, with what rounding may do to each element.
#pragma once

#include <algorithm>

#include "kernels/api/attention.h"
#include "tests/support/device_testing.h"

namespace degu::testing {

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

// The same batch as an accelerator's memory holds it; what the host says of positions and pages is
// then wrong. On the CPU there is none, and the batch stays as it is.
struct Resident {
  Tensor offsets, first, table;
  Sequences sequences;
  KvView kv;
  std::vector<int64_t> no_first;

  Resident(Context& context, const Sequences& batch, const KvView& view)
      : sequences(batch), kv(view), no_first(batch.first_position.size(), 0) {
    if (context.device() == DeviceType::kCpu) return;
    const auto there = [&](DType type, const auto& values, Tensor& on_device) {
      const Tensor host(type, {static_cast<int64_t>(values.size())});
      std::memcpy(host.view().data, values.data(), values.size_bytes());
      on_device = Tensor(type, host.shape(), context.device());
      copy(context, host, on_device);
    };
    there(DType::kI64, batch.offsets, offsets);
    there(DType::kI64, batch.first_position, first);
    there(DType::kI32, view.table, table);
    sequences.first_position = no_first;
    sequences.device_offsets = offsets.as<int64_t>().data();
    sequences.device_first_position = first.as<int64_t>().data();
    kv.table = {};
    kv.device_table = table.as<int32_t>().data();
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

inline std::vector<double> doubles(const AnyView& view) {
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
inline std::vector<double> head_rows(const AnyView& x, int64_t first, int64_t n, int64_t head) {
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
inline void expect_head(const Shapes& shapes, const Inputs& in, int64_t first, int64_t n,
                        int64_t head, ExpectedAll& all) {
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

inline ExpectedAll expect(const Shapes& shapes, const Inputs& in, const Ragged& ragged) {
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

inline Outputs run_all(Context& context, const Shapes& shapes, const Inputs& in,
                       const Ragged& ragged) {
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

inline void check_same_outputs(const Outputs& got, const Outputs& expected) {
  check_same_bits("out", got.out, expected.out);
  check_same_bits("lse", got.lse, expected.lse);
  check_same_bits("dq", got.dq, expected.dq);
  check_same_bits("dk", got.dk, expected.dk);
  check_same_bits("dv", got.dv, expected.dv);
}

// Rows [begin, begin + count) of a tensor's first dimension, copied.
inline Tensor part_of(const Tensor& x, int64_t begin, int64_t count) {
  return copy_of(x.view().rows(begin, count));
}

}  // namespace degu::testing
