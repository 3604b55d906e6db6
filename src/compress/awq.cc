// AWQ (Lin et al. 2023, arXiv 2306.00978). Input channel d of a product is divided by s[d] and
// column d of the weight multiplied with it: the function stays, the rounding of channels with
// large inputs becomes finer. s = magnitude^a, with a searched on a grid for the least error of the
// product on the calibration rows. The magnitude is the channel's root mean square.
//
// The factor of the input moves into what makes it, where that is exact: the gain of a norm that
// feeds these products alone, the value projection's rows, the up-projection's rows. In an MoE
// layer one norm feeds the router and all experts: one factor serves them all, the router's columns
// are multiplied with it too, and it is a power of two, so that the router's logits keep their
// bits.
#include "compress/awq.h"

#include <algorithm>
#include <cmath>

#include "compress/block_problem.h"
#include "compress/fold.h"
#include "compress/group_scale.h"

namespace degu {
namespace {

std::vector<double> diagonal(AnyView hessian_DD) {
  const View<float> h = hessian_DD.as<float>();
  std::vector<double> out;
  for (int64_t i = 0; i < h.dim(0); ++i) out.push_back(double{h(i, i)});
  return out;
}

// H of inputs that were divided by the factor.
void divide_hessian(AnyView hessian_DD, std::span<const float> factor_D) {
  const View<float> h = hessian_DD.as<float>();
  for (int64_t i = 0; i < h.dim(0); ++i) {
    for (int64_t j = 0; j < h.dim(1); ++j) {
      h(i, j) /= factor_D[static_cast<size_t>(i)] * factor_D[static_cast<size_t>(j)];
    }
  }
}

class Folder {
 public:
  Folder(Context& context, BlockProblem& block) : context_(context), block_(block) {}

  // A norm that feeds the matrices of one site and nothing else.
  void fold_norm(const std::string& gain, const Site& site) {
    SiteStatistics& statistics = block_.statistics.at(site.name);
    const AnyView hessian = statistics.of(0).hessian_DD;
    const OutputError error(context_, hessian);
    std::vector<AwqTerm> terms;
    for (const std::string& name : site.matrices) add_term(terms, name, block_.value(name), error);
    const std::vector<float> factor = search(terms, diagonal(hessian), [](auto f) { return f; });
    divide_gain(block_.value(gain), factor);
    for (const std::string& name : site.matrices) scale_columns(block_.value(name), factor);
    divide_hessian(hessian, factor);
  }

  // Heads of one group share the value projection's rows, and so their factor.
  void fold_values() {
    const ModelShape& s = block_.shape;
    const AnyView hessian = block_.statistics.at("attention.out").of(0).hessian_DD;
    const OutputError error(context_, hessian);
    const AnyView wo = block_.value("attention.wo");
    std::vector<AwqTerm> terms;
    add_term(terms, "attention.wo", wo, error);
    const int64_t width = s.head_width;
    const int64_t group = s.heads / s.kv_heads;
    const auto row_of = [&](size_t column) {
      const auto c = static_cast<int64_t>(column);
      return static_cast<size_t>(c / width / group * width + c % width);
    };
    const std::vector<double> columns = diagonal(hessian);
    std::vector<double> squares(static_cast<size_t>(s.kv_heads * width), 0.0);
    for (size_t c = 0; c < columns.size(); ++c) squares[row_of(c)] += columns[c];
    const auto spread = [&](const std::vector<float>& rows) {
      std::vector<float> out(columns.size());
      for (size_t c = 0; c < out.size(); ++c) out[c] = rows[row_of(c)];
      return out;
    };
    const std::vector<float> factor = search(terms, squares, spread);
    const std::vector<float> of_columns = spread(factor);
    divide_rows(block_.value("attention.wv"), factor);
    scale_columns(wo, of_columns);
    divide_hessian(hessian, of_columns);
  }

