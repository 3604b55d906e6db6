// The CUDA runtime behind tensor/device.h: one stream per context, pinned staging, device memory.
#include <cuda_runtime_api.h>
#include <nvtx3/nvToolsExt.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <cstring>
#include <fstream>
#include <map>
#include <mutex>

#include "tensor/cuda_state.h"

namespace degu {
namespace {

void check(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  cudaGetLastError();  // an error that is reported is not met again
  const char* remedy = "";
  if (status == cudaErrorNoKernelImageForDevice || status == cudaErrorInvalidDeviceFunction) {
    remedy = "; build with CMAKE_CUDA_ARCHITECTURES for this GPU";
  } else if (status == cudaErrorMemoryAllocation) {
    remedy = "; use a smaller batch, more ranks, or another GPU";
  }
  throw DeviceError("CUDA: {} failed: {}{}", what, cudaGetErrorString(status), remedy);
}

void require_cuda(DeviceType device) {
  if (device != DeviceType::kCuda) throw DeviceError("the host is no accelerator");
}

// Of the memory that is nearest to a GPU; -1 where the system does not say.
int numa_node_of(int ordinal) {
  std::array<char, 32> bus{};  // "0000:1B:00.0"; the system's folders are in lower case
  if (cudaDeviceGetPCIBusId(bus.data(), static_cast<int>(bus.size()), ordinal) != cudaSuccess) {
    return -1;
  }
  std::string name(bus.data());
  for (char& c : name) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  int node = -1;
  std::ifstream file("/sys/bus/pci/devices/" + name + "/numa_node");
  return file >> node ? node : -1;
}

// What allocate_device gave out and free_device has not had back.
struct Given {
  std::mutex mutex;
  std::map<const void*, size_t> bytes;
  size_t now = 0, peak = 0;
};

Given& given_out() {
  static Given given;
  return given;
}

}  // namespace

// Pinned host memory, used in turns. A segment is written again only after the copies out of it are
// done; with eight of them the host is so far ahead by then that waiting costs nothing.
struct CudaState::Staging {
  static constexpr size_t kSegments = 8;
  static constexpr size_t kSegmentBytes = size_t{1} << 20;

  Staging() {
    check(cudaHostAlloc(reinterpret_cast<void**>(&memory), kSegments * kSegmentBytes,
                        cudaHostAllocDefault),
          "allocating pinned staging memory");
    for (cudaEvent_t& event : done) {
      check(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "making an event");
    }
  }
  ~Staging() {
    for (cudaEvent_t event : done) cudaEventDestroy(event);
    cudaFreeHost(memory);
  }
  Staging(const Staging&) = delete;
  Staging& operator=(const Staging&) = delete;

  std::byte* memory = nullptr;
  std::array<cudaEvent_t, kSegments> done{};
  size_t segment = 0;
  size_t used = 0;
};

namespace {

class CudaGraph final : public DeviceGraph {
 public:
  CudaGraph(cudaGraph_t graph, cudaStream_t stream) : stream_(stream) {
    size_t nodes = 0;
    check(cudaGraphGetNodes(graph, nullptr, &nodes), "counting a graph's nodes");
    nodes_ = static_cast<int64_t>(nodes);
    check(cudaGraphInstantiate(&ready_, graph, 0), "making a graph ready");
  }
  // A launch that is not done yet goes on: the runtime waits with the memory.
  ~CudaGraph() override { cudaGraphExecDestroy(ready_); }
  CudaGraph(const CudaGraph&) = delete;
  CudaGraph& operator=(const CudaGraph&) = delete;

  void launch() override { check(cudaGraphLaunch(ready_, stream_), "launching a graph"); }
  int64_t nodes() const override { return nodes_; }

 private:
  cudaStream_t stream_;
  cudaGraphExec_t ready_ = nullptr;
  int64_t nodes_ = 0;
};

constexpr int64_t kMostGroups = 4096;

}  // namespace

// The time in which the stream captures; whatever happens, it does not when this ends.
struct CudaState::Capture {
  explicit Capture(CudaState& of) : state(of) {
    check(cudaStreamBeginCapture(state.stream_, cudaStreamCaptureModeThreadLocal),
          "beginning a capture");
    state.capturing_ = true;
  }
  ~Capture() {
    if (state.capturing_ && end() != cudaSuccess) cudaGetLastError();
    if (graph != nullptr) cudaGraphDestroy(graph);
  }
  Capture(const Capture&) = delete;
  Capture& operator=(const Capture&) = delete;

