// What every computing command starts with: the ranks, their cores, one instruction set, a context.
#pragma once

#include <memory>
#include <string_view>

#include "comm/communicator.h"
#include "tensor/context.h"

namespace degu {

class Job {
 public:
  // `threads` 0: the node's cores over its ranks. Collective.
  explicit Job(int threads);
  Communicator& world() { return world_; }
  Context& context() const { return *context_; }

 private:
  Communicator& world_;
  std::unique_ptr<Context> context_;
};

// ConfigError when this process is one of several ranks: for commands that would do the same work
// on each. Touches MPI only when a launcher started the process.
void require_one_rank(std::string_view command);

}  // namespace degu