  // act = silu(gate) * up, so the rows of `up` scale the columns of `down`.
  void fold_up(const std::string& site, const std::string& down, AnyView up_FD, AnyView down_DF,
               int64_t n) {
    SiteStatistics& statistics = block_.statistics.at(site);
    if (statistics.usable[static_cast<size_t>(n)] == 0) return;
    const AnyView hessian = statistics.of(n).hessian_DD;
    const OutputError error(context_, hessian);
    std::vector<AwqTerm> terms;
    add_term(terms, down, down_DF, error);
    const std::vector<float> factor = search(terms, diagonal(hessian), [](auto f) { return f; });
    divide_rows(up_FD, factor);
    scale_columns(down_DF, factor);
    divide_hessian(hessian, factor);
  }

  void fold_experts_norm();

 private:
  void add_term(std::vector<AwqTerm>& terms, const std::string& name, AnyView value,
                const OutputError& error) const {
    const SchemeInfo& info = scheme_info(block_.scheme(name));
    if (info.quantized()) terms.push_back({value, info.codes, &error});
  }

  // The best candidate; all ones where nothing is rounded.
  template <class Spread>
  std::vector<float> search(const std::vector<AwqTerm>& terms, const std::vector<double>& squares,
                            Spread spread) {
    std::vector<float> best = awq_candidate(squares, 0, false);
    double least = 0;
    for (int step = 0; step <= kAwqSteps && !terms.empty(); ++step) {
      const std::vector<float> factor = awq_candidate(squares, step, false);
      const std::vector<float> of_columns = spread(factor);
      double error = 0;
      for (const AwqTerm& term : terms) error += folded_error(context_, term, of_columns);
      if (step > 0 && error >= least) continue;
      least = error;
      best = factor;
    }
    return best;
  }

