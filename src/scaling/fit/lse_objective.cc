// The vectorised objective. Per point and with p_k = exp(z_k − LSE z) and g_j = sum_k p_k
// dz_k/dtheta_j:
//
//   dF/dtheta   = sum_i w_i rho'(r_i) g
//   d²F/dtheta² = sum_i w_i { (rho'' − rho') g gᵀ + rho' sum_k p_k (dz_k)(dz_k)ᵀ }     (exact)
//               ≈ sum_i w_i min(1, delta/|r_i|) g gᵀ                                   (majorised)
//
// Lanes: always eight points, as one 512-bit, two 256-bit or four 128-bit registers, without fused
// multiply-adds, and the eight partial sums join in one order. So every instruction set gives the
// same bits.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <utility>

#include "base/cpu_info.h"
#include "scaling/fit/objective.h"

namespace degu::scaling {

namespace {

constexpr int kLanes = 8;
constexpr int kMaxParams = 40;
typedef double Lanes __attribute__((vector_size(kLanes * sizeof(double)), aligned(64)));
typedef int64_t Bits __attribute__((vector_size(kLanes * sizeof(double)), aligned(64)));
// What containers hold: as a template argument the bare vector type would lose its alignment.
struct alignas(64) Pack {
  Lanes v;
};
static_assert(alignof(Pack) == sizeof(Lanes));

constexpr int packed_index(int i, int j) {
  return i * (i + 1) / 2 + j;
}  // j <= i

}  // namespace

class LseData {
 public:
  struct Feature {
    int term;
    int param;
    int column;  // -1: the constant 1
  };
  struct Pair {  // two features of one term
    int term;
    int index;  // packed_index of their parameters
    int first_column, second_column;
  };
  int params = 0;
  int terms = 0;
  size_t points = 0;
  size_t blocks = 0;
  std::vector<Feature> features;
  std::vector<Pair> pairs;
  std::vector<std::vector<Pack>> columns;
  std::vector<Pack> log_loss;
};

namespace {

struct Sums {
  Lanes value;
  Lanes gradient[kMaxParams];
  Lanes hessian[kMaxParams * (kMaxParams + 1) / 2];
};

#define DEGU_INLINE inline __attribute__((always_inline))

DEGU_INLINE void set_bits(Lanes& x, const Bits& bits) {
  std::memcpy(&x, &bits, sizeof x);
}
DEGU_INLINE void get_bits(const Lanes& x, Bits& bits) {
  std::memcpy(&bits, &x, sizeof bits);
}

// out = exp(x) for x <= 0, below −700 as at −700. Reduction to |r| <= ln2/2, Taylor to r^13
// (remainder 4e-18).
DEGU_INLINE void exp_nonpositive(const Lanes& x_in, Lanes& out) {
  constexpr double kRound = 0x1.8p52;  // adding it leaves the nearest integer in the low bits
  const Lanes x = x_in < -700.0 ? Lanes{} - 700.0 : x_in;
  const Lanes shifted = x * 0x1.71547652b82fep0 + kRound;
  const Lanes n = shifted - kRound;
  const Lanes r = (x - n * 0x1.62e42fefa0000p-1) - n * 0x1.cf79abc9e3b3ap-40;
  constexpr double kInverseFactorials[] = {1.0 / 6227020800,
                                           1.0 / 479001600,
                                           1.0 / 39916800,
                                           1.0 / 3628800,
                                           1.0 / 362880,
                                           1.0 / 40320,
                                           1.0 / 5040,
                                           1.0 / 720,
                                           1.0 / 120,
                                           1.0 / 24,
                                           1.0 / 6,
                                           0.5,
                                           1.0,
                                           1.0};
  Lanes sum = Lanes{} + kInverseFactorials[0];
  for (int i = 1; i < 14; ++i) sum = sum * r + kInverseFactorials[i];
  Bits bits;
  get_bits(shifted, bits);
  bits = (bits + 1023) << 52;
  Lanes power;
  set_bits(power, bits);
  out = sum * power;
}

// out = ln(x) for 1 <= x < 2^50. m in [sqrt(1/2), sqrt 2), ln m = 2 artanh((m−1)/(m+1)) to the 21st
// power.
DEGU_INLINE void log_at_least_one(const Lanes& x, Lanes& out) {
  constexpr int64_t kSqrtHalf = 0x3fe6a09e667f3bcd;
  Bits bits;
  get_bits(x, bits);
  // x >= 1 > sqrt(1/2), so the difference is positive and its exponent field is the exponent
  // sought.
  const Bits exponent = (bits - kSqrtHalf) >> 52;
  Lanes m, e;
  set_bits(m, bits - (exponent << 52));
  set_bits(e, exponent | 0x4330000000000000);
  e = e - 0x1p52;
  const Lanes f = (m - 1.0) / (m + 1.0);
  const Lanes f2 = f * f;
  Lanes sum = Lanes{} + 1.0 / 21;
  for (int k = 19; k >= 1; k -= 2) sum = sum * f2 + 1.0 / k;
  out = e * 0x1.62e42fefa39efp-1 + 2.0 * f * sum;
}

// Features are walked once per block of eight points, not per point.
template <bool kExact>
DEGU_INLINE void accumulate(const LseData& data, const Pack* weights, const double* theta,
                            double delta, Sums& sums) {
  const int params = data.params;
  const int terms = data.terms;
  sums.value = Lanes{};
  for (int i = 0; i < params; ++i) sums.gradient[i] = Lanes{};
  for (int i = 0; i < packed_index(params, 0); ++i) sums.hessian[i] = Lanes{};
  Lanes z[Terms::kMaxTerms], p[Terms::kMaxTerms], g[kMaxParams];
  for (size_t block = 0; block < data.blocks; ++block) {
    for (int k = 0; k < terms; ++k) z[k] = Lanes{};
    for (const LseData::Feature& f : data.features) {
      if (f.column < 0) {
        z[f.term] += theta[f.param];
      } else {
        z[f.term] += data.columns[f.column][block].v * theta[f.param];
      }
    }
    Lanes top = z[0];
    for (int k = 1; k < terms; ++k) top = z[k] > top ? z[k] : top;
    Lanes sum{};
    for (int k = 0; k < terms; ++k) {
      exp_nonpositive(z[k] - top, p[k]);
      sum += p[k];
    }
    Lanes r;
    log_at_least_one(sum, r);
    r = r + top - data.log_loss[block].v;
    const Lanes inverse = 1.0 / sum;
    for (int k = 0; k < terms; ++k) p[k] *= inverse;

    const Lanes w = weights[block].v;
    const Lanes size = r < 0.0 ? -r : r;
    const Bits inside = size <= delta;
    const Lanes edge = Lanes{} + delta;
    const Lanes slope = w * (inside ? r : (r < 0.0 ? -edge : edge));
    sums.value += w * (inside ? 0.5 * r * r : edge * (size - 0.5 * edge));
    for (int j = 0; j < params; ++j) g[j] = Lanes{};
    for (const LseData::Feature& f : data.features) {
      if (f.column < 0) {
        g[f.param] += p[f.term];
      } else {
        g[f.param] += p[f.term] * data.columns[f.column][block].v;
      }
    }
    const Lanes zero{};
    const Lanes outer = kExact ? (inside ? w : zero) - slope : (inside ? w : w * (edge / size));
    for (int i = 0, at = 0; i < params; ++i) {
      sums.gradient[i] += slope * g[i];
      const Lanes scaled = outer * g[i];
      for (int j = 0; j <= i; ++j, ++at) sums.hessian[at] += scaled * g[j];
    }
    if (kExact) {
      for (const LseData::Pair& pair : data.pairs) {
        Lanes v = slope * p[pair.term];
        if (pair.first_column >= 0) v *= data.columns[pair.first_column][block].v;
        if (pair.second_column >= 0) v *= data.columns[pair.second_column][block].v;
        sums.hessian[pair.index] += v;
      }
    }
  }
}

using Kernel = void (*)(const LseData&, const Pack*, const double*, double, bool, Sums&);

#define DEGU_LSE_KERNEL(name, attribute)                                                           \
  attribute void name(const LseData& data, const Pack* weights, const double* theta, double delta, \
                      bool exact, Sums& sums) {                                                    \
    if (exact) {                                                                                   \
      accumulate<true>(data, weights, theta, delta, sums);                                         \
    } else {                                                                                       \
      accumulate<false>(data, weights, theta, delta, sums);                                        \
    }                                                                                              \
  }
DEGU_LSE_KERNEL(accumulate_portable, )
#if defined(__x86_64__)
DEGU_LSE_KERNEL(accumulate_avx2, __attribute__((target("avx2"))))
DEGU_LSE_KERNEL(accumulate_avx512, __attribute__((target("avx512f,avx512dq,avx512vl,avx512bw"))))
#endif
#undef DEGU_LSE_KERNEL

Kernel choose_kernel() {
#if defined(__x86_64__)
  switch (default_isa()) {
    case Isa::kAvx512:
    case Isa::kAvx512Bf16:
      return accumulate_avx512;
    case Isa::kAvx2:
      return accumulate_avx2;
    case Isa::kPortable:
      break;
  }
#endif
  return accumulate_portable;
}

double join(const Lanes& v) {
  return ((v[0] + v[1]) + (v[2] + v[3])) + ((v[4] + v[5]) + (v[6] + v[7]));
}

class LseObjective final : public Objective {
 public:
  LseObjective(std::shared_ptr<const LseData> data, std::span<const double> weights, double delta)
      : Objective(delta),
        data_(std::move(data)),
        weights_(data_->blocks),
        kernel_(choose_kernel()) {
    for (size_t i = 0; i < data_->points; ++i) weights_[i / kLanes].v[i % kLanes] = weights[i];
    for (size_t i = data_->points; i < data_->blocks * kLanes; ++i)
      weights_[i / kLanes].v[i % kLanes] = 0;
  }
  int size() const override { return data_->params; }

