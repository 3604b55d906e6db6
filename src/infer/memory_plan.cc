#include "infer/memory_plan.h"

#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <string>

#include "base/error.h"
#include "kernels/api/quantize.h"

namespace degu {
namespace {

// A block of rows, a panel of weights and an attention tile stay within a core's second-level
// cache; this is more than any of them takes.
constexpr size_t kKernelBytesPerThread = size_t{1} << 20;

// One phase of a pass: what it holds at the same time.
class Phase {
 public:
  Phase(DType activation, bool integers) : activation_(activation), integers_(integers) {}
  // The input of a product: its codes, or nothing but the view that exists already.
  void product_input(int64_t rows, int64_t width) {
    if (integers_) Activation::take(counter_, std::max<int64_t>(rows, 1), width);
  }
  void rows(int64_t rows, int64_t width) { take(activation_, rows, width); }
  void take(DType type, int64_t rows, int64_t width) {
    counter_.take(type, {std::max<int64_t>(rows, 1), width});
  }
  size_t bytes() const { return counter_.used(); }

 private:
  Arena counter_ = Arena::measuring();
  DType activation_;
  bool integers_;
};

// A line of /proc/self/status, which counts in KiB.
size_t status_bytes(const std::string& key) {
  std::ifstream file("/proc/self/status");
  for (std::string line; std::getline(file, line);) {
    if (line.starts_with(key)) return std::stoull(line.substr(key.size())) * 1024;
  }
  throw IoError("/proc/self/status has no {}", key);
}

}  // namespace

size_t scratch_bytes(int threads, ParameterSet& parameters, const PassLimits& limits, int ranks) {
  const ModelShape& s = parameters.shape();
  const bool integers = std::any_of(
      parameters.all().begin(), parameters.all().end(),
      [](const auto& p) { return scheme_info(p->forward.scheme).integer_activations(); });
  const DType type = parameters.activation();

  Phase attention(type, integers);
  attention.product_input(limits.rows, s.width);
  attention.product_input(limits.rows, int64_t{s.heads} * s.head_width);
  attention.take(DType::kF32, limits.rows, s.head_width);  // cosines and sines of the positions
  attention.take(DType::kF64, s.head_width, 1);
  attention.take(DType::kI64, limits.rows * s.kv_heads, 8);  // the list of tasks

  Phase dense(type, integers);
  dense.product_input(limits.rows, s.width);
  dense.product_input(limits.rows, std::max<int64_t>(s.ffn_width, int64_t{s.moe.shared_experts} *
                                                                      s.moe.expert_width));

  Phase experts(type, integers);
  if (s.moe.experts > 0) {
    const int64_t sent = limits.rows * s.moe.top_k;
    const int64_t here = std::max<int64_t>(parameters.experts().count, 1);
    const int64_t received = ranks * limits.rows * std::min<int64_t>(s.moe.top_k, here);
    if (type != DType::kF32) experts.take(DType::kF32, limits.rows, s.width);  // the router's copy
    experts.take(DType::kI64, sent, 2);
    experts.take(DType::kI32, sent, 1);  // where a placement puts the chosen experts
    experts.take(DType::kI64, 64, s.moe.experts);
    experts.product_input(limits.rows, s.width);
    experts.product_input(received, s.width);
    experts.product_input(received, s.moe.expert_width);
    if (ranks > 1) {
      experts.rows(sent, s.width);
      experts.rows(2 * received, s.width);  // the experts' answers, and in the senders' order
    }
  }

  Phase head(type, integers);
  head.product_input(limits.logit_rows, s.width);

  const size_t largest =
      std::max({attention.bytes(), dense.bytes() + experts.bytes(), head.bytes()});
  return largest + static_cast<size_t>(threads) * kKernelBytesPerThread;
}

size_t resident_bytes() {
  std::ifstream file("/proc/self/statm");
  size_t all = 0, resident = 0;
  if (!(file >> all >> resident)) throw IoError("/proc/self/statm cannot be read");
  return resident * static_cast<size_t>(sysconf(_SC_PAGESIZE));
}

size_t anonymous_bytes() {
  return status_bytes("RssAnon:");
}

size_t peak_resident_bytes() {
  return status_bytes("VmHWM:");
}

}  // namespace degu
