// One GPU as the CUDA backend's kernels see it. Names nothing of the CUDA headers, so that it
// compiles without them; only a build with CUDA has its functions.
#pragma once

#include <memory>
#include <unordered_map>
#include <vector>

#include "tensor/device.h"

struct CUstream_st;  // cudaStream_t is a pointer to it

namespace degu {

class CudaState final : public DeviceState {
 public:
  explicit CudaState(int ordinal);
  ~CudaState() override;
  CudaState(const CudaState&) = delete;
  CudaState& operator=(const CudaState&) = delete;

  void upload(void* to, const void* from, size_t bytes) override;
  void move(void* to, const void* from, size_t bytes) override;
  void zero(void* at, size_t bytes) override;
  void download(void* to, const void* from, size_t bytes) override;
  void download_later(void* to, const void* from, size_t bytes) override;
  void* allocate_host(size_t bytes) override;
  void free_host(void* memory) noexcept override;
  void synchronize() override;
  std::unique_ptr<DeviceMark> make_mark() override;
  std::string description() const override;
  std::string identity() const override { return identity_; }
  void begin_range(const char* name) override;
  void end_range() override;
  std::unique_ptr<DeviceGraph> capture(const std::function<void()>& work) override;
  const int64_t* one_group(int64_t rows) override;

  CUstream_st* stream() const { return stream_; }
  int multiprocessors() const { return multiprocessors_; }
  // What a vendor's library for attention keeps between calls; null until it is first used.
  std::shared_ptr<void>& attention_library() { return attention_library_; }
  // DeviceError that names the operator when its last launch failed.
  void check_launch(const char* op);
  // DeviceError: `what` of the operator is `value`, its kernels take at most `most`.
  [[noreturn]] static void refuse(const char* op, const char* what, int64_t value, int64_t most);

 private:
  struct Staging;
  struct Capture;
  class Mark;
  const char* at_work() const override;

  CUstream_st* stream_ = nullptr;
  int ordinal_;
  int multiprocessors_ = 0;
  std::string name_, identity_;
  size_t memory_ = 0;
  int numa_node_ = -1;  // -1: the system does not say
  std::unique_ptr<Staging> staging_;
  std::vector<const char*> ranges_;
  std::shared_ptr<void> attention_library_;
  int64_t* groups_ = nullptr;  // pairs {0, rows}
  std::unordered_map<int64_t, int64_t> group_of_rows_;
};

}  // namespace degu
