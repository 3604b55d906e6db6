// cuDNN's plans for attention over packed sequences (kernels/api/packed_attention.h). Names nothing
// of cuDNN's headers, which take a minute to compile.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string_view>

namespace degu::cuda {

// What a plan is made for. Fewer sequences may be given, shorter ones and fewer rows.
struct PackedShape {
  int64_t sequences = 0;  // missing ones have no rows
  int64_t longest = 0;    // rows of a sequence
  int64_t rows = 0;       // of all
  int64_t heads = 0;
  int64_t kv_heads = 0;
  int64_t width = 0;
  float scale = 1;
  friend auto operator<=>(const PackedShape&, const PackedShape&) = default;
};

// Device pointers. Offsets are in elements of what they belong to, sequences + 1 of them.
struct PackedPointers {
  const void* q;
  const void* k;
  const void* v;
  const void* out;  // written by the forward pass
  const void* lse;  // likewise
  const void* dout = nullptr;
  void* dq = nullptr;
  void* dk = nullptr;
  void* dv = nullptr;
  const int32_t* q_offsets = nullptr;
  const int32_t* kv_offsets = nullptr;
  const int32_t* lse_offsets = nullptr;
  const int32_t* lengths = nullptr;  // [sequences] rows
};

class CudnnPlan {
 public:
  virtual ~CudnnPlan() = default;
  virtual size_t workspace_bytes() const = 0;
  // On the stream of the library that made the plan.
  virtual void run(const PackedPointers& pointers, void* workspace) = 0;
};

// The library, opened for one GPU. DeviceError, with cuDNN's reason, for all that goes wrong.
class CudnnLibrary {
 public:
  virtual ~CudnnLibrary() = default;
  virtual std::unique_ptr<CudnnPlan> plan_forward(const PackedShape& shape) = 0;
  virtual std::unique_ptr<CudnnPlan> plan_backward(const PackedShape& shape) = 0;
};

// For the process's GPU. `stream`: a cudaStream_t.
std::unique_ptr<CudnnLibrary> open_cudnn(void* stream);
// For a GPU that need not be there, given its properties as cuDNN writes them in JSON, and its
// compute capability (90). cuDNN says whether it has kernels for a plan; they are not loaded, so
// the plan cannot be run and its workspace is not known (0).
std::unique_ptr<CudnnLibrary> open_cudnn_for(std::string_view properties_json, int capability);

}  // namespace degu::cuda
