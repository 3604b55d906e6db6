#include "infer/engine.h"

#include <catch2/catch.hpp>
#include <thread>

#include "comm/thread_comm.h"
#include "tests/infer/answer.h"
#include "tests/infer/small_bench.h"
#include "tests/infer/small_tokenizer.h"

namespace degu {
namespace {

using testing::Answer;
using testing::Bench;
using testing::random_prompt;
using testing::run_alone;
using testing::shape_for_text;
using testing::small_tokenizer;

// Requests of every kind: lengths around pages, shared beginnings, all samplers.
Request varied_request(uint64_t i) {
  const RandomStream draw(i, "request");
  Request r;
  r.prompt = random_prompt(draw.below(0, 3), 1 + draw.below(1, 150));
  if (draw.below(2, 2) == 0) {
    const std::vector<int32_t> tail = random_prompt(100 + i, 1 + draw.below(3, 20));
    r.prompt.insert(r.prompt.end(), tail.begin(), tail.end());
  }
  r.max_tokens = static_cast<int64_t>(1 + draw.below(4, 60) + 110 * draw.below(13, 2));
  r.sampling.seed = i;
  r.sampling.temperature = draw.below(5, 3) == 0 ? 0 : 1;
  if (draw.below(6, 3) == 0) r.sampling.top_k = 20;
  if (draw.below(7, 3) == 0) r.sampling.top_p = 0.9;
  if (draw.below(8, 4) == 0) r.sampling.repetition_penalty = 1.2;
  if (draw.below(9, 4) == 0) r.sampling.logprobs = 2;
  if (draw.below(10, 3) == 0) r.stop = {"a", "bc"};
  if (draw.below(11, 4) == 0) r.echo = true;
  r.ignore_eos = draw.below(12, 2) == 0;
  return r;
}

constexpr size_t kRequests = 24;

// Each request alone, with plenty of memory, no cached prefix and no speculation.
const std::vector<Answer>& alone() {
  static const std::vector<Answer> answers = [] {
    Bench bench(16, {.rows = 256, .logit_rows = 256});
    std::vector<Answer> all;
    for (uint64_t i = 0; i < kRequests; ++i) {
      Engine engine(small_tokenizer(), bench.lane, {.prefix_cache = false});
      all.push_back(run_alone(engine, varied_request(i)));
      REQUIRE(all.back().finish);
    }
    return all;
  }();
  return answers;
}

// All requests through one engine, arriving while others run.
void run_together(Engine& engine, uint64_t seed) {
  const RandomStream draw(seed, "arrivals");
  std::vector<Answer> answers(kRequests);
  size_t next = 0;
  for (uint64_t pass = 0; next < kRequests || engine.step(); ++pass) {
    for (uint64_t n = draw.below(pass, 4); n > 0 && next < kRequests; --n, ++next) {
      engine.submit(varied_request(next), answers[next].sink());
    }
    if (next < kRequests) engine.step();
  }
  for (size_t i = 0; i < kRequests; ++i) {
    INFO("request " << i << ", arrivals " << seed);
    CHECK(answers[i].same_as(alone()[i]));
    CHECK(answers[i].events_after_end == 0);
  }
  const EngineStats stats = engine.stats();
  CHECK(stats.running == 0);
  CHECK(stats.waiting == 0);
  CHECK(stats.pages_in_use == 0);
  CHECK(stats.failure.empty());
}

TEST_CASE("a request's text does not depend on who else is served, nor on memory") {
  // Six pages hold barely two of the longest requests: they queue, and are preempted.
  Bench small(6);
  int64_t preemptions = 0;
  int64_t cached = 0;
  for (uint64_t seed = 0; seed < 4; ++seed) {
    Engine engine(small_tokenizer(), small.lane, {.max_running = 6});
    run_together(engine, seed);
    preemptions += engine.stats().preemptions;
    cached += engine.stats().cached_tokens;
  }
  CHECK(preemptions > 0);
  CHECK(cached > 0);
  Bench large(200);
  Engine engine(small_tokenizer(), large.lane, {});
  run_together(engine, 9);
  CHECK(engine.stats().preemptions == 0);
}

TEST_CASE("text is the same at any depth of speculation") {
  Bench bench(12);
  SECTION("n-gram look-up") {
    for (int depth : {1, 3, 8}) {
      for (bool adaptive : {false, true}) {
        Engine engine(small_tokenizer(), bench.lane,
                      {.max_running = 6, .speculation = {.depth = depth, .adaptive = adaptive}},
                      std::make_unique<NgramDrafter>());
        run_together(engine, static_cast<uint64_t>(depth));
        if (!adaptive) CHECK(engine.stats().drafts_proposed[0] > 0);
      }
    }
  }
  SECTION("a draft model that is the model itself") {
    Bench draft(60);
    Engine engine(small_tokenizer(), bench.lane,
                  {.max_running = 6, .speculation = {.depth = 4, .adaptive = false}},
                  std::make_unique<ModelDrafter>(draft.lane, 300));
    run_together(engine, 4);
    // Same weights and the same noise: every draft stands, but those behind an answer's end.
    const EngineStats stats = engine.stats();
    CHECK(stats.drafts_proposed[0] > 0);
    CHECK(stats.drafts_accepted[0] == stats.drafts_proposed[0]);
    CHECK(5 * stats.drafts_accepted[3] > 4 * stats.drafts_proposed[3]);
  }
  SECTION("another model, with too little memory of its own") {
    Bench draft(4, {.rows = 16, .logit_rows = 16}, shape_for_text(), 8);
    Engine engine(small_tokenizer(), bench.lane,
                  {.max_running = 6, .speculation = {.depth = 3, .adaptive = false}},
                  std::make_unique<ModelDrafter>(draft.lane, 300));
    run_together(engine, 5);
  }
}

TEST_CASE("experts over ranks: rank 0 schedules, the others follow") {
  for (int ranks : {2, 4}) {
    INFO(ranks << " ranks");
    run_as_threads(ranks, [&](Communicator& group) {
      Context context({.threads = 1, .scratch_bytes = size_t{1} << 30});
      const ModelShape shape = shape_for_text();
      const int64_t here = shape.moe.experts / ranks;
      ParameterSet part(context, shape, DType::kBF16, {group.rank() * here, here}, false);
      part.initialise(context, 7);
      part.pack(context);
      const Transformer model(part, {.group = &group});
      ModelRunner runner(context, part, model, {.rows = 40, .logit_rows = 40}, DType::kBF16, 6);
      if (group.rank() != 0) {
        GroupLanes::follow(group, context, runner);
        return;
      }
      GroupLanes lanes(group, context, runner);
      Engine engine(small_tokenizer(), lanes, {.max_running = 3});
      run_together(engine, 2);
    });
  }
}

TEST_CASE("prompts that begin alike share pages") {
  Bench bench(40);
  Engine engine(small_tokenizer(), bench.lane, {});
  Request request{.prompt = random_prompt(1, 200), .max_tokens = 4};
  CHECK(run_alone(engine, request).usage.cached_tokens == 0);
  request.prompt.push_back(17);
  CHECK(run_alone(engine, request).usage.cached_tokens == 192);
  request.prompt[70] += request.prompt[70] == 299 ? -1 : 1;
  CHECK(run_alone(engine, request).usage.cached_tokens == 64);
  // Of a prompt of whole pages the last is computed again: its logits are wanted.
  request.prompt = random_prompt(1, 128);
  CHECK(run_alone(engine, request).usage.cached_tokens == 64);
}

TEST_CASE("how an answer ends") {
  Bench bench(4);
  Engine engine(small_tokenizer(), bench.lane, {.context = 100});
  Request request{.prompt = random_prompt(2, 90), .max_tokens = 50, .ignore_eos = true};
  SECTION("at the context limit") {
    const Answer answer = run_alone(engine, request);
    CHECK(answer.finish == FinishReason::kLength);
    CHECK(answer.tokens.size() == 10);
    CHECK(answer.usage.completion_tokens == 10);
  }
  SECTION("at max_tokens") {
    request.max_tokens = 3;
    CHECK(run_alone(engine, request).tokens.size() == 3);
    request.max_tokens = 0;
    const Answer none = run_alone(engine, request);
    CHECK(none.finish == FinishReason::kLength);
    CHECK(none.tokens.empty());
  }
  SECTION("at the end-of-sequence token") {
    request.ignore_eos = false;
    request.prompt.resize(20);
    request.sampling.logit_bias = {{small_tokenizer().eos_id(), 50.0f}};
    const Answer answer = run_alone(engine, request);
    CHECK(answer.finish == FinishReason::kStop);
    CHECK(answer.tokens == std::vector<int32_t>{small_tokenizer().eos_id()});
    CHECK(answer.text.empty());
  }
  SECTION("at its deadline") {
    request.deadline = Clock::now();
    CHECK(run_alone(engine, request).finish == FinishReason::kDeadline);
  }
  SECTION("when cancelled, and its pages are free") {
    Answer answer;
    const RequestId id = engine.submit(request, answer.sink());
    engine.step();
    engine.step();
    engine.cancel(id);
    engine.cancel(id + 1000);
    while (engine.step()) {
    }
    CHECK(answer.finish == FinishReason::kCancelled);
    CHECK(engine.stats().pages_in_use == 0);
  }
}

TEST_CASE("the prompt's scores are those that sampling would see") {
  Bench bench(8);
  Engine engine(small_tokenizer(), bench.lane, {});
  Request request{.prompt = random_prompt(3, 70), .max_tokens = 6, .ignore_eos = true};
  request.sampling.logprobs = 1;
  const Answer drawn = run_alone(engine, request);
  Request scoring = request;
  scoring.prompt.insert(scoring.prompt.end(), drawn.tokens.begin(), drawn.tokens.end());
  scoring.max_tokens = 0;
  scoring.echo = true;
  const Answer scored = run_alone(engine, scoring);
  REQUIRE(scored.tokens == scoring.prompt);
  for (size_t i = 0; i < drawn.tokens.size(); ++i) {
    CHECK(scored.logprobs[70 + i] == drawn.logprobs[i]);
  }
}

TEST_CASE("routes are recorded for every token that was read") {
  Bench bench(8);
  Engine engine(small_tokenizer(), bench.lane, {.speculation = {.depth = 2, .adaptive = false}},
                std::make_unique<NgramDrafter>());
  Request request{.prompt = random_prompt(4, 70), .max_tokens = 9, .echo = true, .routes = true};
  const Answer answer = run_alone(engine, request);
  REQUIRE(answer.experts.size() == answer.tokens.size());
  for (size_t i = 0; i + 1 < answer.experts.size(); ++i) {
    REQUIRE(answer.experts[i].size() == 4);  // two MoE layers, top 2
  }
  CHECK(answer.experts.back().empty());
}

TEST_CASE("what cannot be served is refused at the door") {
  Bench bench(2);
  Engine engine(small_tokenizer(), bench.lane, {.max_waiting = 2});
  const auto sink = [](Event&&) {};
  CHECK_THROWS_AS(engine.submit({.prompt = {}}, sink), ConfigError);
  CHECK_THROWS_AS(engine.submit({.prompt = {300}}, sink), ConfigError);
  CHECK_THROWS_AS(engine.submit({.prompt = {-1}}, sink), ConfigError);
  CHECK_THROWS_AS(engine.submit({.prompt = random_prompt(0, 128)}, sink), ConfigError);
  CHECK_THROWS_AS(engine.submit({.prompt = {5}, .sampling = {.top_p = 2}}, sink), ConfigError);
  CHECK_NOTHROW(engine.submit({.prompt = random_prompt(0, 127)}, sink));
  CHECK_NOTHROW(engine.submit({.prompt = {5}}, sink));
  CHECK_THROWS_AS(engine.submit({.prompt = {5}}, sink), QueueFull);
}

TEST_CASE("many threads submit and cancel; every request ends once") {
  alone();  // Catch's assertions belong to this thread
  Bench bench(10);
  Engine engine(small_tokenizer(), bench.lane, {.max_running = 6});
  engine.start();
  constexpr int kThreads = 4;
  constexpr int kEach = 12;
  std::atomic<int> ended{0};
  std::atomic<int> wrong{0};
  std::vector<std::thread> clients;
  for (int t = 0; t < kThreads; ++t) {
    clients.emplace_back([&, t] {
      for (int i = 0; i < kEach; ++i) {
        const size_t which = static_cast<size_t>(t * kEach + i) % kRequests;
        EventQueue queue;
        const RequestId id = engine.submit(varied_request(which), queue.sink());
        if (i % 4 == 3) engine.cancel(id);
        Answer answer;
        const EventSink collect = answer.sink();
        while (!answer.finish) {
          if (auto event = queue.pop(std::chrono::seconds(20))) collect(std::move(*event));
        }
        ++ended;
        if (answer.finish != FinishReason::kCancelled && !answer.same_as(alone()[which])) ++wrong;
      }
    });
  }
  for (std::thread& client : clients) client.join();
  engine.drain();
  CHECK(ended == kThreads * kEach);
  CHECK(wrong == 0);
  CHECK(engine.stats().pages_in_use == 0);
  CHECK_THROWS_AS(engine.submit({.prompt = {5}}, [](Event&&) {}), EngineClosed);
}

TEST_CASE("stopping ends what is running") {
  Bench bench(10);
  std::vector<Answer> answers(5);
  {
    Engine engine(small_tokenizer(), bench.lane, {.max_running = 2});
    for (Answer& answer : answers) {
      engine.submit({.prompt = random_prompt(1, 30), .max_tokens = 400, .ignore_eos = true},
                    answer.sink());
    }
    engine.start();
  }
  for (const Answer& answer : answers) CHECK(answer.finish == FinishReason::kCancelled);
}

}  // namespace
}  // namespace degu