  void evaluate(std::span<const double> theta, Curvature curvature,
                Evaluation& out) const override {
    const int count = data_->params;
    Sums sums;
    kernel_(*data_, weights_.data(), theta.data(), delta_, curvature == Curvature::kExact, sums);
    out.value = join(sums.value) / scale_;
    out.gradient.resize(count);
    out.hessian.resize(static_cast<size_t>(count) * count);
    for (int i = 0; i < count; ++i) {
      out.gradient[i] = join(sums.gradient[i]) / scale_;
      for (int j = 0; j <= i; ++j) {
        const double h = join(sums.hessian[packed_index(i, j)]) / scale_;
        out.hessian[i * count + j] = h;
        out.hessian[j * count + i] = h;
      }
    }
  }

 private:
  std::shared_ptr<const LseData> data_;
  std::vector<Pack> weights_;
  Kernel kernel_;
};

}  // namespace

std::shared_ptr<const LseData> make_lse_data(const Law& law, std::span<const Observation> data) {
  auto out = std::make_shared<LseData>();
  out->params = static_cast<int>(law.params().size());
  if (out->params > kMaxParams)
    throw ConfigError("law {}: {} parameters, at most {} are fitted at once; fit fewer groups",
                      law.name(), out->params, kMaxParams);
  out->points = data.size();
  out->blocks = (data.size() + kLanes - 1) / kLanes;
  out->log_loss.resize(out->blocks);
  // Where theta is 0 every derivative of an affine law is its coefficient.
  const std::vector<double> origin(out->params, 0.0);
  std::map<std::pair<int, int>, std::vector<double>> columns;
  Terms terms;
  for (size_t i = 0; i < data.size(); ++i) {
    law.terms(data[i].x, origin, terms);
    out->terms = terms.count();
    out->log_loss[i / kLanes].v[i % kLanes] = std::log(data[i].loss);
    for (const Terms::Derivative& d : terms.derivatives()) {
      std::vector<double>& column = columns[{d.term, d.param}];
      column.resize(out->blocks * kLanes);
      column[i] += d.value;
    }
  }
  for (const auto& [key, values] : columns) {
    const auto real_end = values.begin() + static_cast<std::ptrdiff_t>(data.size());
    const bool constant = std::all_of(values.begin(), real_end, [](double v) { return v == 1; });
    out->features.push_back(
        {key.first, key.second, constant ? -1 : static_cast<int>(out->columns.size())});
    if (constant) continue;
    std::vector<Pack> packed(out->blocks);
    for (size_t i = 0; i < values.size(); ++i) packed[i / kLanes].v[i % kLanes] = values[i];
    out->columns.push_back(std::move(packed));
  }
  for (const LseData::Feature& a : out->features)
    for (const LseData::Feature& b : out->features)
      if (a.term == b.term && b.param <= a.param)
        out->pairs.push_back({a.term, packed_index(a.param, b.param), a.column, b.column});
  return out;
}

std::unique_ptr<Objective> make_lse_objective(std::shared_ptr<const LseData> data,
                                              std::span<const double> weights, double delta) {
  return std::make_unique<LseObjective>(std::move(data), weights, delta);
}

}  // namespace degu::scaling