  Context& context_;
  BlockProblem& block_;
};

// One factor for the router, all experts and the shared ones. Each expert is on one rank, which
// fills that expert's place in vectors that are then summed over ranks, other places being zero; so
// the sums over experts are made in expert order on every layout.
void Folder::fold_experts_norm() {
  const ModelShape& shape = block_.shape;
  const int64_t width = shape.width;
  const int64_t experts = shape.moe.experts;
  const bool shared = shape.moe.shared_experts > 0;
  const int64_t places = experts + 1;  // the shared experts come last
  SiteStatistics& statistics = block_.statistics.at("experts");
  std::vector<OutputError> errors;
  std::vector<std::vector<AwqTerm>> terms(static_cast<size_t>(places));
  errors.reserve(static_cast<size_t>(block_.experts.count) + 1);
  Tensor squares_ED(DType::kF64, {experts, width});
  for (int64_t n = 0; n < block_.experts.count; ++n) {
    const AnyView hessian = statistics.of(n).hessian_DD;
    const std::vector<double> squares = diagonal(hessian);
    std::copy(squares.begin(), squares.end(),
              squares_ED.as<double>().data() + (block_.experts.begin + n) * width);
    if (statistics.usable[static_cast<size_t>(n)] == 0) continue;
    errors.emplace_back(context_, hessian);
    for (const char* name : {"moe.gate", "moe.up"}) {
      add_term(terms[static_cast<size_t>(block_.experts.begin + n)], name,
               block_.expert_value(name, n), errors.back());
    }
  }
  if (shared && block_.world.rank() == 0) {
    errors.emplace_back(context_, block_.statistics.at("shared").of(0).hessian_DD);
    for (const char* name : {"moe.shared_gate", "moe.shared_up"}) {
      add_term(terms.back(), name, block_.value(name), errors.back());
    }
  }
  block_.world.all_reduce(context_, squares_ED, Reduce::kSum).wait();
  std::vector<double> squares(static_cast<size_t>(width), 0.0);
  for (int64_t i = 0; i < experts * width; ++i) {
    squares[static_cast<size_t>(i % width)] += squares_ED.as<double>()[i];
  }
  Tensor error_SP(DType::kF64, {kAwqSteps + 1, places});
  for (int step = 0; step <= kAwqSteps; ++step) {
    const std::vector<float> factor = awq_candidate(squares, step, true);
    for (int64_t p = 0; p < places; ++p) {
      for (const AwqTerm& term : terms[static_cast<size_t>(p)]) {
        error_SP.as<double>()(step, p) += folded_error(context_, term, factor);
      }
    }
  }
  block_.world.all_reduce(context_, error_SP, Reduce::kSum).wait();
  int best = 0;
  double least = 0;
  for (int step = 0; step <= kAwqSteps; ++step) {
    double error = 0;
    for (int64_t p = 0; p < places; ++p) error += error_SP.as<double>()(step, p);
    if (step > 0 && error >= least) continue;
    least = error;
    best = step;
  }
  const std::vector<float> factor = awq_candidate(squares, best, true);
  divide_gain(block_.value("ffn_norm"), factor);
  if (block_.values.contains("moe.router")) scale_columns(block_.value("moe.router"), factor);
  for (int64_t n = 0; n < block_.experts.count; ++n) {
    for (const char* name : {"moe.gate", "moe.up"}) {
      scale_columns(block_.expert_value(name, n), factor);
    }
    divide_hessian(statistics.of(n).hessian_DD, factor);
  }
  if (!shared) return;
  for (const char* name : {"moe.shared_gate", "moe.shared_up"}) {
    scale_columns(block_.value(name), factor);
  }
  divide_hessian(block_.statistics.at("shared").of(0).hessian_DD, factor);
}

void round_row(Codes codes, const float* w, int64_t inner, std::span<const float> scales,
               float* rounded) {
  for (int64_t i = 0; i < inner; ++i) {
    const float scale = scales[static_cast<size_t>(i / kScaleGroup)];
    rounded[i] = code_value(codes, code_of(codes, w[i], scale)) * scale;
  }
}

}  // namespace

std::vector<float> awq_candidate(std::span<const double> squares_D, int step, bool powers_of_two) {
  double most = 0;
  for (double each : squares_D) most = std::max(most, each);
  double least = most;
  for (double each : squares_D) {
    if (each > 0) least = std::min(least, each);
  }
  std::vector<float> factor(squares_D.size(), 1.0f);
  if (step == 0 || most == 0) return factor;
  const double exponent = 0.5 * step / kAwqSteps;  // of a square
  const double centre = std::sqrt(std::pow(most, exponent) * std::pow(least, exponent));
  for (size_t d = 0; d < factor.size(); ++d) {
    double value = std::pow(std::max(squares_D[d], least), exponent) / centre;
    if (powers_of_two) value = std::exp2(std::round(std::log2(value)));
    factor[d] = static_cast<float>(value);
  }
  return factor;
}

double folded_error(Context& context, const AwqTerm& term, std::span<const float> factor_D) {
  const ScratchScope scope(context.scratch());
  const AnyView delta = context.scratch().take(DType::kF32, term.value_FD.shape);
  const int64_t inner = term.value_FD.dim(1);
  const auto* values = static_cast<const float*>(term.value_FD.data);
  auto* out = static_cast<float*>(delta.data);
  context.parallel_for(term.value_FD.dim(0), [&](int64_t row, int) {
    const float* w = values + row * inner;
    float* d = out + row * inner;
    float scaled[kScaleGroup];
    for (int64_t begin = 0; begin < inner; begin += kScaleGroup) {
      const int64_t count = std::min(kScaleGroup, inner - begin);
      for (int64_t i = 0; i < count; ++i) {
        scaled[i] = w[begin + i] * factor_D[static_cast<size_t>(begin + i)];
      }
      const float scale = covering_scale(term.codes, {scaled, scaled + count});
      for (int64_t i = 0; i < count; ++i) {
        const float rounded = code_value(term.codes, code_of(term.codes, scaled[i], scale)) * scale;
        d[begin + i] = rounded / factor_D[static_cast<size_t>(begin + i)] - w[begin + i];
      }
    }
  });
  return term.error->sum(context, delta);
}

void prepare_awq(Context& context, BlockProblem& block) {
  Folder folder(context, block);
  const std::vector<Site> sites = block_sites(block.shape, block.layer);
  if (block.layer < 0) return folder.fold_norm("final_norm", sites.front());
  folder.fold_norm("attention_norm", sites.front());
  folder.fold_values();
  if (!block.shape.is_moe_layer(block.layer)) {
    folder.fold_norm("ffn_norm", sites[2]);
    folder.fold_up("ffn.act", "ffn.down", block.value("ffn.up"), block.value("ffn.down"), 0);
    return;
  }
  folder.fold_experts_norm();
  for (int64_t n = 0; n < block.experts.count; ++n) {
    folder.fold_up("experts.act", "moe.down", block.expert_value("moe.up", n),
                   block.expert_value("moe.down", n), n);
  }
  if (block.shape.moe.shared_experts > 0) {
    folder.fold_up("shared.act", "moe.shared_down", block.value("moe.shared_up"),
                   block.value("moe.shared_down"), 0);
  }
}

void choose_awq(Context& context, const InputStatistics& input, const MethodOptions&,
                std::span<const MatrixTask> tasks) {
  const OutputError output_error(context, input.hessian_DD);
  const auto* hessian = static_cast<const float*>(input.hessian_DD.data);
  for (const MatrixTask& task : tasks) {
    check_quantized("choose_awq", task.out);
    check_finite(context, task);
    const ScratchScope scope(context.scratch());
    const Codes codes = scheme_info(task.out.scheme).codes;
    const int64_t rows = task.out.rows();
    const int64_t inner = task.out.inner();
    const int64_t groups = scale_groups(inner);
    const auto* values = static_cast<const float*>(task.value_FD.data);
    // Two ways to choose scales, and what each does to the product.
    std::vector<float> scales[2];
    std::vector<double> errors[2];
    for (const bool searched : {false, true}) {
      scales[searched].resize(static_cast<size_t>(rows * groups));
      const AnyView delta = context.scratch().take(DType::kF32, {rows, inner});
      context.parallel_for(rows, [&](int64_t row, int) {
        const float* w = values + row * inner;
        float* d = static_cast<float*>(delta.data) + row * inner;
        float* s = scales[searched].data() + row * groups;
        for (int64_t g = 0; g < groups; ++g) {
          const int64_t begin = g * kScaleGroup;
          const std::span<const float> group(w + begin, w + std::min(inner, begin + kScaleGroup));
          s[g] = searched ? least_error_scale(
                                codes, group,
                                {.block = hessian + begin * inner + begin, .stride = inner})
                          : covering_scale(codes, group);
        }
        round_row(codes, w, inner, {s, s + groups}, d);
        for (int64_t i = 0; i < inner; ++i) d[i] -= w[i];
      });
      errors[searched] = output_error.rows(context, delta);
    }
    auto* stored = static_cast<uint8_t*>(task.out.codes.data);
    auto* stored_scales = static_cast<bf16*>(task.out.scales.data);
    context.parallel_for(rows, [&](int64_t row, int) {
      const auto at = static_cast<size_t>(row);
      const float* s = scales[errors[1][at] < errors[0][at]].data() + row * groups;
      const float* w = values + row * inner;
      for (int64_t g = 0; g < groups; ++g) stored_scales[row * groups + g] = bf16(s[g]);
      for (int64_t i = 0; i < inner; ++i) {
        store_code(codes, stored + row * code_bytes(codes, inner), i,
                   code_of(codes, w[i], s[i / kScaleGroup]));
      }
    });
  }
}

}  // namespace degu
