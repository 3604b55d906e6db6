// Streams, events and memory of the emulated GPU.
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include "tests/cuda_emulation/cuda_runtime.h"

namespace {

using Clock = std::chrono::steady_clock;

constexpr size_t kAllMemory = size_t{64} << 30;  // backed by the system when touched
constexpr int kMultiprocessors = 4;
constexpr size_t kUnaskedShared = 48 * 1024;
constexpr size_t kMostWaiting = 4096;  // calls that a stream keeps before it does some

// Device memory. Closed to everybody but for the time in which some stream does its work.
class Memory {
 public:
  void* take(size_t bytes) {
    const std::scoped_lock lock(mutex_);
    bytes = std::max<size_t>((bytes + kPage - 1) / kPage * kPage, kPage);
    if (used_ + bytes > kAllMemory) return nullptr;
    void* at = mmap(nullptr, bytes, open_ > 0 ? PROT_READ | PROT_WRITE : PROT_NONE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (at == MAP_FAILED) return nullptr;
    used_ += bytes;
    pieces_[at] = {bytes, true};
    return at;
  }
  bool give_back(void* at) {
    const std::scoped_lock lock(mutex_);
    const auto found = pieces_.find(at);
    if (found == pieces_.end()) return false;
    munmap(at, found->second.bytes);
    used_ -= found->second.bytes;
    pieces_.erase(found);
    return true;
  }
  // Whether nothing was done yet to a piece that begins there; not any more.
  bool is_new(void* at) {
    const std::scoped_lock lock(mutex_);
    const auto found = pieces_.find(at);
    return found != pieces_.end() && std::exchange(found->second.untouched, false);
  }
  size_t free() {
    const std::scoped_lock lock(mutex_);
    return kAllMemory - used_;
  }
  void open() {
    const std::scoped_lock lock(mutex_);
    if (open_++ == 0) protect(PROT_READ | PROT_WRITE);
  }
  void close() {
    const std::scoped_lock lock(mutex_);
    if (--open_ == 0) protect(PROT_NONE);
  }

 private:
  static constexpr size_t kPage = 4096;
  struct Piece {
    size_t bytes;
    bool untouched;
  };
  void protect(int how) {
    for (const auto& [at, piece] : pieces_) mprotect(at, piece.bytes, how);
  }

  std::mutex mutex_;
  std::map<void*, Piece> pieces_;
  size_t used_ = 0;
  int open_ = 0;
};

Memory& memory() {
  static Memory memory;
  return memory;
}

// What the calling thread's last failed call left, and whether a kernel trapped: the device is lost
// then, as a real one is.
thread_local cudaError_t last_error = cudaSuccess;
thread_local int present_device = 0;
std::atomic<bool> lost = false;

cudaError_t report(cudaError_t error) {
  if (error != cudaSuccess) last_error = error;
  return error;
}

struct Open {
  Open() { memory().open(); }
  ~Open() { memory().close(); }
};

std::map<const void*, size_t>& shared_limits() {
  static std::map<const void*, size_t> limits;
  return limits;
}
std::mutex limits_mutex;

}  // namespace

struct CUevent_st {
  CUstream_st* stream = nullptr;  // that has still to come to it
  uint64_t ticket = 0;            // of the last record
  uint64_t reached = 0;
  Clock::time_point time;
};

struct CUgraph_st {
  std::vector<std::function<void()>> calls;
};

struct CUgraphExec_st {
  std::shared_ptr<const CUgraph_st> graph;  // launches that wait share it
};

struct CUstream_st {
  using Call = std::function<void()>;
  std::deque<Call> waiting;
  std::unique_ptr<CUgraph_st> captured;  // while the stream captures
  bool spoilt = false;                   // by a call that no graph can hold

