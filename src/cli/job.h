// What every computing command starts with: the ranks, their cores or GPUs, one instruction set, a
// context.
#pragma once

#include <memory>
#include <string_view>

#include "cli/command_line.h"
#include "comm/communicator.h"
#include "tensor/context.h"

namespace degu {

class Job {
 public:
  // `threads` 0: the node's cores over its ranks. A rank takes the GPU of its place on its node;
  // when there are fewer GPUs than ranks they share, and exchange by way of the host. Collective.
  // `scratch_bytes`: of the context; a caller may change its mind before the first operator.
  explicit Job(int threads, DeviceType device = DeviceType::kCpu,
               size_t scratch_bytes = ContextOptions{}.scratch_bytes);
  // For tensors on the context's device.
  Communicator& world() { return device_world_ ? *device_world_ : ranks_; }
  Context& context() const { return *context_; }

 private:
  void open_device(const ContextOptions& options, int local_rank);

  Communicator& ranks_;
  std::unique_ptr<Context> context_;
  std::unique_ptr<Communicator> device_world_;
};

// --device: what computes.
void add_device_option(CommandLine& line, DeviceType& device);

// ConfigError when this process is one of several ranks: for commands that would do the same work
// on each. Touches MPI, or the other ranks, only when a launcher started the process.
void require_one_rank(std::string_view command);

}  // namespace degu
