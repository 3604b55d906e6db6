#include "tensor/context.h"

#include <atomic>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

#include "tensor/device.h"

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

// One job at a time: the caller publishes it by opening the gate under a new generation, works as
// thread 0, closes the gate, and waits for the workers that have entered. One that comes later
// finds it closed: a neighbour on the machine who keeps a worker from its core for a millisecond
// does not hold up an operator whose tasks others have done.
struct Context::Pool {
  explicit Pool(int threads) : claims(static_cast<size_t>(threads)) {
    for (int t = 1; t < threads; ++t) workers.emplace_back([this, t] { work(t); });
  }

  ~Pool() {
    stopping = true;
    publish(0);
    for (std::thread& worker : workers) worker.join();
  }

  void run(const TaskRef& body) {
    job = &body;
    failure = nullptr;
    publish(kOpen);
    guarded(0);
    gate.fetch_and(~kOpen, std::memory_order_acq_rel);
    for (int spins = 0; (gate.load(std::memory_order_acquire) & kInside) != 0; ++spins) {
      if (spins < kSpins) {
        pause_cpu();
      } else {
        std::this_thread::yield();  // more threads than cores: let the worker have this one
      }
    }
    if (failure) std::rethrow_exception(failure);
  }

  // Whether nobody has taken share `t` of the present job yet; now the caller of this has.
  bool claim(int t) {
    const uint64_t present = gate.load(std::memory_order_relaxed) / kGeneration;
    return claims[static_cast<size_t>(t)].exchange(present, std::memory_order_relaxed) != present;
  }

 private:
  // The gate: how many workers are inside, whether more may enter, and the job's generation.
  static constexpr uint64_t kInside = 0x7fff;
  static constexpr uint64_t kOpen = 0x8000;
  static constexpr uint64_t kGeneration = 0x10000;

  void publish(uint64_t open) {
    {
      std::lock_guard lock(mutex);
      // Nobody is inside: late workers leave a closed gate as it is.
      const uint64_t generation = gate.load(std::memory_order_relaxed) / kGeneration + 1;
      gate.store(generation * kGeneration | open, std::memory_order_release);
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

  // The gate once its generation is another than `seen`.
  uint64_t await(uint64_t seen) {
    for (int spins = 0; spins < kSpins; ++spins) {
      const uint64_t now = gate.load(std::memory_order_acquire);
      if (now / kGeneration != seen) return now;
      pause_cpu();
    }
    std::unique_lock lock(mutex);
    parked.fetch_add(1);
    parking.wait(lock, [&] { return gate.load() / kGeneration != seen; });
    parked.fetch_sub(1);
    return gate.load(std::memory_order_acquire);
  }

  void work(int thread) {
    uint64_t seen = 0;
    while (true) {
      uint64_t now = await(seen);
      while ((now & kOpen) != 0 &&
             !gate.compare_exchange_weak(now, now + 1, std::memory_order_acq_rel)) {
      }
      seen = now / kGeneration;
      if ((now & kOpen) == 0) {
        // Asked for every generation seen, also one that the loop above met: the end has but one.
        if (stopping) return;
        continue;
      }
      guarded(thread);
      gate.fetch_sub(1, std::memory_order_acq_rel);
    }
  }

  std::vector<std::thread> workers;
  std::vector<std::atomic<uint64_t>> claims;  // per share: the last generation that took it
  std::mutex mutex;
  std::condition_variable parking;
  std::atomic<uint64_t> gate{0};
  std::atomic<int> parked{0};
  std::atomic<bool> stopping{false};
  const TaskRef* job = nullptr;
  std::exception_ptr failure;
};

namespace {

std::unique_ptr<DeviceState> state_of(const ContextOptions& options) {
  switch (options.device) {
    case DeviceType::kCuda:
      return open_device(options.device, options.ordinal);
    case DeviceType::kPlan:
      return open_planning_device();
    case DeviceType::kCpu:
      break;
  }
  return nullptr;
}

}  // namespace

Context::Context(const ContextOptions& options)
    : device_(options.device),
      state_(state_of(options)),
      isa_(options.isa),
      threads_(options.threads > 0 ? options.threads : physical_cores()),
      scratch_(options.scratch_bytes, device_) {
  if (threads_ > 1) pool_ = std::make_unique<Pool>(threads_);
}

Context::~Context() = default;

void Context::parallel_for(int64_t tasks, TaskRef task) {
  if (tasks <= 0) return;
  if (threads_ == 1 || tasks == 1) {
    for (int64_t i = 0; i < tasks; ++i) task(i, 0);
    return;
  }
  // Its own share first, then those whose threads have not come.
  auto shares = [&](int64_t, int thread) {
    for (int t = 0; t < threads_; ++t) {
      const int share = (thread + t) % threads_;
      if (!pool_->claim(share)) continue;
      const int64_t begin = tasks * share / threads_;
      const int64_t end = tasks * (share + 1) / threads_;
      for (int64_t i = begin; i < end; ++i) task(i, thread);
    }
  };
  pool_->run(TaskRef(shares));
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
  pool_->run(TaskRef(share));
}

}  // namespace degu
