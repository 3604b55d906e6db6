// From a training checkpoint to logits in every scheme, through the model that trained it.
#include "compress/quantize.h"

#include <catch2/catch.hpp>
#include <nlohmann/json.hpp>
#include <optional>

#include "comm/communicator.h"
#include "comm/thread_comm.h"
#include "compress/method.h"
#include "config/yaml.h"
#include "model/transformer.h"
#include "tests/io/temporary_folder.h"
#include "tests/model/tiny_model.h"
#include "tests/support/kernel_testing.h"

namespace degu {
namespace {

using namespace degu::testing;
using degu::test::TemporaryFolder;

ContextOptions options(int threads = 2) {
  return {.threads = threads, .scratch_bytes = size_t{256} << 20};
}

// Widths that the scale groups do not divide, a shared expert, a dense layer.
ModelShape odd_shape(bool tied = true) {
  const ModelShape shape{.vocab = 67,
                         .width = 40,
                         .layers = 3,
                         .heads = 2,
                         .kv_heads = 1,
                         .head_width = 18,
                         .ffn_width = 52,
                         .tied_head = tied,
                         .init_std = 0.15,
                         .moe = {.experts = 4,
                                 .top_k = 2,
                                 .expert_width = 36,
                                 .shared_experts = 1,
                                 .first_dense_layers = 1}};
  return shape.resolved();
}

struct ConfigFile {
  ModelShape model;
  void fields(Fields& f) { f("model", model, ""); }
};

// A checkpoint of random fp32 values.
void write_checkpoint(const std::string& folder, const ModelShape& shape) {
  Context context(options());
  ParameterSet parameters(context, shape, DType::kBF16, {0, shape.moe.experts}, true);
  parameters.initialise(context, 1);
  const std::unique_ptr<Communicator> self = make_self_communicator();
  CheckpointWriter writer(*self, folder, {{"next_step", 3}});
  for (const auto& p : parameters.all()) {
    writer.add(std::string(kModelPrefix) + p->spec.name, p->value);
  }
  writer.attach("config.yaml", to_yaml(ConfigFile{shape}));
  writer.commit();
}

QuantizeOptions with_scheme(Scheme scheme) {
  QuantizeOptions result;
  result.policy.scheme = scheme;
  return result;
}

void quantize(const std::string& from, const std::string& to, const QuantizeOptions& how) {
  Context context(options());
  CheckpointReader reader(from);
  quantize_checkpoint(context, reader, to, how);
}

std::vector<SchemeInfo> served_schemes() {
  std::vector<SchemeInfo> schemes;
  for (const SchemeInfo& info : kSchemes) {
    if (info.scheme != Scheme::kFp32) schemes.push_back(info);
  }
  return schemes;
}

// fp32 logits of a batch.
Tensor logits(Context& context, const std::string& folder, const TinyBatch& data,
              bool keep_for_backward, Communicator* group = nullptr) {
  CheckpointReader reader(folder);
  const ModelShape shape = checkpoint_shape(reader);
  const int64_t here = shape.moe.experts / (group == nullptr ? 1 : group->size());
  const int64_t first = group == nullptr ? 0 : here * group->rank();
  const auto parameters = load_for_inference(context, reader, shape, DType::kBF16, {first, here});
  const Transformer model(*parameters, group, false);
  Arena arena(size_t{64} << 20);
  const auto tokens = static_cast<int64_t>(data.tokens.size());
  Activations saved = model.take(arena, tokens, 4, keep_for_backward);
  LocalKv kv(context, arena, shape, DType::kBF16, tokens, shape.layers);
  const Batch batch = data.view(kv.views());
  kv.assign(batch.sequences);
  model.forward(context, batch, data.groups(), {}, saved);
  Tensor out(DType::kF32, {tokens, shape.vocab});
  head_logits(context, saved.h_TD.rows(0, tokens), parameters->head(), model.logit_multiplier(),
              out);
  return out;
}

double worst_difference(const AnyView& a, const AnyView& b) {
  double worst = 0;
  for (int64_t i = 0; i < a.elements(); ++i) {
    worst = std::max(worst, std::fabs(element(a, i) - element(b, i)));
  }
  return worst;
}

TEST_CASE("every scheme serves a checkpoint, close to bf16 by its number of bits", "[quantize]") {
  const TemporaryFolder folder;
  for (bool tied : {true, false}) {
    const std::string master = folder.path() + "/master";
    write_checkpoint(master, odd_shape(tied));
    Context context(options());
    const TinyBatch batch({13, 1, 20}, {3}, 67);
    const Tensor expected = logits(context, master, batch, false);
    double largest = 0;
    for (int64_t i = 0; i < expected.shape().elements(); ++i) {
      largest = std::max(largest, std::fabs(element(expected, i)));
    }
    for (const SchemeInfo& info : served_schemes()) {
      INFO(info.name << (tied ? " tied" : " untied"));
      const std::string out = folder.path() + "/" + std::string(info.name);
      quantize(master, out, with_scheme(info.scheme));
      const Tensor got = logits(context, out, batch, false);
      const double worst = worst_difference(got, expected);
      if (info.scheme == Scheme::kBf16) {
        check_same_bits("logits", got, expected);
      } else {
        // Random weights and routers: a coarse bound that a wrong scale, order or tensor breaks.
        CHECK(worst > 0);
        CHECK(worst < largest * (info.codes == Codes::kInt8 ? 0.15 : 0.6));
      }
    }
  }
}

TEST_CASE("logits are the same bits on any path", "[quantize]") {
  const TemporaryFolder folder;
  const std::string master = folder.path() + "/master";
  write_checkpoint(master, odd_shape());
  // The same three sequences together and alone.
  const std::vector<int64_t> lengths = {19, 2, 31};
  const TinyBatch together(lengths, {3}, 67);
  for (const SchemeInfo& info : served_schemes()) {
    INFO(info.name);
    const std::string out = folder.path() + "/" + std::string(info.name);
    quantize(master, out, with_scheme(info.scheme));
    Context context(options());
    const Tensor expected = logits(context, out, together, false);
    check_same_bits("the training forward", logits(context, out, together, true), expected);
    for (int threads : {1, 3}) {
      Context other(options(threads));
      check_same_bits("another thread count", logits(other, out, together, false), expected);
    }
    int64_t first = 0;
    for (int64_t length : lengths) {
      TinyBatch alone({length}, {1}, 67);
      std::copy_n(together.tokens.begin() + first, length, alone.tokens.begin());
      check_same_bits("a sequence alone", logits(context, out, alone, false),
                      expected.view().rows(first, length));
      first += length;
    }
    for (int ranks : {2, 4}) {
      run_as_threads(ranks, [&](Communicator& world) {
        Context own(options(1));
        const Tensor got = logits(own, out, together, false, &world);
        if (first_difference(got, expected) >= 0) throw DataError("ranks differ in {}", info.name);
      });
    }
  }
}

TEST_CASE("integer schemes agree between instruction sets up to bf16 activations", "[quantize]") {
  // What follows a product (norms, attention, SwiGLU) is promised per set, so logits may differ;
  // the products themselves do not: tests/kernels/grouped_gemm_test.cc. Here: both sets load one
  // file.
  const TemporaryFolder folder;
  const std::string master = folder.path() + "/master";
  write_checkpoint(master, odd_shape());
  const std::string out = folder.path() + "/w8a8";
  quantize(master, out, with_scheme(Scheme::kW8A8));
  const TinyBatch batch({7}, {1}, 67);
  std::optional<Tensor> first;
  for (Isa isa : supported_isas()) {
    Context context(test_options(isa, 2));
    Tensor got = logits(context, out, batch, false);
    if (!first) {
      first = std::move(got);
    } else {
      CHECK(worst_difference(got, *first) < 0.3);
    }
  }
}

TEST_CASE("the policy keeps what it names and the audit counts bits", "[quantize]") {
  const TemporaryFolder folder;
  const std::string master = folder.path() + "/master";
  const ModelShape shape = odd_shape(false);
  write_checkpoint(master, shape);
  QuantizeOptions how = with_scheme(Scheme::kW4A8);
  how.policy.keep = {KeepRule::parse("^(embedding|head)$=w8a8"), KeepRule::parse("attention\\.wo")};
  const std::string out = folder.path() + "/mixed";
  quantize(master, out, how);
  const Audit audit = audit_checkpoint(CheckpointReader(out), how.policy);
  int64_t elements = 0;
  for (const TensorAudit& t : audit.tensors) {
    INFO(t.name);
    elements += t.elements;
    if (t.name == "head" || t.name == "embedding") {
      CHECK(t.stored == Scheme::kW8A8);
      CHECK(t.bits() == Approx(8 + 16.0 * 2 / 40));
    } else if (t.name.find("attention.wo") != std::string::npos) {
      CHECK(t.stored == Scheme::kBf16);
      CHECK(t.bits() == 16);
    } else if (t.name.find("router") != std::string::npos ||
               t.name.find("norm") != std::string::npos) {
      CHECK(t.fixed);
      CHECK(t.bits() == 32);
    } else {
      CHECK(t.stored == Scheme::kW4A8);
    }
  }
  CHECK(elements == audit.elements());
  CHECK(audit.mean_bits() > audit.mean_quantized_bits());
  CHECK(audit.file_bytes >= audit.bytes());
  // What the policy meant and the file does not hold is an error, as is a rule that names nothing.
  CHECK_THROWS_WITH(audit_checkpoint(CheckpointReader(out), with_scheme(Scheme::kW4A8).policy),
                    Catch::Contains("the policy meant w4a8"));
  CHECK_THROWS_AS(audit_checkpoint(CheckpointReader(master), how.policy), DataError);
  how.policy.keep.push_back(KeepRule::parse("no such tensor"));
  CHECK_THROWS_AS(quantize(master, out, how), ConfigError);
  CHECK_THROWS_AS(KeepRule::parse("a(b"), ConfigError);
  CHECK_THROWS_AS(KeepRule::parse("a=w3a8"), ConfigError);
  CHECK_THROWS_AS(quantization_method("magic"), ConfigError);
  // Mixed schemes share one input: the norm's output is wanted as codes and as bf16.
  QuantizeOptions mixed = with_scheme(Scheme::kW8A8);
  mixed.policy.keep = {KeepRule::parse("attention\\.wk|moe\\.up|ffn\\.gate")};
  quantize(master, out, mixed);
  Context context(options());
  const TinyBatch batch({11, 6}, {2}, 67);
  const Tensor expected = logits(context, out, batch, false);
  Context one(options(1));
  check_same_bits("mixed schemes", logits(one, out, batch, true), expected);
}

TEST_CASE("every method gives codes of the scheme, and a search is no worse than none",
          "[quantize]") {
  Context context(options());
  for (int64_t width : {5, 64, 90}) {
    const ParameterSpec spec{.name = "w", .shape = {6, width}, .role = ParameterRole::kMatrix};
    const Tensor w = random_tensor(DType::kF32, spec.shape, "w");
    for (const SchemeInfo& info : served_schemes()) {
      if (!info.quantized()) continue;
      double rtn_error = 0;
      for (const QuantizationMethod& method : quantization_methods()) {
        INFO(info.name << " " << method.name << " width " << width);
        const Tensor codes(info.weight, code_shape(info.scheme, spec.shape));
        const Tensor scales(DType::kBF16, scale_shape(spec.shape));
        const QuantizedWeight out{info.scheme, spec.shape, codes, scales};
        method.quantize(context, spec, w, out);
        const Tensor memory(
            DType::kU8, {static_cast<int64_t>(packed_bytes(context, info.scheme, 1, 6, width))});
        CHECK_NOTHROW(pack_weight(context, out, memory.view().data));
        const Tensor back(DType::kF32, spec.shape);
        dequantize_weight(context, out, back);
        double error = 0;
        for (int64_t i = 0; i < w.shape().elements(); ++i) {
          error += std::pow(element(back, i) - element(w, i), 2);
        }
        if (method.name == "rtn") rtn_error = error;
        if (method.name == "mse") CHECK(error <= rtn_error * 1.0001);
        Tensor bad = copy_of(w);
        set_element(bad, 3, INFINITY);
        CHECK_THROWS_AS(method.quantize(context, spec, bad, out), DataError);
      }
    }
  }
}

TEST_CASE("groups that fill the width take 8.5 and 4.5 bits", "[quantize]") {
  const ModelShape shape = ModelShape{.vocab = 64,
                                      .width = 64,
                                      .layers = 1,
                                      .heads = 2,
                                      .moe = {.experts = 2, .top_k = 1, .expert_width = 32}}
                               .resolved();
  const TemporaryFolder folder;
  write_checkpoint(folder.path() + "/master", shape);
  for (const SchemeInfo& info : served_schemes()) {
    const std::string out = folder.path() + "/" + std::string(info.name);
    quantize(folder.path() + "/master", out, with_scheme(info.scheme));
    const Audit audit = audit_checkpoint(CheckpointReader(out), with_scheme(info.scheme).policy);
    for (const TensorAudit& t : audit.tensors) {
      if (!t.fixed) CHECK(t.bits() == info.bits);
    }
  }
}

TEST_CASE("a quantized checkpoint is refused where values are needed", "[quantize]") {
  const TemporaryFolder folder;
  const std::string master = folder.path() + "/master";
  write_checkpoint(master, odd_shape());
  const std::string out = folder.path() + "/w8a8";
  quantize(master, out, with_scheme(Scheme::kW8A8));
  CHECK_THROWS_WITH(quantize(out, folder.path() + "/again", with_scheme(Scheme::kW4A8)),
                    Catch::Contains("quantized already"));
  Context context(options());
  CheckpointReader reader(out);
  CHECK(reader.metadata().at("next_step") == 3);
  const ModelShape shape = checkpoint_shape(reader);
  const auto parameters = load_for_inference(context, reader, shape, DType::kBF16, {0, 4});
  Parameter& wq = parameters->get("blocks.0.attention.wq");
  CHECK(!wq.value);
  const Tensor x(DType::kBF16, {2, 40});
  const Tensor dy(DType::kBF16, {2, 36});
  const std::vector<int64_t> offsets = {0, 2};
  CHECK_THROWS_WITH(linear_backward(context, dy, x, UnitSegments{offsets}, wq, AnyView{}),
                    Catch::Contains("has no gradient"));
  // The packings and tables weigh what the schemes say, and little more.
  ParameterSet training(context, shape, DType::kBF16, {0, 4}, true);
  CHECK(parameters->bytes() < training.bytes() / 3);
  // bf16 activations only, where the scheme decodes to bf16.
  CHECK_THROWS_AS(ParameterSet(context, shape, DType::kF32, {0, 4},
                               SchemeOf([](const ParameterSpec&) { return Scheme::kW8A16; })),
                  ConfigError);
  CHECK_NOTHROW(ParameterSet(context, shape, DType::kF32, {0, 4},
                             SchemeOf([](const ParameterSpec&) { return Scheme::kW8A8; })));
}

}  // namespace
}  // namespace degu
