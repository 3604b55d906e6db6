// From a training checkpoint to logits in every scheme, through the model that trained it.
#include "compress/quantize.h"

#include <catch2/catch.hpp>
#include <nlohmann/json.hpp>
#include <optional>

#include "comm/thread_comm.h"
#include "tests/compress/checkpoints.h"
#include "tests/support/temporary_folder.h"

namespace degu {
namespace {

using namespace degu::testing;
using degu::test::TemporaryFolder;

QuantizeOptions with_scheme(Scheme scheme) {
  QuantizeOptions result;
  result.policy.scheme = scheme;
  result.method = "rtn";
  return result;
}

void quantize(const std::string& from, const std::string& to, const QuantizeOptions& how) {
  Context context(options());
  CheckpointReader reader(from);
  const std::unique_ptr<Communicator> self = make_self_communicator();
  quantize_checkpoint(context, *self, reader, to, how);
}

std::vector<SchemeInfo> served_schemes() {
  std::vector<SchemeInfo> schemes;
  for (const SchemeInfo& info : kSchemes) {
    if (info.scheme != Scheme::kFp32) schemes.push_back(info);
  }
  return schemes;
}

TEST_CASE("every scheme serves a checkpoint, close to bf16 by its number of bits", "[quantize]") {
  const TemporaryFolder folder;
  for (bool tied : {true, false}) {
    const std::string master = folder.path() + "/master";
    write_checkpoint(master, odd_shape(tied));
    Context context(options());
    const TinyBatch batch({13, 1, 20}, {3}, 67);
    const Tensor expected = logits(context, master, batch, Keep::kNothing);
    double largest = 0;
    for (int64_t i = 0; i < expected.shape().elements(); ++i) {
      largest = std::max(largest, std::fabs(element(expected, i)));
    }
    for (const SchemeInfo& info : served_schemes()) {
      INFO(info.name << (tied ? " tied" : " untied"));
      const std::string out = folder.path() + "/" + std::string(info.name);
      quantize(master, out, with_scheme(info.scheme));
      const Tensor got = logits(context, out, batch, Keep::kNothing);
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
    const Tensor expected = logits(context, out, together, Keep::kNothing);
    check_same_bits("the training forward", logits(context, out, together, Keep::kAll), expected);
    for (int threads : {1, 3}) {
      Context other(options(threads));
      check_same_bits("another thread count", logits(other, out, together, Keep::kNothing),
                      expected);
    }
    int64_t first = 0;
    for (int64_t length : lengths) {
      TinyBatch alone({length}, {1}, 67);
      std::copy_n(together.tokens.begin() + first, length, alone.tokens.begin());
      check_same_bits("a sequence alone", logits(context, out, alone, Keep::kNothing),
                      expected.view().rows(first, length));
      first += length;
    }
    for (int ranks : {2, 4}) {
      run_as_threads(ranks, [&](Communicator& world) {
        Context own(options(1));
        const Tensor got = logits(own, out, together, Keep::kNothing, &world);
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
    Tensor got = logits(context, out, batch, Keep::kNothing);
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
  // Mixed schemes share one input: the norm's output is wanted as codes and as bf16.
  QuantizeOptions mixed = with_scheme(Scheme::kW8A8);
  mixed.policy.keep = {KeepRule::parse("attention\\.wk|moe\\.up|ffn\\.gate")};
  quantize(master, out, mixed);
  Context context(options());
  const TinyBatch batch({11, 6}, {2}, 67);
  const Tensor expected = logits(context, out, batch, Keep::kNothing);
  Context one(options(1));
  check_same_bits("mixed schemes", logits(one, out, batch, Keep::kAll), expected);
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
      if (t.fixed) continue;
      const Scheme held = t.name == "embedding" ? table_scheme(info.scheme) : info.scheme;
      CHECK(t.stored == held);
      CHECK(t.bits() == scheme_info(held).bits);
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
