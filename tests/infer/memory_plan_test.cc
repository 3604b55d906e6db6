// Scratch memory is predicted before the first pass.
#include "infer/memory_plan.h"

#include <catch2/catch.hpp>

#include "tests/infer/filled_parameters.h"
#include "tests/infer/small_models.h"

namespace degu {
namespace {

using testing::ModelCase;
using testing::serving_models;

TEST_CASE("no pass takes more scratch than predicted, and not much is predicted for nothing") {
  for (const ModelCase& c : serving_models()) {
    for (Scheme scheme : {Scheme::kFp32, Scheme::kBf16, Scheme::kW8A8, Scheme::kW4A16}) {
      for (int threads : {1, 3}) {
        INFO(c.name << ", " << scheme_info(scheme).name << ", " << threads << " threads");
        Context context({.threads = threads, .scratch_bytes = size_t{1} << 30});
        const DType type = scheme == Scheme::kFp32 ? DType::kF32 : DType::kBF16;
        ParameterSet parameters(context, c.shape, type, {0, c.shape.moe.experts},
                                [&](const ParameterSpec&) { return scheme; });
        testing::fill_parameters(context, parameters, scheme);
        const Transformer model(parameters);
        const PassLimits limits{.rows = 512, .logit_rows = 512};
        const size_t bound = scratch_bytes(threads, parameters, limits, 1);
        ModelRunner runner(context, parameters, model, limits, type, 8);
        const size_t before = context.scratch().peak();
        PassPlan plan;
        SequenceRows& rows = plan.sequences.emplace_back();
        rows.tokens.assign(512, 5);
        rows.pages = rows.fresh = {0, 1, 2, 3, 4, 5, 6, 7};
        runner.run(plan);
        const size_t peak = context.scratch().peak();
        CHECK(before <= peak);
        CHECK(peak <= bound);
        // Beside what kernels keep per thread, less than the activations.
        const size_t kernels = static_cast<size_t>(threads) * (size_t{1} << 20);
        CHECK(bound <= kernels + ModelRunner::workspace_bytes(parameters, model, limits));
      }
    }
  }
}

}  // namespace
}  // namespace degu