  cudaError_t end() {
    state.capturing_ = false;
    return cudaStreamEndCapture(state.stream_, &graph);
  }

  CudaState& state;
  cudaGraph_t graph = nullptr;
};

CudaState::CudaState(int ordinal) : ordinal_(ordinal) {
  check(cudaSetDevice(ordinal), "opening the GPU");
  cudaDeviceProp properties{};
  check(cudaGetDeviceProperties(&properties, ordinal), "asking for the GPU's properties");
  multiprocessors_ = properties.multiProcessorCount;
  name_ = properties.name;
  for (const char byte : properties.uuid.bytes) {
    identity_ += fmt::format("{:02x}", static_cast<unsigned char>(byte));
  }
  memory_ = properties.totalGlobalMem;
  numa_node_ = numa_node_of(ordinal);
  staging_ = std::make_unique<Staging>();
  check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "making a stream");
  check(cudaMalloc(reinterpret_cast<void**>(&groups_), kMostGroups * 2 * sizeof(int64_t)),
        "allocating device memory");
}

CudaState::~CudaState() {
  cudaStreamSynchronize(stream_);
  attention_library_.reset();  // while its stream exists
  cudaStreamDestroy(stream_);
  cudaFree(groups_);
}

std::unique_ptr<DeviceGraph> CudaState::capture(const std::function<void()>& work) {
  if (capturing_) throw DeviceError("a capture within a capture");
  Capture now(*this);
  work();
  check(now.end(), "ending a capture");
  return std::make_unique<CudaGraph>(now.graph, stream_);
}

const int64_t* CudaState::one_group(int64_t rows) {
  const auto count = static_cast<int64_t>(group_of_rows_.size());
  const auto found = group_of_rows_.find(rows);
  if (found != group_of_rows_.end()) return groups_ + 2 * found->second;
  if (count == kMostGroups) return nullptr;
  const std::array<int64_t, 2> offsets = {0, rows};
  upload(groups_ + 2 * count, offsets.data(), sizeof(offsets));
  group_of_rows_[rows] = count;
  return groups_ + 2 * count;
}

void CudaState::upload(void* to, const void* from, size_t bytes) {
  if (capturing_) {
    throw CaptureError(
        "{}: {} bytes of the host's would be the same in every launch of a graph; give what "
        "changes in the device's memory",
        at_work(), bytes);
  }
  Staging& ring = *staging_;
  auto* out = static_cast<std::byte*>(to);
  const auto* in = static_cast<const std::byte*>(from);
  while (bytes > 0) {
    const size_t piece = std::min(bytes, Staging::kSegmentBytes);
    if (ring.used + piece > Staging::kSegmentBytes) {
      check(cudaEventRecord(ring.done[ring.segment], stream_), "recording an event");
      ring.segment = (ring.segment + 1) % Staging::kSegments;
      ring.used = 0;
      cudaEvent_t free = ring.done[ring.segment];
      if (cudaEventQuery(free) == cudaErrorNotReady) {
        cudaGetLastError();  // not an error
        count_sync("the staging of an upload");
        check(cudaEventSynchronize(free), "waiting for staging memory");
      }
    }
    std::byte* staged = ring.memory + ring.segment * Staging::kSegmentBytes + ring.used;
    std::memcpy(staged, in, piece);
    check(cudaMemcpyAsync(out, staged, piece, cudaMemcpyHostToDevice, stream_), "an upload");
    ring.used += (piece + 15) / 16 * 16;
    in += piece;
    out += piece;
    bytes -= piece;
  }
}

void CudaState::move(void* to, const void* from, size_t bytes) {
  check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, stream_), "a copy");
}

void CudaState::zero(void* at, size_t bytes) {
  check(cudaMemsetAsync(at, 0, bytes, stream_), "zeroing memory");
}

void CudaState::download(void* to, const void* from, size_t bytes) {
  count_sync("a copy to the host");
  check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, stream_), "a copy to the host");
  check(cudaStreamSynchronize(stream_), "waiting for the GPU");
}

void CudaState::download_later(void* to, const void* from, size_t bytes) {
  check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, stream_), "a copy to the host");
}

