// What every computing command starts with: the ranks, their cores, one instruction set, a context.
#pragma once

#include <memory>

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

}  // namespace degu
