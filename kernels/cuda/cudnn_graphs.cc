#include "kernels/cuda/cudnn_graphs.h"

#define NV_CUDNN_FRONTEND_USE_DYNAMIC_LOADING
#include <cudnn_frontend.h>
#include <dlfcn.h>

#include <array>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "base/error.h"

// The frontend's way into the library once it is loaded.
namespace cudnn_frontend {
void* cudnn_dlhandle = nullptr;
}

namespace degu::cuda {
namespace {

namespace fe = cudnn_frontend;
using Tensor = std::shared_ptr<fe::graph::Tensor_attributes>;

enum Uid : int64_t {
  kQ = 1,
  kK,
  kV,
  kOut,
  kLse,
  kDout,
  kDq,
  kDk,
  kDv,
  kQAt,
  kKvAt,
  kLseAt,
  kLengths
};

void check(fe::error_t error, const char* what) {
  if (error.is_bad()) {
    throw DeviceError("cuDNN: {} failed: {}; train.attention: own needs no cuDNN", what,
                      error.get_message());
  }
}

void check(cudnnStatus_t status, const char* what) {
  if (status != CUDNN_STATUS_SUCCESS) {
    throw DeviceError("cuDNN: {} failed: {}", what, fe::detail::get_error_string(status));
  }
}

void load_library() {
  if (fe::cudnn_dlhandle != nullptr) return;
  std::string reason;
  for (const char* name : {DEGU_CUDNN_LIBRARY, "libcudnn.so.9"}) {
    if (name[0] == '\0') continue;
    fe::cudnn_dlhandle = ::dlopen(name, RTLD_NOW | RTLD_GLOBAL);
    if (fe::cudnn_dlhandle != nullptr) return;
    reason = ::dlerror();
  }
  throw DeviceError("cuDNN: {}; install cuDNN 9 or put its folder into LD_LIBRARY_PATH", reason);
}

// One side of packed sequences: rows of `heads` vectors of `width`, sequence after sequence.
class Builder {
 public:
  // `capability`: of a GPU that is not there, or 0. What is added to a graph takes it over at once.
  Builder(const PackedShape& shape, int capability)
      : shape_(shape), graph_(std::make_shared<fe::graph::Graph>()) {
    if (capability > 0) graph_->set_sm_version(capability);
    graph_->set_io_data_type(fe::DataType_t::BFLOAT16)
        .set_intermediate_data_type(fe::DataType_t::FLOAT)
        .set_compute_data_type(fe::DataType_t::FLOAT);
    q_at_ = offsets("q_offsets", kQAt);
    kv_at_ = offsets("kv_offsets", kKvAt);
    lse_at_ = offsets("lse_offsets", kLseAt);
    lengths_ = graph_->tensor(numbers("lengths", kLengths, shape.sequences));
  }

  const std::shared_ptr<fe::graph::Graph>& graph() const { return graph_; }
  const Tensor& lengths() const { return lengths_; }

  Tensor queries(const char* name, Uid uid) {
    return graph_->tensor(placed(named(name, uid), true));
  }
  Tensor keys(const char* name, Uid uid) { return graph_->tensor(placed(named(name, uid), false)); }
  Tensor lse() {
    auto attributes = named("lse", kLse);
    place_lse(attributes);
    return graph_->tensor(attributes);
  }
  // What the graph writes.
  void write_queries(const Tensor& out, Uid uid) const { write(out, uid, true); }
  void write_keys(const Tensor& out, Uid uid) const { write(out, uid, false); }
  void write_lse(const Tensor& out) const {
    place_lse(*out);
    out->set_output(true).set_uid(kLse);
  }

 private:
  using Attributes = fe::graph::Tensor_attributes;
  static Attributes named(const char* name, Uid uid) {
    return Attributes().set_name(name).set_uid(uid);
  }
  static Attributes numbers(const char* name, Uid uid, int64_t count) {
    return named(name, uid)
        .set_dim({count, 1, 1, 1})
        .set_stride({1, 1, 1, 1})
        .set_data_type(fe::DataType_t::INT32);
  }
  Tensor offsets(const char* name, Uid uid) {
    return graph_->tensor(numbers(name, uid, shape_.sequences + 1));
  }
  Attributes& placed(Attributes&& attributes, bool queries) const {
    place(attributes, queries);
    return attributes;
  }
  void place(Attributes& attributes, bool queries) const {
    const int64_t heads = queries ? shape_.heads : shape_.kv_heads, width = shape_.width;
    attributes.set_dim({shape_.sequences, heads, shape_.longest, width})
        .set_stride({shape_.longest * heads * width, width, heads * width, 1})
        .set_ragged_offset(queries ? q_at_ : kv_at_);
  }
  void place_lse(Attributes& attributes) const {
    attributes.set_data_type(fe::DataType_t::FLOAT)
        .set_dim({shape_.sequences, shape_.heads, shape_.longest, 1})
        .set_stride({shape_.longest * shape_.heads, 1, shape_.heads, 1})
        .set_ragged_offset(lse_at_);
  }
  void write(const Tensor& out, Uid uid, bool queries) const {
    place(*out, queries);
    out->set_output(true).set_uid(uid);
  }

