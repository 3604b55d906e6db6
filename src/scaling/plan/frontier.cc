#include "scaling/plan/frontier.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>

#include "base/error.h"

namespace degu::scaling {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

class SixNd final : public Family {
 public:
  FamilyMember at(double size, const ExpertGroup&) const override {
    return {size, size, 6 * size, 2 * size};
  }
  Interval sizes() const override { return {1e2, 1e16}; }
};

class KrajewskiFamily final : public Family {
 public:
  FamilyMember at(double d, const ExpertGroup& group) const override {
    const double blocks = d / 64, expansion = group.experts / group.granularity;
    const double n = d * d * (8 * expansion + 4) * blocks;
    const double flops = (12 * d * d * 6 + 14 * d * expansion * group.granularity) * blocks;
    return {n, n, flops, flops / 3};
  }
  Interval sizes() const override { return {16, 1e7}; }
};

class LudziejewskiFamily final : public Family {
 public:
  explicit LudziejewskiFamily(double vocabulary) : vocabulary_(vocabulary) {}
  FamilyMember at(double d, const ExpertGroup& group) const override {
    const double blocks = d / 64, embeddings = 2 * d * vocabulary_;
    const double active = embeddings + 13 * blocks * d * d;
    const double total = embeddings + (4 + 9 * group.experts) * blocks * d * d;
    return {active, total, 6 * active, 2 * active};
  }
  Interval sizes() const override { return {16, 1e7}; }

 private:
  double vocabulary_;
};

LawInput input(const FrontierProblem& p, double n, double d) {
  return {.n = n,
          .d = d,
          .experts = p.group.experts,
          .top_k = p.group.top_k,
          .granularity = p.group.granularity,
          .group = p.group_index};
}

FrontierPoint point(const FrontierProblem& p, double size, double d) {
  FrontierPoint out;
  out.size = size;
  out.model = p.family->at(size, p.group);
  out.d = d;
  out.loss = p.law->predict(p.params, input(p, out.model.n, d));
  out.train_flops = out.model.train_flops * d;
  out.lifetime_flops = out.train_flops + out.model.inference_flops * p.inference_tokens;
  return out;
}

// The size with the least value of `cost`, by a scan over ln size and a golden section around its
// best. `cost` may be infinite where a size is impossible.
double least(const FrontierProblem& p, const std::function<double(double)>& cost) {
  const Interval range = p.family->sizes();
  const double low = std::log(range.lo);
  double high = std::log(range.hi);
  if (p.max_total > 0) {
    double inside = low, outside = high;  // total parameters grow with size
    if (p.family->at(range.hi, p.group).total > p.max_total) {
      for (int i = 0; i < 100; ++i) {
        const double middle = 0.5 * (inside + outside);
        (p.family->at(std::exp(middle), p.group).total > p.max_total ? outside : inside) = middle;
      }
      high = inside;
    }
  }
  constexpr int kSteps = 400;
  const double step = (high - low) / kSteps;
  int best = 0;
  double best_cost = kInfinity;
  for (int i = 0; i <= kSteps; ++i) {
    const double value = cost(std::exp(low + i * step));
    if (!(value < best_cost)) continue;
    best_cost = value;
    best = i;
  }
  double left = low + std::max(0, best - 1) * step, right = low + std::min(kSteps, best + 1) * step;
  constexpr double kGolden = 0.6180339887498949;
  for (int i = 0; i < 80; ++i) {
    const double a = right - kGolden * (right - left), b = left + kGolden * (right - left);
    (cost(std::exp(a)) <= cost(std::exp(b)) ? right : left) =
        cost(std::exp(a)) <= cost(std::exp(b)) ? b : a;
  }
  return std::exp(0.5 * (left + right));
}

}  // namespace

std::unique_ptr<Family> make_six_nd_family() {
  return std::make_unique<SixNd>();
}
std::unique_ptr<Family> make_krajewski_family() {
  return std::make_unique<KrajewskiFamily>();
}
std::unique_ptr<Family> make_ludziejewski_family(double vocabulary) {
  return std::make_unique<LudziejewskiFamily>(vocabulary);
}

std::unique_ptr<Family> family_of(const Law& law) {
  if (law.name() == "krajewski") return make_krajewski_family();
  if (law.name() == "ludziejewski") return make_ludziejewski_family(50257);  // GPT-2's tokenizer
  return make_six_nd_family();
}

double tokens_for_loss(const Law& law, std::span<const double> params, LawInput x, double loss) {
  // ln L falls in ln D: bisection, after the asymptote says whether there is a root.
  double low = 0, high = std::log(1e25);
  const auto above = [&](double ln_d) {
    x.d = std::exp(ln_d);
    return law.predict(params, x) > loss;
  };
  if (above(high)) return kInfinity;
  for (int i = 0; i < 50; ++i) {  // to 5e-14 of ln D
    const double middle = 0.5 * (low + high);
    (above(middle) ? low : high) = middle;
  }
  return std::exp(high);
}

FrontierPoint best_for_training(const FrontierProblem& p, double flops) {
  const double size = least(
      p, [&](double s) { return point(p, s, flops / p.family->at(s, p.group).train_flops).loss; });
  return point(p, size, flops / p.family->at(size, p.group).train_flops);
}

FrontierPoint best_for_lifetime(const FrontierProblem& p, double flops) {
  const auto tokens = [&](double s) {
    const FamilyMember model = p.family->at(s, p.group);
    return (flops - model.inference_flops * p.inference_tokens) / model.train_flops;
  };
  const double size = least(p, [&](double s) {
    const double d = tokens(s);
    return d > 1 ? point(p, s, d).loss : kInfinity;
  });
  const double d = tokens(size);
  if (!(d > 1))
    throw NumericError("{:.4g} FLOPs do not pay for {:.4g} inference tokens of the smallest model",
                       flops, p.inference_tokens);
  return point(p, size, d);
}

FrontierPoint cheapest_for_loss(const FrontierProblem& p, double loss) {
  const auto tokens = [&](double s) {
    return tokens_for_loss(*p.law, p.params, input(p, p.family->at(s, p.group).n, 1), loss);
  };
  const double size = least(p, [&](double s) {
    const double d = tokens(s);
    return std::isfinite(d) ? point(p, s, d).lifetime_flops : kInfinity;
  });
  const double d = tokens(size);
  if (!std::isfinite(d))
    throw NumericError("no size of law {} reaches a loss of {:.4f}", p.law->name(), loss);
  return point(p, size, d);
}

}  // namespace degu::scaling
