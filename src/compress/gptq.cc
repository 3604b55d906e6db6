// GPTQ (Frantar et al. 2022, arXiv 2210.17323, algorithm 1): a row w is rounded column by column.
// Rounding column i leaves the error e = (w_i - q_i) / U_ii, and each later column j becomes
// w_j - e U_ij, the least-squares answer to what is already fixed. Scales are those of the format:
// bf16, per 32 adjacent columns, each found by search. With activation order columns of one group
// are rounded at different times, so scales come from the values as they were; otherwise a group's
// scale is found when its first column is reached.
#include "compress/gptq.h"

#include <lapacke.h>

#include <algorithm>
#include <numeric>

#include "compress/group_scale.h"

namespace degu {
namespace {

// Rounds one row.
class RowSolver {
 public:
  RowSolver(Codes codes, const GptqFactor& factor, const InputStatistics& input, bool late_scales)
      : codes_(codes),
        factor_(factor),
        hessian_(static_cast<const float*>(input.hessian_DD.data)),
        inner_(static_cast<int64_t>(factor.order.size())),
        late_scales_(late_scales),
        value_(factor.order.size()),
        code_(factor.order.size()),
        scale_(static_cast<size_t>(scale_groups(inner_))) {}

  void solve(const float* w, uint8_t* stored, bf16* scales) {
    for (size_t i = 0; i < value_.size(); ++i) value_[i] = w[factor_.order[i]];
    for (int64_t g = 0; g < scale_groups(inner_) && !late_scales_; ++g) {
      scale_[static_cast<size_t>(g)] = group_scale(g, w + g * kScaleGroup);
    }
    for (int64_t i = 0; i < inner_; ++i) {
      const auto at = static_cast<size_t>(i);
      const int64_t column = factor_.order[at];
      const int64_t group = column / kScaleGroup;
      float& scale = scale_[static_cast<size_t>(group)];
      if (late_scales_ && column % kScaleGroup == 0) scale = current_scale(group);
      const uint8_t code = code_of(codes_, static_cast<float>(value_[at]), scale);
      code_[static_cast<size_t>(column)] = code;
      const double* u = factor_.upper.data() + i * inner_;
      const double error = (value_[at] - double{code_value(codes_, code)} * scale) / u[i];
      for (int64_t j = i + 1; j < inner_; ++j) value_[static_cast<size_t>(j)] -= error * u[j];
    }
    // Two codes of four bits share a byte, so they are stored in the order of columns.
    for (int64_t i = 0; i < inner_; ++i) {
      store_code(codes_, stored, i, code_[static_cast<size_t>(i)]);
    }
    for (size_t g = 0; g < scale_.size(); ++g) scales[g] = bf16(scale_[g]);
  }

 private:
  float group_scale(int64_t group, const float* w) const {
    const int64_t begin = group * kScaleGroup;
    const int64_t count = std::min(kScaleGroup, inner_ - begin);
    return least_error_scale(codes_, {w, w + count},
                             {.block = hessian_ + begin * inner_ + begin, .stride = inner_});
  }
  // Of a group whose columns come next, in their own order.
  float current_scale(int64_t group) const {
    float w[kScaleGroup];
    const int64_t begin = group * kScaleGroup;
    for (int64_t i = 0; i < std::min(kScaleGroup, inner_ - begin); ++i) {
      w[i] = static_cast<float>(value_[static_cast<size_t>(begin + i)]);
    }
    return group_scale(group, w);
  }

  Codes codes_;
  const GptqFactor& factor_;
  const float* hessian_;
  int64_t inner_;
  bool late_scales_;
  std::vector<double> value_;  // of the row, in the factor's order
  std::vector<uint8_t> code_;  // by column
  std::vector<float> scale_;   // by group
};

}  // namespace

GptqFactor gptq_factor(AnyView hessian_DD, const MethodOptions& options, const std::string& name) {
  const int64_t inner = hessian_DD.dim(0);
  const auto* h = static_cast<const float*>(hessian_DD.data);
  GptqFactor factor;
  factor.order.resize(static_cast<size_t>(inner));
  std::iota(factor.order.begin(), factor.order.end(), int64_t{0});
  const auto diagonal = [&](int64_t i) { return h[i * inner + i]; };
  if (options.activation_order) {
    std::stable_sort(factor.order.begin(), factor.order.end(),
                     [&](int64_t a, int64_t b) { return diagonal(a) > diagonal(b); });
  }
  double mean = 0;
  for (int64_t i = 0; i < inner; ++i) mean += double{diagonal(i)} / static_cast<double>(inner);
  const double damping = mean > 0 ? options.damping * mean : 1.0;
  factor.upper.resize(static_cast<size_t>(inner * inner));
  double* a = factor.upper.data();
  for (int64_t i = 0; i < inner; ++i) {
    for (int64_t j = 0; j < inner; ++j) {
      a[i * inner + j] =
          h[factor.order[static_cast<size_t>(i)] * inner + factor.order[static_cast<size_t>(j)]];
    }
    a[i * inner + i] += damping;
  }
  // What LAPACK calls the lower triangle by columns is the upper one by rows. The inverse of H is
  // L L^T with L lower, so U = L^T.
  const auto n = static_cast<lapack_int>(inner);
  if (LAPACKE_dpotrf(LAPACK_COL_MAJOR, 'L', n, a, n) != 0 ||
      LAPACKE_dpotri(LAPACK_COL_MAJOR, 'L', n, a, n) != 0 ||
      LAPACKE_dpotrf(LAPACK_COL_MAJOR, 'L', n, a, n) != 0) {
    throw NumericError(
        "{}: the Hessian of its inputs is not positive with damping {}; give more calibration "
        "tokens or a larger --damping",
        name, options.damping);
  }
  return factor;
}

void choose_gptq(Context& context, const InputStatistics& input, const MethodOptions& options,
                 std::span<const MatrixTask> tasks) {
  const GptqFactor factor = gptq_factor(input.hessian_DD, options, tasks.front().name);
  for (const MatrixTask& task : tasks) {
    check_quantized("choose_gptq", task.out);
    check_finite(context, task);
    const Codes codes = scheme_info(task.out.scheme).codes;
    const int64_t inner = task.out.inner();
    const auto* values = static_cast<const float*>(task.value_FD.data);
    auto* stored = static_cast<uint8_t*>(task.out.codes.data);
    auto* scales = static_cast<bf16*>(task.out.scales.data);
    context.parallel_for(task.out.rows(), [&](int64_t row, int) {
      uint8_t* to = stored + row * code_bytes(codes, inner);
      RowSolver(codes, factor, input, !options.activation_order)
          .solve(values + row * inner, to, scales + row * scale_groups(inner));
    });
  }
}

}  // namespace degu
