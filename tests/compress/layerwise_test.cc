// Calibrated quantization of whole checkpoints.
#include "compress/layerwise.h"

#include <catch2/catch.hpp>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "comm/thread_comm.h"
#include "compress/fold.h"
#include "compress/tensors.h"
#include "tests/compress/checkpoints.h"
#include "tests/support/temporary_folder.h"
#include "tests/train/tiny_run.h"

namespace degu {
namespace {

using namespace degu::testing;
using degu::test::TemporaryFolder;

// Of the tiny shards' vocabulary: grouped queries, a dense layer, a shared expert.
ModelShape shape_for(const TokenDataset& dataset, bool tied) {
  ModelShape shape = odd_shape(tied);
  shape.vocab = dataset.vocab_size();
  return shape;
}

QuantizeOptions calibrated(const TokenDataset& dataset, std::string_view method) {
  QuantizeOptions how;
  how.policy.scheme = Scheme::kW4A8;
  how.method = method;
  how.calibration.dataset = &dataset;
  how.calibration.data.sequence_length = 32;
  how.calibration.data.confine_documents = true;
  how.calibration.tokens = 9000;  // more than one pass, the last one short
  return how;
}

QuantizeReport quantize(const std::string& from, const std::string& to, const QuantizeOptions& how,
                        int ranks = 1) {
  QuantizeReport report;
  run_as_threads(ranks, [&](Communicator& world) {
    Context context(options(1));
    CheckpointReader reader(from);
    QuantizeOptions mine = how;
    if (world.rank() != 0) mine.progress = nullptr;
    QuantizeReport each = quantize_checkpoint(context, world, reader, to, mine);
    if (world.rank() == 0) report = each;
  });
  return report;
}

void check_same_tensors(const std::string& a, const std::string& b) {
  CheckpointReader first(a), second(b);
  REQUIRE(first.list().size() == second.list().size());
  for (const CheckpointReader::TensorInfo& info : first.list()) {
    const Tensor x(info.dtype, info.shape), y(info.dtype, info.shape);
    first.read(info.name, x);
    second.read(info.name, y);
    check_same_bits(info.name, x, y);
  }
}

TEST_CASE("folding leaves the model the function it was", "[quantize]") {
  // AWQ's preparation of every block and of an untied head, on Hessians of made-up inputs; then the
  // fp32 model of the new values against that of the old ones.
  const TemporaryFolder folder;
  const std::string before = folder.path() + "/before";
  const std::string after = folder.path() + "/after";
  const ModelShape shape = odd_shape(/*tied=*/false);
  write_checkpoint(before, shape);
  Context context(options());
  const std::unique_ptr<Communicator> self = make_self_communicator();
  CheckpointReader reader(before);
  CheckpointWriter writer(*self, after, reader.metadata());
  const std::vector<ParameterSpec> specs = parameter_specs(shape);
  int64_t changed = 0;
  for (int layer = -1; layer < shape.layers; ++layer) {
    const std::string prefix = layer < 0 ? "" : block_prefix(layer);
    BlockProblem problem{
        .world = *self, .shape = shape, .layer = layer, .experts = {0, shape.moe.experts}};
    std::map<std::string, const ParameterSpec*> here;
    for (const ParameterSpec& spec : specs) {
      const bool of_end = spec.name == "final_norm" || spec.name == "head";
      if (layer < 0 ? !of_end : !spec.name.starts_with(prefix)) continue;
      const std::string name = spec.name.substr(prefix.size());
      problem.values[name] = read_value(reader, spec, {});
      problem.schemes[name] = quantizable(spec.role) ? Scheme::kW4A8 : Scheme::kFp32;
      here[name] = &spec;
    }
    for (const Site& site : block_sites(shape, layer)) {
      const AnyView w = problem.value(site.matrices[0]);
      const int64_t inner = w.dim(w.shape.rank() - 1);
      const int64_t n = site.per_expert ? shape.moe.experts : 1;
      SiteStatistics& statistics = problem.statistics[site.name];
      statistics.hessian_NDD = Tensor(DType::kF32, {n, inner, inner});
      statistics.rows.assign(static_cast<size_t>(n), 100);
      statistics.usable.assign(static_cast<size_t>(n), 1);
      for (int64_t i = 0; i < n * inner; ++i) {  // channels of very different size
        set_element(statistics.hessian_NDD.view(),
                    i / inner * inner * inner + i % inner * (inner + 1),
                    std::exp2(static_cast<double>(i * 7 % 12)));
      }
    }
    prepare_awq(context, problem);
    for (const auto& [name, spec] : here) {
      const Tensor old = read_value(reader, *spec, {});
      changed += first_difference(problem.value(name), old) >= 0;
      writer.add(std::string(kModelPrefix) + spec->name, problem.value(name));
    }
  }
  const Tensor embedding = read_value(reader, specs.front(), {});
  writer.add("model/embedding", embedding);
  writer.attach("config.yaml", reader.attachment("config.yaml"));
  writer.commit();
  CHECK(changed > 20);  // nearly every matrix and norm

  const TinyBatch batch({13, 1, 20}, {3}, 67);
  const Tensor expected = logits(context, before, batch, Keep::kNothing, nullptr, DType::kF32);
  const Tensor got = logits(context, after, batch, Keep::kNothing, nullptr, DType::kF32);
  double largest = 0;
  for (int64_t i = 0; i < expected.shape().elements(); ++i) {
    largest = std::max(largest, std::fabs(element(expected, i)));
  }
  CHECK(worst_difference(got, expected) < 3e-5 * largest);
}

TEST_CASE("the factor that experts share keeps the router's bits", "[quantize]") {
  // Powers of two: norm(x) gain / s times router * s is the same sum of the same products.
  const std::vector<float> factor = {0.5f, 2, 1, 8, 0.125f};
  Tensor gain = random_tensor(DType::kF32, {5}, "gain");
  Tensor router = random_tensor(DType::kF32, {3, 5}, "router");
  const Tensor old_gain = copy_of(gain), old_router = copy_of(router);
  divide_gain(gain, factor);
  scale_columns(router, factor);
  for (int64_t e = 0; e < 3; ++e) {
    for (int64_t d = 0; d < 5; ++d) {
      const auto product = [&](const Tensor& r, const Tensor& g) {
        return r.as<float>()(e, d) * static_cast<float>(bf16(0.7f * g.as<float>()[d]));
      };
      CHECK(product(router, gain) == product(old_router, old_gain));
    }
  }
}

TEST_CASE("calibrated methods: the same bits on any number of ranks, every expert counted",
          "[quantize]") {
  const TokenDataset dataset({tiny_shards()});
  const TemporaryFolder folder;
  for (const bool tied : {true, false}) {
    const std::string master = folder.path() + "/master";
    const ModelShape shape = shape_for(dataset, tied);
    write_checkpoint(master, shape);
    for (const QuantizationMethod& method : quantization_methods()) {
      INFO(method.name << (tied ? " tied" : " untied"));
      const QuantizeOptions how = calibrated(dataset, method.name);
      const std::string out = folder.path() + "/one";
      const QuantizeReport report = quantize(master, out, how);
      CHECK(report.method == method.name);
      CHECK_FALSE(std::filesystem::exists(out + ".layers"));
      CHECK_NOTHROW(audit_checkpoint(CheckpointReader(out), how.policy));
      for (int ranks : {2, 4}) {
        const std::string other = folder.path() + "/more";
        quantize(master, other, how, ranks);
        check_same_tensors(out, other);
      }
      CHECK(report.coverage.size() ==
            (method.calibrated ? 2u : 0u));  // of three layers one is dense
      for (const ExpertCoverage& c : report.coverage) {
        int64_t rows = 0;
        for (int64_t tokens : c.tokens_E) rows += tokens;
        CHECK(rows == report.calibration_tokens * shape.moe.top_k);
        CHECK(c.minimum == 40);
      }
      // It loads, and gives what the values give, roughly: routers of random weights send some
      // tokens elsewhere. Unrelated logits would differ by 1.4 of their size.
      Context context(options());
      const TinyBatch batch({13, 1, 20}, {3}, 67);
      const Tensor expected = logits(context, master, batch, Keep::kNothing);
      const Tensor got = logits(context, out, batch, Keep::kNothing);
      double size = 0, difference = 0;
      for (int64_t i = 0; i < expected.shape().elements(); ++i) {
        size += std::pow(element(expected, i), 2);
        difference += std::pow(element(got, i) - element(expected, i), 2);
      }
      INFO(std::sqrt(difference / size));
      CHECK(std::sqrt(difference / size) < 0.5);
    }
  }
  CHECK_THROWS_WITH(
      quantize(folder.path() + "/master", folder.path() + "/three", calibrated(dataset, "awq"), 3),
      Catch::Contains("do not divide"));
}

TEST_CASE("a run that was stopped goes on and ends with the same bits", "[quantize]") {
  const TokenDataset dataset({tiny_shards()});
  const TemporaryFolder folder;
  const std::string master = folder.path() + "/master";
  write_checkpoint(master, shape_for(dataset, false));
  for (const char* method : {"awq", "gptq"}) {
    INFO(method);
    const QuantizeOptions how = calibrated(dataset, method);
    const std::string whole = folder.path() + "/whole";
    CHECK(quantize(master, whole, how).layers_resumed == 0);
    QuantizeOptions stopping = how;
    const std::string out = folder.path() + "/" + method;
    int calls = 0;
    stopping.progress = [&](int64_t, int64_t, const std::string&) {
      if (++calls == 7) throw IoError("stopped here");
    };
    CHECK_THROWS_WITH(quantize(master, out, stopping, 2), Catch::Contains("stopped here"));
    CHECK_FALSE(std::filesystem::exists(out));
    CHECK(quantize(master, out, how).layers_resumed == 1);
    check_same_tensors(whole, out);
    // Partial results of other arguments are not taken.
    std::filesystem::remove_all(out);
    calls = 0;
    CHECK_THROWS(quantize(master, out, stopping));
    QuantizeOptions other = how;
    other.calibration.tokens += 500;
    CHECK(quantize(master, out, other).layers_resumed == 0);
  }
}

TEST_CASE("an expert that calibration hardly reached falls back and is named", "[quantize]") {
  const TokenDataset dataset({tiny_shards()});
  const TemporaryFolder folder;
  const std::string master = folder.path() + "/master";
  const ModelShape shape = shape_for(dataset, true);
  write_checkpoint(master, shape);
  QuantizeOptions how = calibrated(dataset, "gptq");
  how.policy.keep = {KeepRule::parse("attention|ffn|shared|embedding")};
  const auto run = [&](const std::string& name, int64_t minimum, bool all_tokens, int ranks) {
    how.calibration.min_expert_tokens = minimum;
    how.calibration.fallback_all_tokens = all_tokens;
    return quantize(master, folder.path() + "/" + name, how, ranks);
  };
  const QuantizeReport none = run("routed", 1, true, 1);
  int64_t least = none.calibration_tokens;
  for (const ExpertCoverage& c : none.coverage) {
    CHECK(std::count(c.fell_back_E.begin(), c.fell_back_E.end(), 1) == 0);
    least = std::min(least, *std::min_element(c.tokens_E.begin(), c.tokens_E.end()));
  }
  // Exactly those below the minimum fall back.
  const QuantizeReport some = run("some", least + 1, true, 1);
  int64_t fell = 0;
  for (const ExpertCoverage& c : some.coverage) {
    for (size_t e = 0; e < c.tokens_E.size(); ++e) {
      CHECK((c.fell_back_E[e] != 0) == (c.tokens_E[e] <= least));
      fell += c.fell_back_E[e];
    }
  }
  CHECK(fell >= 1);
  CHECK(CheckpointReader(folder.path() + "/some")
            .metadata()["quantization"]["calibration"]["experts"]
            .size() == 2);
  // All of them, on one and two ranks.
  run("all", 1 << 20, true, 1);
  run("all on two", 1 << 20, true, 2);
  check_same_tensors(folder.path() + "/all", folder.path() + "/all on two");
  // Rounded to nearest: the codes of rtn.
  run("nearest", 1 << 20, false, 2);
  QuantizeOptions rtn = how;
  rtn.method = "rtn";
  quantize(master, folder.path() + "/rtn", rtn);
  check_same_tensors(folder.path() + "/nearest", folder.path() + "/rtn");
  CheckpointReader all(folder.path() + "/all"), nearest(folder.path() + "/nearest"),
      routed(folder.path() + "/routed");
  const std::string name = "model/blocks.1.moe.down";
  const CheckpointReader::TensorInfo info = all.info(name);
  const Tensor a(info.dtype, info.shape), b(info.dtype, info.shape), c(info.dtype, info.shape);
  all.read(name, a);
  nearest.read(name, b);
  routed.read(name, c);
  CHECK(first_difference(a, b) >= 0);
  CHECK(first_difference(a, c) >= 0);
}

TEST_CASE("calibration refuses shards of another vocabulary", "[quantize]") {
  const TokenDataset dataset({tiny_shards()});
  const TemporaryFolder folder;
  const std::string master = folder.path() + "/master";
  write_checkpoint(master, odd_shape());
  CHECK_THROWS_WITH(quantize(master, folder.path() + "/out", calibrated(dataset, "awq")),
                    Catch::Contains("the shards' tokenizer has"));
}

}  // namespace
}  // namespace degu