  void add(Call call) {
    if (captured != nullptr) {
      captured->calls.push_back(std::move(call));
      return;
    }
    waiting.push_back(std::move(call));
    if (waiting.size() > kMostWaiting) run();
  }
  template <class Stop>
  void run_until(Stop&& stop) {
    const Open open;
    while (!waiting.empty() && !stop()) {
      const Call call = std::move(waiting.front());
      waiting.pop_front();
      if (!lost) call();
    }
  }
  void run() {
    if (waiting.empty()) return;
    run_until([] { return false; });
  }
};

namespace {

// Streams of the process, for those calls that wait for all of them. Streams of other threads are
// left alone: their owners run them.
thread_local std::vector<CUstream_st*> streams;

void reach(CUevent_st* event, uint64_t ticket) {
  if (event->stream == nullptr) return;
  event->stream->run_until([&] { return event->reached >= ticket; });
}

// The stream of this thread that captures.
thread_local CUstream_st* capturing = nullptr;

// For calls that may not be made meanwhile.
bool refused() {
  if (capturing != nullptr) capturing->spoilt = true;
  return capturing != nullptr;
}
cudaError_t unsupported() {
  return report(cudaErrorStreamCaptureUnsupported);
}

cudaError_t state() {
  return lost ? report(cudaErrorLaunchFailure) : cudaSuccess;
}

}  // namespace

cudaError_t cudaGetLastError() {
  return std::exchange(last_error, cudaSuccess);
}

const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "no error";
    case cudaErrorInvalidValue:
      return "invalid argument";
    case cudaErrorMemoryAllocation:
      return "out of memory";
    case cudaErrorInvalidConfiguration:
      return "invalid configuration argument";
    case cudaErrorInvalidDevice:
      return "invalid device ordinal";
    case cudaErrorNotReady:
      return "device not ready";
    case cudaErrorLaunchFailure:
      return "unspecified launch failure";
    case cudaErrorStreamCaptureUnsupported:
      return "operation not permitted when stream is capturing";
    case cudaErrorStreamCaptureInvalidated:
      return "operation failed due to a previous error during capture";
    default:
      return "unknown error";
  }
}

// DEGU_EMULATED_GPUS says how many there are.
cudaError_t cudaGetDeviceCount(int* count) {
  const char* text = std::getenv("DEGU_EMULATED_GPUS");
  *count = text == nullptr ? 1 : std::atoi(text);
  return cudaSuccess;
}

cudaError_t cudaSetDevice(int device) {
  int count = 0;
  cudaGetDeviceCount(&count);
  if (device >= count) return report(cudaErrorInvalidDevice);
  present_device = device;
  return cudaSuccess;
}

cudaError_t cudaGetDevice(int* device) {
  *device = present_device;
  return cudaSuccess;
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int) {
  std::snprintf(properties->name, sizeof properties->name, "emulated GPU");
  properties->uuid = {"one for all"};
  properties->totalGlobalMem = kAllMemory;
  properties->multiProcessorCount = kMultiprocessors;
  return cudaSuccess;
}

cudaError_t cudaDeviceGetPCIBusId(char*, int, int) {
  return cudaErrorInvalidDevice;
}

cudaError_t cudaDeviceSynchronize() {
  if (refused()) return unsupported();
  for (CUstream_st* stream : streams) stream->run();
  return state();
}

cudaError_t cudaMemGetInfo(size_t* free, size_t* all) {
  *free = memory().free();
  *all = kAllMemory;
  return cudaSuccess;
}

cudaError_t cudaMalloc(void** at, size_t bytes) {
  if (refused()) return unsupported();
  *at = memory().take(bytes);
  return *at == nullptr ? report(cudaErrorMemoryAllocation) : cudaSuccess;
}

// Waits for the device, as the real one does.
cudaError_t cudaFree(void* at) {
  if (at == nullptr) return cudaSuccess;
  if (refused()) return unsupported();
  cudaDeviceSynchronize();
  return memory().give_back(at) ? cudaSuccess : report(cudaErrorInvalidValue);
}

cudaError_t cudaHostAlloc(void** at, size_t bytes, unsigned) {
  if (refused()) return unsupported();
  *at = std::aligned_alloc(4096, (bytes + 4095) / 4096 * 4096);
  return *at == nullptr ? report(cudaErrorMemoryAllocation) : cudaSuccess;
}

cudaError_t cudaFreeHost(void* at) {
  if (refused()) return unsupported();
  cudaDeviceSynchronize();
  std::free(at);
  return cudaSuccess;
}

cudaError_t cudaMemset(void* at, int value, size_t bytes) {
  if (refused()) return unsupported();
  if (value == 0 && memory().is_new(at)) return cudaSuccess;  // is zero, and stays unbacked
  cudaDeviceSynchronize();
  const Open open;
  std::memset(at, value, bytes);
  return state();
}

