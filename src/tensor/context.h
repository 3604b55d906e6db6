// What an operator runs on: a device, an instruction set, threads, scratch memory, and a trace.
//
// A Context belongs to one caller at a time. `parallel_for` hands tasks to a pool that spins for a
// short while and then parks; every operator fixes its order of summation by its own dimensions, so
// results do not depend on the number of threads or on which of them ran a task.
#pragma once

#include <cstdint>
#include <memory>
#include <string_view>
#include <type_traits>

#include "base/cpu_info.h"
#include "tensor/arena.h"
#include "tensor/view.h"

namespace degu {

class DeviceState;  // tensor/device.h
class Trace;        // tensor/trace.h

// A non-owning reference to a callable `void(int64_t task, int thread)`.
class TaskRef {
 public:
  template <class F>
  requires(!std::is_same_v<std::remove_cvref_t<F>, TaskRef>)
      TaskRef(F&& f)  // NOLINT: implicit by design
      : object_(const_cast<void*>(static_cast<const void*>(&f))),
        call_([](void* object, int64_t task, int thread) {
          (*static_cast<std::remove_reference_t<F>*>(object))(task, thread);
        }) {}
  void operator()(int64_t task, int thread) const { call_(object_, task, thread); }

 private:
  void* object_;
  void (*call_)(void*, int64_t, int);
};

struct ContextOptions {
  int threads = 0;  // 0: the cores this process may run on
  // CPU: reserved address space, backed when touched. Accelerator: memory, allocated at once.
  size_t scratch_bytes = size_t{8} << 30;
  Isa isa = default_isa();
  DeviceType device = DeviceType::kCpu;
  int ordinal = 0;  // which accelerator of this machine; a process uses one
};

class Context {
 public:
  // DeviceError when this build or this machine has no such device.
  explicit Context(const ContextOptions& options = {});
  ~Context();
  Context(const Context&) = delete;
  Context& operator=(const Context&) = delete;

  DeviceType device() const { return device_; }
  // Stream, staging and counters of an accelerator; null on the CPU.
  DeviceState* device_state() const { return state_.get(); }
  Isa isa() const { return isa_; }
  int threads() const { return threads_; }

  // Calls task(i, thread) for i in [0, tasks), each once, on threads [0, threads()); returns when
  // all are done. Thread t takes the contiguous run of tasks t, so neighbours share caches and
  // streams stay contiguous; the run of a thread that is late is taken by another. An exception
  // thrown by a task is rethrown here.
  void parallel_for(int64_t tasks, TaskRef task);
  // The same with tasks taken one at a time from a shared counter: for tasks of unequal cost.
  void parallel_dynamic(int64_t tasks, TaskRef task);

  Arena& scratch() { return scratch_; }
  Trace* trace() const { return trace_; }
  void set_trace(Trace* trace) { trace_ = trace; }

 private:
  struct Pool;
  DeviceType device_;
  std::unique_ptr<DeviceState> state_;
  Isa isa_;
  int threads_;
  Arena scratch_;
  Trace* trace_ = nullptr;
  std::unique_ptr<Pool> pool_;
};

}  // namespace degu
