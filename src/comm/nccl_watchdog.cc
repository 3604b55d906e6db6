#include "comm/nccl_watchdog.h"

#include <cuda_runtime_api.h>
#include <nccl.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>

#include "base/error.h"

namespace degu {
namespace {

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

double limit_seconds() {
  const char* text = std::getenv("DEGU_NCCL_TIMEOUT");
  if (text == nullptr || *text == '\0') return 600;
  char* end = nullptr;
  const double seconds = std::strtod(text, &end);
  if (*end != '\0' || !(seconds > 0)) {
    throw ConfigError("DEGU_NCCL_TIMEOUT is '{}', must be a number of seconds above 0", text);
  }
  return seconds;
}

[[noreturn]] void end_process(const std::string& what, const char* why) {
  std::fprintf(stderr, "degu: %s: %s\n", what.c_str(), why);
  std::fflush(nullptr);
  std::_Exit(static_cast<int>(ExitCode::kComm));
}

}  // namespace

NcclWatchdog::NcclWatchdog() : limit_(limit_seconds()) {
  cudaGetDevice(&device_);
  thread_ = std::thread([this] { loop(); });
}

NcclWatchdog::~NcclWatchdog() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  wake_.notify_one();
  thread_.join();
  for (Pending& p : pending_) idle_.push_back(p.done);
  for (cudaEvent_t event : idle_) cudaEventDestroy(event);
}

void NcclWatchdog::watch(ncclComm_t comm, cudaStream_t stream, std::string what) {
  const std::lock_guard lock(mutex_);
  cudaEvent_t event = nullptr;
  if (!idle_.empty()) {
    event = idle_.back();
    idle_.pop_back();
  } else if (cudaEventCreateWithFlags(&event, cudaEventDisableTiming) != cudaSuccess) {
    throw DeviceError("CUDA: making an event failed");
  }
  if (cudaEventRecord(event, stream) != cudaSuccess) {
    throw DeviceError("CUDA: recording an event failed");
  }
  pending_.push_back({comm, event, std::move(what), now()});
}

void NcclWatchdog::forget(ncclComm_t comm) {
  const std::lock_guard lock(mutex_);
  std::deque<Pending> rest;
  for (Pending& p : pending_) {
    if (p.comm == comm) {
      idle_.push_back(p.done);
    } else {
      rest.push_back(std::move(p));
    }
  }
  pending_ = std::move(rest);
}

void NcclWatchdog::look() {
  while (!pending_.empty()) {
    Pending& oldest = pending_.front();
    ncclResult_t state = ncclSuccess;
    ncclCommGetAsyncError(oldest.comm, &state);
    if (state != ncclSuccess && state != ncclInProgress) {
      end_process(oldest.what, ncclGetErrorString(state));
    }
    const cudaError_t status = cudaEventQuery(oldest.done);
    if (status == cudaErrorNotReady) {
      if (now() - oldest.since > limit_) {
        end_process(oldest.what,
                    "not finished in time; another rank did not take part, or the link is down "
                    "(DEGU_NCCL_TIMEOUT sets the limit in seconds)");
      }
      return;
    }
    if (status != cudaSuccess) end_process(oldest.what, cudaGetErrorString(status));
    idle_.push_back(oldest.done);
    pending_.pop_front();
  }
}

void NcclWatchdog::loop() {
  cudaSetDevice(device_);
  std::unique_lock lock(mutex_);
  while (!stop_) {
    look();
    wake_.wait_for(lock, std::chrono::milliseconds(100));
  }
}

}  // namespace degu
