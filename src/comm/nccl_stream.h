// The stream of a GPU on which collectives run, beside the one on which operators run.
#pragma once

#include <memory>
#include <vector>

#include "comm/communicator.h"
#include "tensor/context.h"

// CUDA's handles are pointers to these.
struct CUstream_st;
struct CUevent_st;

namespace degu {

// One per process. Between `begin` and `end` come one call's collectives and the operators between
// them. The host waits nowhere.
class NcclStream : public std::enable_shared_from_this<NcclStream> {
 public:
  // `compute` runs the operators; it outlives this. `scratch_bytes`: for what runs here.
  NcclStream(Context& compute, size_t scratch_bytes);
  ~NcclStream();
  NcclStream(const NcclStream&) = delete;
  NcclStream& operator=(const NcclStream&) = delete;

  CUstream_st* stream() const { return stream_; }
  // For operators that run on this stream.
  Context& context() { return own_; }

  // What is put on this stream from now on comes after all that `compute` was given before.
  void begin();
  // `wait` lets what `compute` is given from then on come after all that this stream has now.
  Work end();

 private:
  void wait_for(CUevent_st* done);

  Context own_;
  CUstream_st* stream_;
  CUstream_st* compute_;
  CUevent_st* ready_ = nullptr;
  std::vector<CUevent_st*> idle_;
};

}  // namespace degu
