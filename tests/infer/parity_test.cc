#include "infer/parity.h"

#include <catch2/catch.hpp>
#include <mutex>

#include "comm/thread_comm.h"
#include "tests/infer/small_models.h"
#include "tests/support/device_testing.h"

namespace degu {
namespace {

using testing::ModelCase;
using testing::serving_models;

ParameterSet& filled(ParameterSet& parameters, Context& context) {
  parameters.initialise(context, 7);
  parameters.pack(context);
  return parameters;
}

void require_equal_bits(const ParityReport& report, int64_t at_least) {
  for (const ParityPath& path : report.paths) {
    INFO(path.name << ": " << path.first_mismatch);
    CHECK(path.comparisons > 0);
    CHECK(path.mismatches == 0);
  }
  CHECK(report.comparisons() >= at_least);
}

TEST_CASE("logits and experts are the same bits on every path") {
  for (const ModelCase& c : serving_models()) {
    for (DType type : {DType::kBF16, DType::kF32}) {
      INFO(c.name << ", " << dtype_name(type));
      Context context({.threads = 1});
      ParameterSet parameters(context, c.shape, type, {0, c.shape.moe.experts}, false);
      const ParityOptions options{.sequences = 7, .rounds = 1, .threads = {1, 2}, .kv_type = type};
      require_equal_bits(check_parity(context, filled(parameters, context), options), 5000);
    }
  }
}

TEST_CASE("an int8 cache is rounded on every path, the training forward's too") {
  for (const ModelCase& c : serving_models()) {
    INFO(c.name);
    Context context({.threads = 1});
    ParameterSet parameters(context, c.shape, DType::kBF16, {0, c.shape.moe.experts}, false);
    const ParityOptions options{.sequences = 7, .rounds = 1, .kv_type = DType::kI8};
    require_equal_bits(check_parity(context, filled(parameters, context), options), 5000);
  }
}

TEST_CASE("every instruction set keeps parity") {
  const ModelShape shape = serving_models().front().shape;
  for (Isa isa : kAllIsas) {
    if (!isa_supported(isa)) continue;
    INFO(isa_name(isa));
    Context context({.threads = 1, .isa = isa});
    ParameterSet parameters(context, shape, DType::kBF16, {0, shape.moe.experts}, false);
    require_equal_bits(check_parity(context, filled(parameters, context),
                                    {.sequences = 4, .rounds = 1, .threads = {1}}),
                       1000);
  }
}

TEST_CASE("a GPU keeps parity", "[device]") {
  if (!testing::has_gpu()) return;
  for (const ModelCase& c : serving_models()) {
    for (DType type : {DType::kBF16, DType::kF32}) {
      for (DType kv : {type, DType::kI8}) {
        INFO(c.name << ", " << dtype_name(type) << ", cache " << dtype_name(kv));
        Context context({.scratch_bytes = size_t{1} << 27, .device = DeviceType::kCuda});
        ParameterSet parameters(context, c.shape, type, {0, c.shape.moe.experts}, false);
        const ParityOptions options{.sequences = 4, .rounds = 1, .longest = 80, .kv_type = kv};
        require_equal_bits(check_parity(context, filled(parameters, context), options), 1000);
      }
    }
  }
}

TEST_CASE("experts spread over ranks leave no trace") {
  for (const ModelCase& c : serving_models()) {
    if (c.shape.moe.experts == 0) continue;
    for (int ranks : {1, 2, 4}) {
      INFO(c.name << " over " << ranks << " ranks");
      std::mutex mutex;
      ParityReport total;
      run_as_threads(ranks, [&](Communicator& group) {
        Context context({.threads = 1, .scratch_bytes = size_t{1} << 30});
        const int64_t here = c.shape.moe.experts / ranks;
        ParameterSet whole(context, c.shape, DType::kBF16, {0, c.shape.moe.experts}, false);
        ParameterSet part(context, c.shape, DType::kBF16, {group.rank() * here, here}, false);
        const ParityReport report =
            check_expert_parity(group, context, filled(whole, context), filled(part, context),
                                {.sequences = 3, .rounds = 1});
        const std::lock_guard lock(mutex);
        total.add(report);
      });
      require_equal_bits(total, 500);
    }
  }
}

TEST_CASE("a changed weight is found") {
  // The comparison can fail: the reference and the sharded model hold different weights.
  const ModelShape shape = serving_models().front().shape;
  run_as_threads(1, [&](Communicator& group) {
    Context context({.threads = 1});
    ParameterSet whole(context, shape, DType::kBF16, {0, shape.moe.experts}, false);
    ParameterSet part(context, shape, DType::kBF16, {0, shape.moe.experts}, false);
    filled(whole, context);
    filled(part, context);
    part.get("blocks.1.moe.up").value.as<float>()[5] += 1.0f;
    part.pack(context);
    const ParityReport report =
        check_expert_parity(group, context, whole, part, {.sequences = 3, .rounds = 1});
    CHECK(report.mismatches() > 0);
    CHECK_FALSE(report.paths.front().first_mismatch.empty());
  });
}

TEST_CASE("models that cannot keep the promise are refused") {
  ModelShape shape = serving_models().front().shape;
  CHECK_NOTHROW(require_servable(shape));
  shape.moe.capacity_factor = 1.25;
  CHECK_THROWS_WITH(require_servable(shape), Catch::Matchers::Contains("capacity_factor"));
}

TEST_CASE("a plan survives the journey between ranks") {
  PassPlan plan;
  plan.sequences.push_back(
      {.first_position = 64, .tokens = {5, 6, 7}, .pages = {3, 9}, .fresh = {9}, .logits_from = 2});
  plan.sequences.push_back({.first_position = 0, .tokens = {1}, .pages = {4}, .fresh = {}});
  const std::string bytes = encode_plan(plan);
  const PassPlan back = decode_plan(bytes);
  REQUIRE(back.sequences.size() == 2);
  CHECK(back.sequences[0].tokens == plan.sequences[0].tokens);
  CHECK(back.sequences[0].pages == plan.sequences[0].pages);
  CHECK(back.sequences[0].fresh == plan.sequences[0].fresh);
  CHECK(back.sequences[0].logits_from == 2);
  CHECK(back.rows() == 4);
  CHECK(back.logit_rows() == 2);
  for (size_t cut = 0; cut < bytes.size(); ++cut) {
    CHECK_THROWS_AS(decode_plan(std::string_view(bytes).substr(0, cut)), DataError);
  }
}

}  // namespace
}  // namespace degu
