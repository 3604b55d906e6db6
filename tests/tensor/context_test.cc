// The thread pool: every task once, on a thread of its own number, exceptions included. Also run
// under the thread sanitizer, which is what most of these loops are for.
#include "tensor/context.h"

#include <atomic>
#include <catch2/catch.hpp>
#include <memory>
#include <stdexcept>
#include <thread>
#include <vector>

namespace {

using degu::Context;

// Both loops, so that each case runs over both.
struct Loop {
  const char* name;
  void (Context::*run)(int64_t, degu::TaskRef);
};
constexpr Loop kLoops[] = {{"static", &Context::parallel_for},
                           {"dynamic", &Context::parallel_dynamic}};
constexpr int kThreadCounts[] = {1, 2, 3, 8};

std::unique_ptr<Context> make(int threads) {
  return std::make_unique<Context>(
      degu::ContextOptions{.threads = threads, .scratch_bytes = 1 << 20});
}

TEST_CASE("every task runs once, on a thread that exists") {
  for (const Loop& loop : kLoops) {
    for (int threads : kThreadCounts) {
      const auto context = make(threads);
      CHECK(context->threads() == threads);
      for (int64_t tasks : {0, 1, 2, 7, 8, 9, 1000}) {
        INFO(loop.name << ", " << threads << " threads, " << tasks << " tasks");
        std::vector<int> runs(
            static_cast<size_t>(tasks));  // plain ints: a task run twice would race
        std::atomic<int> bad_thread{0};
        auto body = [&](int64_t task, int thread) {
          ++runs[static_cast<size_t>(task)];
          if (thread < 0 || thread >= threads) bad_thread = 1;
        };
        (context.get()->*loop.run)(tasks, body);
        CHECK(bad_thread == 0);
        CHECK(std::count(runs.begin(), runs.end(), 1) == tasks);
      }
    }
  }
}

TEST_CASE("parallel_for gives one thread each contiguous run of tasks") {
  const auto context = make(3);
  for (int repeat = 0; repeat < 100; ++repeat) {
    std::vector<int> owner(100, -1);
    context->parallel_for(
        100, [&](int64_t task, int thread) { owner[static_cast<size_t>(task)] = thread; });
    for (size_t share = 0; share < 3; ++share) {
      for (size_t i = 100 * share / 3; i < 100 * (share + 1) / 3; ++i) {
        CHECK(owner[i] == owner[100 * share / 3]);
      }
    }
  }
}

TEST_CASE("an operator does not wait for threads that come when its tasks are done") {
  const auto context = make(8);  // more than the cores at hand: some are always late
  std::vector<int> runs(8);
  for (int repeat = 0; repeat < 20'000; ++repeat) {
    context->parallel_for(8, [&](int64_t task, int) { ++runs[static_cast<size_t>(task)]; });
    context->parallel_dynamic(8, [&](int64_t task, int) { ++runs[static_cast<size_t>(task)]; });
  }
  CHECK(runs == std::vector<int>(8, 40'000));
}

TEST_CASE("what one loop wrote, the next one reads") {
  for (const Loop& loop : kLoops) {
    const auto context = make(4);
    std::vector<int64_t> values(64);
    for (int round = 0; round < 500; ++round) {
      auto add = [&](int64_t task, int) { values[static_cast<size_t>(63 - task)] += task; };
      auto add_mirrored = [&](int64_t task, int) { values[static_cast<size_t>(task)] += task; };
      (context.get()->*loop.run)(64, add);
      (context.get()->*loop.run)(64, add_mirrored);
    }
    for (int64_t value : values) REQUIRE(value == 500 * 63);
  }
}

TEST_CASE("an exception of any thread reaches the caller, and the pool works on") {
  for (const Loop& loop : kLoops) {
    for (int threads : kThreadCounts) {
      const auto context = make(threads);
      for (int64_t culprit : {0, 1, 31, 63}) {
        INFO(loop.name << ", " << threads << " threads, task " << culprit);
        auto fail = [&](int64_t task, int) {
          if (task == culprit) throw std::runtime_error("task " + std::to_string(task));
        };
        CHECK_THROWS_WITH((context.get()->*loop.run)(64, fail), "task " + std::to_string(culprit));
        std::atomic<int64_t> sum{0};
        auto count = [&](int64_t task, int) { sum += task; };
        (context.get()->*loop.run)(64, count);
        CHECK(sum == 64 * 63 / 2);
      }
      // All at once: one of them arrives, and none escapes a worker.
      auto all_fail = [](int64_t, int) { throw std::logic_error("every task"); };
      CHECK_THROWS_AS((context.get()->*loop.run)(64, all_fail), std::logic_error);
    }
  }
}

// Between two loops workers spin, then park; both ways of waking must work.
TEST_CASE("a pool wakes from its sleep") {
  const auto context = make(4);
  for (int pause_us : {0, 50, 1000, 5000}) {
    for (int round = 0; round < 20; ++round) {
      std::atomic<int> ran{0};
      context->parallel_for(4, [&](int64_t, int) { ++ran; });
      CHECK(ran == 4);
      std::this_thread::sleep_for(std::chrono::microseconds(pause_us));
    }
  }
}

TEST_CASE("pools come and go, asleep or awake, side by side") {
  for (int round = 0; round < 50; ++round) {
    const auto first = make(3);
    const auto second = make(2);
    if (round % 2 == 0) {
      std::atomic<int> ran{0};
      first->parallel_for(3, [&](int64_t, int) { ++ran; });
      second->parallel_dynamic(5, [&](int64_t, int) { ++ran; });
      CHECK(ran == 8);
    }
    if (round % 5 == 0) std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
}

TEST_CASE("a pool ends though its workers come late to the last loop") {
  std::atomic<int64_t> sum{0};
  for (int i = 0; i < 500; ++i) {
    Context context({.threads = 7, .scratch_bytes = 4096});
    context.parallel_for(7, [&](int64_t task, int) { sum += task; });
  }
  CHECK(sum == 500 * 21);
}

TEST_CASE("the same loop on any number of threads writes the same numbers") {
  const auto run = [](int threads) {
    const auto context = make(threads);
    std::vector<float> out(1000);
    context->parallel_for(1000, [&](int64_t i, int) {
      float sum = 0;
      for (int k = 1; k < 50; ++k) sum += 1.0f / static_cast<float>(k + i);
      out[static_cast<size_t>(i)] = sum;
    });
    return out;
  };
  const std::vector<float> expected = run(1);
  for (int threads : {2, 3, 8}) CHECK(run(threads) == expected);
}

TEST_CASE("no count given: the cores of this process") {
  const Context context({.threads = 0, .scratch_bytes = 1 << 20});
  CHECK(context.threads() == degu::physical_cores());
}

}  // namespace
