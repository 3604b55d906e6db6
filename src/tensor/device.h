// What lies between the host and an accelerator: its state, its memory, copies both ways.
//
// A process uses one accelerator, and a context runs all its work in the order of one stream. The
// host runs ahead of the device; where it has to wait, the wait is counted, for a training step on
// one rank is meant to have none (docs/cuda.md).
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "tensor/context.h"

namespace degu {

// What a graph cannot hold: its message names who did it.
class CaptureError : public DeviceError {
 public:
  using DeviceError::DeviceError;
};

// Work that was captured once and is launched as often as wanted, in one call of the host. It reads
// and writes the addresses that it was captured with: what stands there at the time of the launch
// counts. It does not outlive its context.
class DeviceGraph {
 public:
  virtual ~DeviceGraph() = default;
  // All of the work, in stream order.
  virtual void launch() = 0;
  virtual int64_t nodes() const = 0;  // kernels, copies, fills
};

// A point in the order of what the device was given, to wait for while later work goes on. It does
// not outlive its context.
class DeviceMark {
 public:
  virtual ~DeviceMark() = default;
  // The point is here now.
  virtual void set() = 0;
  // The host waits until the device has come to it (counted); DeviceError when a kernel failed.
  virtual void wait() = 0;
};

class DeviceState {
 public:
  virtual ~DeviceState() = default;

  // Host to device in stream order; `from` may change as soon as this returns.
  virtual void upload(void* to, const void* from, size_t bytes) = 0;
  // Within the device, in stream order.
  virtual void move(void* to, const void* from, size_t bytes) = 0;
  virtual void zero(void* at, size_t bytes) = 0;
  // Device to host; waits for the stream (counted).
  virtual void download(void* to, const void* from, size_t bytes) = 0;
  // Device to host in stream order, without a wait; `to` is of allocate_host.
  virtual void download_later(void* to, const void* from, size_t bytes) = 0;
  // Pinned memory of the host; freeing it waits for the device. Not for use inside a step.
  virtual void* allocate_host(size_t bytes) = 0;
  virtual void free_host(void* memory) noexcept = 0;
  // Waits for the stream (counted); DeviceError when a kernel failed.
  virtual void synchronize() = 0;
  virtual std::unique_ptr<DeviceMark> make_mark() = 0;
  // "GPU 0: NVIDIA H200, 132 multiprocessors, 139 GiB, NUMA node 0"
  virtual std::string description() const = 0;
  // Equal in all processes that have this device open, under whatever number, and in no others.
  virtual std::string identity() const = 0;
  // Between the two, what the host asks of the device shows under `name` in a profiler (NVTX).
  virtual void begin_range(const char* name) = 0;
  virtual void end_range() = 0;

  // What `work` asks of the device, captured and not done; nobody else may use the context
  // meanwhile. CaptureError when it waits for the device or uploads numbers of the host's (the
  // graph would repeat those of today). When `work` throws, nothing is left of the capture.
  virtual std::unique_ptr<DeviceGraph> capture(const std::function<void()>& work);

  // {0, rows} in the device's memory, for as long as the state lives: the offsets of one group.
  // Uploaded when a number of rows is first asked for. Null when the table of them is full.
  virtual const int64_t* one_group(int64_t rows);

  // How often the host waited for the device since the context was made.
  int64_t host_syncs() const { return host_syncs_; }
  // Debug mode: while set, a wait is a DeviceError that names who waited.
  void forbid_host_syncs(bool forbid) { forbidden_ = forbid; }

 protected:
  void count_sync(const char* who);
  // The operator that is at work, for messages.
  virtual const char* at_work() const { return "the host"; }
  bool capturing_ = false;

 private:
  int64_t host_syncs_ = 0;
  bool forbidden_ = false;
};

// Accelerators of this kind that the process could open: 0 when the build lacks the backend, the
// machine the device, or the driver.
int device_count(DeviceType device);
// DeviceError with the remedy when there is none.
std::unique_ptr<DeviceState> open_device(DeviceType device, int ordinal);
// Of a context that only plans (DeviceType::kPlan): what it is told to do is not done, what is read
// from it is zero, and operators return once they have checked what they were given.
std::unique_ptr<DeviceState> open_planning_device();
// Zeroed memory of the accelerator that the process opened last; not for use inside a step.
void* allocate_device(DeviceType device, size_t bytes);
void free_device(DeviceType device, void* memory) noexcept;
// Bytes that allocate_device has given out and not had back, in this process: now, and at most.
size_t device_memory_used();
size_t device_memory_peak();
// Bytes that the accelerator could still give.
size_t device_memory_free(DeviceType device);

// to = from: one type and element count, each on the host or on the context's device. Stream order
// when the host only gives (what it gives is staged) or takes no part; when it receives, the host
// waits. ShapeError when the views do not fit.
void copy(Context& context, AnyView from, AnyView to);
// Every byte of `view` zero, in stream order on an accelerator.
void zero(Context& context, AnyView view);

// Numbers on their way to the host: asked for here and there, waited for once, beside what the
// device is given after the last of them. On the CPU they are copied at once.
class Downloads {
 public:
  explicit Downloads(Context& context);  // which outlives it
  ~Downloads();
  Downloads(const Downloads&) = delete;
  Downloads& operator=(const Downloads&) = delete;

  // A host view of `from`, whose numbers are those of this point of the stream; they are there once
  // `wait` has returned, until `clear`. Memory is allocated when more is asked for than ever
  // before.
  AnyView add(AnyView from);
  // No more is added before `clear`: `wait` will not wait for what comes after this.
  void close();
  // For all that was added; on an accelerator the host waits once.
  void wait();
  void clear();

 private:
  struct Piece {
    std::byte* memory;
    size_t bytes;
  };
  std::byte* take(size_t bytes);

  Context& context_;
  std::vector<Piece> pieces_;
  size_t piece_ = 0, used_ = 0;      // the one that is filled, and how far
  std::unique_ptr<DeviceMark> end_;  // null on the CPU
  bool closed_ = false;
};

// The numbers of a view where the host can read and write them: the view itself on the CPU, a copy
// elsewhere. The context outlives it.
class OnHost {
 public:
  // Filled from `view`; on an accelerator the host waits for it.
  OnHost(Context& context, AnyView view);
  // For a caller who writes every number: filled with nothing on an accelerator.
  static OnHost unfilled(Context& context, AnyView view);

  const AnyView& view() const { return host_; }
  operator AnyView() const { return host_; }  // NOLINT: used wherever a view is
  template <class T>
  View<T> as() const {
    return host_.as<T>();
  }
  // Back to where they came from, in stream order; nothing on the CPU.
  void put_back() const;

 private:
  struct Unfilled {};
  OnHost(Context& context, AnyView view, Unfilled);

  Context& context_;
  AnyView there_, host_;
  std::unique_ptr<std::byte[]> memory_;
};

}  // namespace degu