cudaError_t cudaMemsetAsync(void* at, int value, size_t bytes, cudaStream_t stream) {
  stream->add([=] { std::memset(at, value, bytes); });
  return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind,
                            cudaStream_t stream) {
  stream->add([=] { std::memmove(to, from, bytes); });
  return cudaSuccess;
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  *stream = new CUstream_st;
  streams.push_back(*stream);
  return cudaSuccess;
}

cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  stream->run();
  std::erase(streams, stream);
  delete stream;
  return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  if (refused()) return unsupported();
  stream->run();
  return state();
}

cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
  if (refused()) return unsupported();
  stream->add([event, ticket = event->ticket] { reach(event, ticket); });
  return cudaSuccess;
}

cudaError_t cudaEventCreate(cudaEvent_t* event) {
  return cudaEventCreateWithFlags(event, 0);
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  *event = new CUevent_st;
  return cudaSuccess;
}

cudaError_t cudaEventDestroy(cudaEvent_t event) {
  reach(event, event->ticket);
  delete event;
  return cudaSuccess;
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  if (refused()) return unsupported();
  event->stream = stream;
  stream->add([event, ticket = ++event->ticket] {
    event->reached = ticket;
    event->time = Clock::now();
  });
  return cudaSuccess;
}

// The device is never slower than the host here: what is asked for is done.
cudaError_t cudaEventQuery(cudaEvent_t event) {
  return cudaEventSynchronize(event);
}

cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  if (refused()) return unsupported();
  reach(event, event->ticket);
  return state();
}

cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t begin, cudaEvent_t end) {
  *milliseconds = std::chrono::duration<float, std::milli>(end->time - begin->time).count();
  return cudaSuccess;
}

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
  if (capturing != nullptr) return report(cudaErrorStreamCaptureUnsupported);
  stream->captured = std::make_unique<CUgraph_st>();
  stream->spoilt = false;
  capturing = stream;
  return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  *graph = nullptr;
  if (capturing != stream) return report(cudaErrorInvalidValue);
  capturing = nullptr;
  std::unique_ptr<CUgraph_st> captured = std::move(stream->captured);
  if (stream->spoilt) return report(cudaErrorStreamCaptureInvalidated);
  *graph = captured.release();
  return cudaSuccess;
}

cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t*, size_t* count) {
  *count = graph->calls.size();
  return cudaSuccess;
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t* ready, cudaGraph_t graph, uint64_t) {
  *ready = new CUgraphExec_st{std::make_shared<const CUgraph_st>(*graph)};
  return cudaSuccess;
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t ready, cudaStream_t stream) {
  stream->add([graph = ready->graph] {
    for (const auto& call : graph->calls) {
      if (!lost) call();
    }
  });
  return cudaSuccess;
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  delete graph;
  return cudaSuccess;
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t ready) {
  delete ready;
  return cudaSuccess;
}

namespace emulated {

cudaError_t set_shared_limit(const void* kernel, int bytes) {
  if (bytes < 0 || static_cast<size_t>(bytes) > kMostShared) return report(cudaErrorInvalidValue);
  const std::scoped_lock lock(limits_mutex);
  shared_limits()[kernel] = static_cast<size_t>(bytes);
  return cudaSuccess;
}

cudaError_t enqueue_kernel(const void* kernel, const cudaLaunchConfig_t& config,
                           std::function<void()> thread) {
  constexpr unsigned kMostRows = 65535;  // of a grid, in y and z
  size_t most_shared = kUnaskedShared;
  {
    const std::scoped_lock lock(limits_mutex);
    const auto found = shared_limits().find(kernel);
    if (found != shared_limits().end()) most_shared = std::max(most_shared, found->second);
  }
  const dim3 grid = config.gridDim;
  const uint64_t threads = config.blockDim.count();
  if (grid.count() == 0 || grid.x > 0x7fffffffu || grid.y > kMostRows || grid.z > kMostRows ||
      threads == 0 || threads > kMostThreads || config.dynamicSmemBytes > most_shared) {
    return report(cudaErrorInvalidConfiguration);
  }
  config.stream->add([config, thread = std::move(thread)] {
    if (!run_grid(config.gridDim, config.blockDim, config.dynamicSmemBytes, thread)) lost = true;
  });
  return cudaSuccess;
}

}  // namespace emulated
