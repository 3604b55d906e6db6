#include "tensor/context.h"

#include <atomic>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

namespace degu {
namespace {

// How long an idle worker spins before it parks: longer than the gap between two operators of a
// step (a few microseconds), far shorter than anything a person or another process would notice.
constexpr int kSpins = 20'000;

void pause_cpu() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

}  // namespace

// One job at a time: the caller publishes it by raising `generation`, works as thread 0, and waits
// until every worker has counted itself done.
struct Context::Pool {
  explicit Pool(int threads) {
    for (int t = 1; t < threads; ++t) workers.emplace_back([this, t] { work(t); });
  }

  ~Pool() {
    stopping = true;
    wake();
    for (std::thread& worker : workers) worker.join();
  }

  void run(const TaskRef& body, int threads) {
    job = &body;
    failure = nullptr;
    pending.store(threads - 1, std::memory_order_relaxed);
    wake();
    guarded(0);
    for (int spins = 0; pending.load(std::memory_order_acquire) != 0; ++spins) {
      if (spins < kSpins) {
        pause_cpu();
      } else {
        std::this_thread::yield();  // more threads than cores: let the worker have this one
      }
    }
    if (failure) std::rethrow_exception(failure);
  }

  void wake() {
    {
      std::lock_guard lock(mutex);
      generation.fetch_add(1, std::memory_order_release);
    }
    if (parked.load() > 0) parking.notify_all();
  }

  void guarded(int thread) {
    try {
      (*job)(0, thread);
    } catch (...) {
      std::lock_guard lock(mutex);
      if (!failure) failure = std::current_exception();
    }
  }

  void work(int thread) {
    uint64_t seen = 0;
    while (true) {
      int spins = 0;
      while (generation.load(std::memory_order_acquire) == seen) {
        if (++spins < kSpins) {
          pause_cpu();
          continue;
        }
        std::unique_lock lock(mutex);
        parked.fetch_add(1);
        parking.wait(lock, [&] { return generation.load() != seen; });
        parked.fetch_sub(1);
      }
      seen = generation.load(std::memory_order_acquire);
      if (stopping) return;
      guarded(thread);
      pending.fetch_sub(1, std::memory_order_release);
    }
  }

  std::vector<std::thread> workers;
  std::mutex mutex;
  std::condition_variable parking;
  std::atomic<uint64_t> generation{0};
  std::atomic<int> pending{0};
  std::atomic<int> parked{0};
  std::atomic<bool> stopping{false};
  const TaskRef* job = nullptr;
  std::exception_ptr failure;
};

Context::Context(const ContextOptions& options)
    : isa_(options.isa),
      threads_(options.threads > 0 ? options.threads : physical_cores()),
      scratch_(options.scratch_bytes) {
  if (threads_ > 1) pool_ = std::make_unique<Pool>(threads_);
}

Context::~Context() = default;

void Context::parallel_for(int64_t tasks, TaskRef task) {
  if (tasks <= 0) return;
  if (threads_ == 1 || tasks == 1) {
    for (int64_t i = 0; i < tasks; ++i) task(i, 0);
    return;
  }
  auto share = [&](int64_t, int thread) {
    const int64_t begin = tasks * thread / threads_;
    const int64_t end = tasks * (thread + 1) / threads_;
    for (int64_t i = begin; i < end; ++i) task(i, thread);
  };
  pool_->run(TaskRef(share), threads_);
}

void Context::parallel_dynamic(int64_t tasks, TaskRef task) {
  if (tasks <= 0) return;
  if (threads_ == 1 || tasks == 1) {
    for (int64_t i = 0; i < tasks; ++i) task(i, 0);
    return;
  }
  std::atomic<int64_t> next{0};
  auto share = [&](int64_t, int thread) {
    for (int64_t i = next.fetch_add(1, std::memory_order_relaxed); i < tasks;
         i = next.fetch_add(1, std::memory_order_relaxed)) {
      task(i, thread);
    }
  };
  pool_->run(TaskRef(share), threads_);
}

}  // namespace degu