void* CudaState::allocate_host(size_t bytes) {
  void* memory = nullptr;
  check(cudaHostAlloc(&memory, bytes, cudaHostAllocDefault), "allocating pinned memory");
  return memory;
}

void CudaState::free_host(void* memory) noexcept {
  cudaStreamSynchronize(stream_);
  cudaFreeHost(memory);
}

void CudaState::synchronize() {
  count_sync("synchronize");
  check(cudaStreamSynchronize(stream_), "waiting for the GPU");
}

class CudaState::Mark final : public DeviceMark {
 public:
  explicit Mark(CudaState& state) : state_(state) {
    check(cudaEventCreateWithFlags(&point_, cudaEventDisableTiming), "making an event");
  }
  ~Mark() override { cudaEventDestroy(point_); }
  Mark(const Mark&) = delete;
  Mark& operator=(const Mark&) = delete;

  void set() override { check(cudaEventRecord(point_, state_.stream_), "recording an event"); }
  void wait() override {
    state_.count_sync("a mark");
    check(cudaEventSynchronize(point_), "waiting for the GPU");
  }

 private:
  CudaState& state_;
  cudaEvent_t point_ = nullptr;
};

std::unique_ptr<DeviceMark> CudaState::make_mark() {
  return std::make_unique<Mark>(*this);
}

std::string CudaState::description() const {
  return fmt::format("GPU {}: {}, {} multiprocessors, {} GiB{}", ordinal_, name_, multiprocessors_,
                     memory_ >> 30,
                     numa_node_ < 0 ? "" : fmt::format(", NUMA node {}", numa_node_));
}

void CudaState::begin_range(const char* name) {
  nvtxRangePushA(name);
  ranges_.push_back(name);
}

void CudaState::end_range() {
  nvtxRangePop();
  ranges_.pop_back();
}

const char* CudaState::at_work() const {
  return ranges_.empty() ? DeviceState::at_work() : ranges_.back();
}

void CudaState::check_launch(const char* op) {
  check(cudaGetLastError(), op);
}

void CudaState::refuse(const char* op, const char* what, int64_t value, int64_t most) {
  throw DeviceError("{}: {} is {}; the CUDA kernels take at most {}", op, what, value, most);
}

int device_count(DeviceType device) {
  if (device == DeviceType::kCpu) return 1;
  int count = 0;
  if (cudaGetDeviceCount(&count) != cudaSuccess) {
    cudaGetLastError();
    return 0;
  }
  return count;
}

std::unique_ptr<DeviceState> open_device(DeviceType device, int ordinal) {
  require_cuda(device);
  const int count = device_count(device);
  if (ordinal < 0 || ordinal >= count) {
    throw DeviceError(
        "no CUDA device {} (the driver shows {}); run where nvidia-smi lists one, or use device: "
        "cpu",
        ordinal, count);
  }
  return std::make_unique<CudaState>(ordinal);
}

void* allocate_device(DeviceType device, size_t bytes) {
  require_cuda(device);
  void* memory = nullptr;
  check(cudaMalloc(&memory, bytes), "allocating device memory");
  check(cudaMemset(memory, 0, bytes), "zeroing device memory");
  // The memset is on the default stream, which ours do not wait for.
  check(cudaDeviceSynchronize(), "zeroing device memory");
  Given& given = given_out();
  const std::scoped_lock lock(given.mutex);
  given.bytes[memory] = bytes;
  given.now += bytes;
  given.peak = std::max(given.peak, given.now);
  return memory;
}

void free_device(DeviceType, void* memory) noexcept {
  cudaFree(memory);
  Given& given = given_out();
  const std::scoped_lock lock(given.mutex);
  if (const auto found = given.bytes.find(memory); found != given.bytes.end()) {
    given.now -= found->second;
    given.bytes.erase(found);
  }
}

size_t device_memory_used() {
  const std::scoped_lock lock(given_out().mutex);
  return given_out().now;
}

size_t device_memory_peak() {
  const std::scoped_lock lock(given_out().mutex);
  return given_out().peak;
}

size_t device_memory_free(DeviceType device) {
  require_cuda(device);
  size_t free = 0, all = 0;
  check(cudaMemGetInfo(&free, &all), "asking for free device memory");
  return free;
}

}  // namespace degu
