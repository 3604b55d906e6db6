#include "model/transformer.h"

#include <catch2/catch.hpp>
#include <cmath>

#include "shape/accounting.h"
#include "tests/model/tiny_model.h"

namespace degu {
namespace {

using testing::GradientMemory;
using testing::tiny_shape;
using testing::TinyBatch;

struct Case {
  const char* name;
  ModelShape shape;
};

std::vector<Case> architectures() {
  std::vector<Case> cases;
  auto add = [&](const char* name, auto&& change) {
    ModelShape shape = tiny_shape();
    change(shape);
    cases.push_back({name, shape.resolved()});
  };
  add("softmax router", [](ModelShape&) {});
  add("dense", [](ModelShape& s) { s.moe = {}; });
  add("untied head", [](ModelShape& s) { s.tied_head = false; });
  add("qk norm", [](ModelShape& s) { s.qk_norm = true; });
  add("sigmoid router", [](ModelShape& s) { s.moe.router = RouterKind::kSigmoid; });
  add("no renormalisation", [](ModelShape& s) { s.moe.renormalize = false; });
  add("hash router", [](ModelShape& s) { s.moe.router = RouterKind::kHash; });
  add("shared expert", [](ModelShape& s) { s.moe.shared_experts = 1; });
  add("first layer dense", [](ModelShape& s) { s.moe.first_dense_layers = 1; });
  add("muP", [](ModelShape& s) { s.mup_base_width = 8; });
  add("capacity", [](ModelShape& s) { s.moe.capacity_factor = 0.75; });
  return cases;
}

// The model in fp32 on one fixed batch: total loss as the trainer defines it.
class Harness {
 public:
  explicit Harness(const ModelShape& shape)
      : batch_({5, 9, 1, 17}, {2, 2}, shape.vocab),
        parameters_(context_, shape, DType::kF32, {0, shape.moe.experts}, true),
        model_(parameters_, {.unit_slots = true}),
        arena_(size_t{64} << 20),
        gradients_(parameters_) {
    parameters_.initialise(context_, 1);
    const auto tokens = static_cast<int64_t>(batch_.tokens.size());
    saved_ = model_.take(arena_, tokens, 2, Keep::kAll);
    kv_.emplace(context_, arena_, shape, DType::kF32, tokens, shape.layers);
    loss_ = Tensor(DType::kF32, {tokens});
    dh_ = Tensor(DType::kF32, {tokens, shape.width});
  }

  double loss(bool with_gradient) {
    parameters_.pack(context_);
    const Batch batch = batch_.view(kv_->views());
    kv_->assign(context_, batch.sequences);
    model_.forward(context_, batch, batch_.groups(), weights_, saved_);
    if (with_gradient) {
      gradients_.restart();
      head_loss_backward(context_, saved_.h_TD, parameters_.head(), model_.logit_multiplier(),
                         batch_.targets, 1.0f, batch_.groups().units, {1, 2}, gradients_, loss_,
                         dh_);
      model_.backward(context_, batch, batch_.groups(), weights_, saved_, dh_);
    } else {
      head_loss(context_, saved_.h_TD, parameters_.head(), model_.logit_multiplier(),
                batch_.targets, loss_);
    }
    double total = 0;
    for (int64_t t = 0; t < loss_.shape()[0]; ++t) total += loss_.as<float>()[t];
    for (const BalanceRecord& record :
         balance_records(context_, saved_, batch_.groups().balance_groups())) {
      for (double aux : record.aux_G) total += weights_.aux_per_group * aux;
      for (double z : record.z_G) total += weights_.z_per_token * z;
    }
    return total;
  }

  // Which expert every token chose: finite differences are meaningful only while it stays the same.
  std::vector<int32_t> routes() const {
    std::vector<int32_t> all;
    for (const BlockActivations& block : saved_.blocks) {
      if (!block.moe.router.expert_TK) continue;
      const View<int32_t> chosen = block.moe.router.expert_TK.as<int32_t>();
      all.insert(all.end(), chosen.data(), chosen.data() + chosen.elements());
    }
    return all;
  }

  ParameterSet& parameters() { return parameters_; }
  const GradientMemory& gradients() const { return gradients_; }

