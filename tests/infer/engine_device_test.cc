// The engine over a model on the GPU: requests that come and go, graphs and passes that are none.
#include <catch2/catch.hpp>

#include "tests/infer/answer.h"
#include "tests/infer/small_bench.h"
#include "tests/infer/small_tokenizer.h"
#include "tests/support/device_testing.h"

namespace degu {
namespace {

using testing::Answer;
using testing::Bench;
using testing::random_prompt;
using testing::run_alone;
using testing::small_tokenizer;

constexpr size_t kRequests = 6;

// Prompts around a chunk of prefill, some with a beginning in common; texts of a few tokens.
Request short_request(uint64_t i) {
  Request r;
  r.prompt = random_prompt(i % 3, 5 + 13 * i);
  r.max_tokens = static_cast<int64_t>(3 + i);
  r.sampling.seed = i;
  r.sampling.temperature = i % 2 == 0 ? 0 : 1;
  r.sampling.logprobs = 1;
  r.ignore_eos = true;
  return r;
}

TEST_CASE("on a GPU too a request's text does not depend on who else is served", "[device]") {
  if (!testing::has_gpu()) return;
  const ContextOptions gpu{
      .threads = 1, .scratch_bytes = size_t{1} << 27, .device = DeviceType::kCuda};
  const PassLimits limits{.rows = 32, .logit_rows = 24};
  std::vector<Answer> alone;
  {
    Bench bench(8, limits, testing::shape_for_text(), 7, gpu);
    for (uint64_t i = 0; i < kRequests; ++i) {
      Engine engine(small_tokenizer(), bench.lane, {.prefix_cache = false});
      alone.push_back(run_alone(engine, short_request(i)));
      REQUIRE(alone.back().tokens.size() == 3 + i);
    }
  }
  // Two pages: most wait, for one another's.
  for (int32_t pages : {2, 8}) {
    Bench bench(pages, limits, testing::shape_for_text(), 7, gpu);
    Engine engine(small_tokenizer(), bench.lane, {.max_running = 4});
    std::vector<Answer> answers(kRequests);
    for (uint64_t i = 0; i < kRequests; ++i) {
      engine.submit(short_request(i), answers[i].sink());
      engine.step();
    }
    while (engine.step()) {
    }
    for (size_t i = 0; i < kRequests; ++i) {
      INFO("request " << i << ", " << pages << " pages");
      CHECK(answers[i].same_as(alone[i]));
    }
    CHECK(engine.stats().pages_in_use == 0);
    CHECK(bench.runner.graph_stats().launched > 0);
  }
}

}  // namespace
}  // namespace degu