  PackedShape shape_;
  std::shared_ptr<fe::graph::Graph> graph_;
  Tensor q_at_, kv_at_, lse_at_, lengths_;
};

std::shared_ptr<fe::graph::Graph> forward_graph(const PackedShape& shape, int capability) {
  Builder b(shape, capability);
  const auto options = fe::graph::SDPA_attributes()
                           .set_name("attention")
                           .set_generate_stats(true)
                           .set_causal_mask(true)
                           .set_attn_scale(shape.scale)
                           .set_padding_mask(true)
                           .set_seq_len_q(b.lengths())
                           .set_seq_len_kv(b.lengths());
  const auto [out, lse] =
      b.graph()->sdpa(b.queries("q", kQ), b.keys("k", kK), b.keys("v", kV), options);
  b.write_queries(out, kOut);
  b.write_lse(lse);
  return b.graph();
}

std::shared_ptr<fe::graph::Graph> backward_graph(const PackedShape& shape, int capability) {
  Builder b(shape, capability);
  const auto options = fe::graph::SDPA_backward_attributes()
                           .set_name("attention_backward")
                           .set_causal_mask(true)
                           .set_attn_scale(shape.scale)
                           .set_padding_mask(true)
                           .set_seq_len_q(b.lengths())
                           .set_seq_len_kv(b.lengths())
                           .set_max_total_seq_len_q(shape.rows)
                           .set_max_total_seq_len_kv(shape.rows);
  const auto [dq, dk, dv] =
      b.graph()->sdpa_backward(b.queries("q", kQ), b.keys("k", kK), b.keys("v", kV),
                               b.queries("out", kOut), b.queries("dout", kDout), b.lse(), options);
  b.write_queries(dq, kDq);
  b.write_keys(dk, kDk);
  b.write_keys(dv, kDv);
  return b.graph();
}

class Plan final : public CudnnPlan {
 public:
  Plan(std::shared_ptr<fe::graph::Graph> graph, cudnnHandle_t handle)
      : graph_(std::move(graph)), handle_(handle) {
    if (handle == nullptr) return;
    check(graph_->build_plans(), "planning attention");
    check(graph_->get_workspace_size(workspace_), "asking for a plan's workspace");
  }
  size_t workspace_bytes() const override { return static_cast<size_t>(workspace_); }
  void run(const PackedPointers& p, void* workspace) override {
    if (handle_ == nullptr) throw DeviceError("cuDNN: a plan for a GPU that is not there");
    const auto at = [](const void* pointer) { return const_cast<void*>(pointer); };
    std::unordered_map<int64_t, void*> places = {{kQ, at(p.q)},
                                                 {kK, at(p.k)},
                                                 {kV, at(p.v)},
                                                 {kOut, at(p.out)},
                                                 {kLse, at(p.lse)},
                                                 {kQAt, at(p.q_offsets)},
                                                 {kKvAt, at(p.kv_offsets)},
                                                 {kLseAt, at(p.lse_offsets)},
                                                 {kLengths, at(p.lengths)}};
    if (p.dq != nullptr) {
      places.insert({{kDout, at(p.dout)}, {kDq, p.dq}, {kDk, p.dk}, {kDv, p.dv}});
    }
    check(graph_->execute(handle_, places, workspace), "attention");
  }

 private:
  std::shared_ptr<fe::graph::Graph> graph_;
  cudnnHandle_t handle_;
  int64_t workspace_ = 0;
};

class Library final : public CudnnLibrary {
 public:
  explicit Library(void* stream) {
    load_library();
    check(fe::detail::create_handle(&handle_), "starting cuDNN");
    check(fe::detail::set_stream(handle_, static_cast<cudaStream_t>(stream)), "setting the stream");
  }
  Library(std::string_view described, int capability) : capability_(capability) {
    load_library();
    properties_ = std::make_shared<fe::DeviceProperties>();
    check(properties_->deserialize({described.begin(), described.end()}),
          "reading a GPU's properties");
  }
  ~Library() override {
    if (handle_ != nullptr) fe::detail::destroy_handle(handle_);
  }
  Library(const Library&) = delete;
  Library& operator=(const Library&) = delete;

  std::unique_ptr<CudnnPlan> plan_forward(const PackedShape& shape) override {
    return plan(forward_graph(shape, capability_));
  }
  std::unique_ptr<CudnnPlan> plan_backward(const PackedShape& shape) override {
    return plan(backward_graph(shape, capability_));
  }

 private:
  std::unique_ptr<CudnnPlan> plan(std::shared_ptr<fe::graph::Graph> graph) {
    if (properties_ != nullptr) graph->set_device_properties(properties_);
    check(graph->validate(), "describing attention");
    check(
        handle_ != nullptr ? graph->build_operation_graph(handle_) : graph->build_operation_graph(),
        "describing attention");
    check(graph->create_execution_plans({fe::HeurMode_t::A}), "planning attention");
    check(graph->check_support(), "planning attention");
    return std::make_unique<Plan>(std::move(graph), handle_);
  }

  cudnnHandle_t handle_ = nullptr;
  std::shared_ptr<fe::DeviceProperties> properties_;
  int capability_ = 0;
};

}  // namespace

std::unique_ptr<CudnnLibrary> open_cudnn(void* stream) {
  return std::make_unique<Library>(stream);
}

std::unique_ptr<CudnnLibrary> open_cudnn_for(std::string_view properties_json, int capability) {
  return std::make_unique<Library>(properties_json, capability);
}

}  // namespace degu::cuda