 private:
  Context context_{ContextOptions{.threads = 2, .scratch_bytes = size_t{256} << 20}};
  TinyBatch batch_;
  ParameterSet parameters_;
  Transformer model_;
  Arena arena_;
  GradientMemory gradients_;
  Activations saved_;
  std::optional<LocalKv> kv_;
  Tensor loss_, dh_;
  BalanceWeights weights_{.aux_per_group = 0.5, .z_per_token = 0.01};
};

TEST_CASE("gradients of the whole model agree with finite differences") {
  for (const Case& c : architectures()) {
    INFO(c.name);
    Harness harness(c.shape);
    harness.loss(true);
    const std::vector<int32_t> routes = harness.routes();
    for (size_t p = 0; p < harness.parameters().all().size(); ++p) {
      Parameter& parameter = *harness.parameters().all()[p];
      if (parameter.spec.role == ParameterRole::kState) continue;
      const View<float> value = parameter.value.as<float>();
      // One direction per tensor: its own gradient, so that the slope is the gradient's norm
      // squared.
      std::vector<double> direction(static_cast<size_t>(value.elements()));
      double norm = 0;
      for (int64_t i = 0; i < value.elements(); ++i) {
        direction[static_cast<size_t>(i)] = harness.gradients().of(p, i);
        norm += direction[static_cast<size_t>(i)] * direction[static_cast<size_t>(i)];
      }
      norm = std::sqrt(norm);
      INFO(parameter.spec.name << " with a gradient of norm " << norm);
      REQUIRE(norm > 1e-4);
      const std::vector<float> start(value.data(), value.data() + value.elements());
      // A central difference in fp32: the loss carries a rounding error of about 1e-5, the step's
      // own error grows with its square.
      const double step = std::min(1e-2, 3e-2 / norm);
      auto at = [&](double distance) {
        for (int64_t i = 0; i < value.elements(); ++i) {
          value[i] = static_cast<float>(start[static_cast<size_t>(i)] +
                                        distance * direction[static_cast<size_t>(i)] / norm);
        }
        const double loss = harness.loss(false);
        const bool same = harness.routes() == routes;
        std::copy(start.begin(), start.end(), value.data());
        return std::pair(loss, same);
      };
      double h = step;
      auto [up, same_up] = at(h);
      auto [down, same_down] = at(-h);
      for (int shrink = 0; shrink < 6 && !(same_up && same_down); ++shrink) {
        h /= 3;
        std::tie(up, same_up) = at(h);
        std::tie(down, same_down) = at(-h);
      }
      REQUIRE((same_up && same_down));
      const double slope = (up - down) / (2 * h);
      CHECK(slope == Approx(norm).epsilon(0.01).margin(4e-5 / h));
    }
  }
}

TEST_CASE("a token's output does not depend on the rest of the batch") {
  const ModelShape shape = tiny_shape();
  Context context;
  ParameterSet parameters(context, shape, DType::kBF16, {0, shape.moe.experts}, false);
  parameters.initialise(context, 1);
  parameters.pack(context);
  const Transformer model(parameters);
  auto outputs = [&](const TinyBatch& batch) {
    Arena arena(size_t{64} << 20);
    const auto tokens = static_cast<int64_t>(batch.tokens.size());
    Activations saved = model.take(arena, tokens, 1, Keep::kNothing);
    LocalKv kv(context, arena, shape, DType::kBF16, tokens, 1);
    const Batch view = batch.view(kv.views());
    kv.assign(context, view.sequences);
    model.forward(context, view, batch.groups(), {}, saved);
    const View<bf16> h = saved.h_TD.as<bf16>();
    return std::vector<bf16>(h.data(), h.data() + tokens * shape.width);
  };
  const TinyBatch together({7, 130, 3}, {3}, shape.vocab);
  const std::vector<bf16> all = outputs(together);
  for (size_t s = 0; s + 1 < together.sequence_offsets.size(); ++s) {
    const auto begin = static_cast<size_t>(together.sequence_offsets[s]);
    const auto length = static_cast<size_t>(together.sequence_offsets[s + 1]) - begin;
    TinyBatch alone({static_cast<int64_t>(length)}, {1}, shape.vocab);
    std::copy_n(together.tokens.begin() + static_cast<std::ptrdiff_t>(begin), length,
                alone.tokens.begin());
    const std::vector<bf16> own = outputs(alone);
    const auto width = static_cast<size_t>(shape.width);
    CHECK(std::equal(own.begin(), own.end(),
                     all.begin() + static_cast<std::ptrdiff_t>(begin * width)));
  }
}

}  // namespace

TEST_CASE("the accounting knows what a token leaves behind for the backward pass") {
  for (const Case& c : architectures()) {
    const ModelShape shape = c.shape.resolved();
    Context context;
    ParameterSet parameters(context, shape, DType::kF32, {0, shape.moe.experts}, true);
    const Transformer model(parameters);
    Arena arena = Arena::measuring();
    constexpr int64_t kTokens = 4096;
    model.take(arena, kTokens, 1, Keep::kAll);
    INFO(c.name);
    CHECK(static_cast<double>(arena.used()) / kTokens ==
          Approx(activation_bytes_per_token(shape, 4)).epsilon(0.02));
  }
}

}  // namespace degu
