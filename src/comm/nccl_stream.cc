#include "comm/nccl_stream.h"

#include <cuda_runtime_api.h>

#include "tensor/cuda_state.h"

namespace degu {
namespace {

void check(cudaError_t status, const char* what) {
  if (status != cudaSuccess) {
    throw DeviceError("CUDA: {} failed: {}", what, cudaGetErrorString(status));
  }
}

cudaEvent_t make_event() {
  cudaEvent_t event = nullptr;
  check(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "making an event");
  return event;
}

// The GPU that the process has open.
int present_device() {
  int ordinal = 0;
  check(cudaGetDevice(&ordinal), "asking for the GPU");
  return ordinal;
}

cudaStream_t stream_of(Context& context) {
  return static_cast<CudaState*>(context.device_state())->stream();
}

}  // namespace

NcclStream::NcclStream(Context& compute, size_t scratch_bytes)
    : own_({.threads = 1,
            .scratch_bytes = scratch_bytes,
            .device = DeviceType::kCuda,
            .ordinal = present_device()}),
      stream_(stream_of(own_)),
      compute_(stream_of(compute)),
      ready_(make_event()) {}

NcclStream::~NcclStream() {
  cudaEventDestroy(ready_);
  for (cudaEvent_t event : idle_) cudaEventDestroy(event);
}

void NcclStream::begin() {
  check(cudaEventRecord(ready_, compute_), "recording an event");
  check(cudaStreamWaitEvent(stream_, ready_), "letting a stream wait");
}

Work NcclStream::end() {
  if (idle_.empty()) idle_.push_back(make_event());
  cudaEvent_t done = idle_.back();
  idle_.pop_back();
  check(cudaEventRecord(done, stream_), "recording an event");
  return Work([self = shared_from_this(), done] { self->wait_for(done); });
}

// A wait that was put on a stream does not see what the event records later.
void NcclStream::wait_for(cudaEvent_t done) {
  check(cudaStreamWaitEvent(compute_, done), "letting a stream wait");
  idle_.push_back(done);
}

}  // namespace degu
