// A communicator over another one that carries all small host data for it: for an accelerator's
// memory beside one for the host's, or for another way through the same ranks.
#pragma once

#include <cstdlib>
#include <memory>
#include <utility>

#include "comm/communicator.h"

namespace degu {

class RelayCommunicator : public Communicator {
 public:
  int rank() const final { return host_.rank(); }
  int size() const final { return host_.size(); }

  void barrier() final { host_.barrier(); }
  std::vector<std::string> gather_text(std::string_view mine) final {
    return host_.gather_text(mine);
  }
  std::string broadcast_text(std::string_view text, int root) final {
    return host_.broadcast_text(text, root);
  }
  std::unique_ptr<Communicator> split(int color, int key) final {
    std::unique_ptr<Communicator> part = host_.split(color, key);
    return part == nullptr ? nullptr : over(std::move(part));
  }
  std::unique_ptr<SharedCounter> make_counter(int64_t initial) final {
    return host_.make_counter(initial);
  }
  [[noreturn]] void abort(std::string_view reason, ExitCode code) final {
    host_.abort(reason, code);
    std::abort();  // the call does not return; the compiler cannot know
  }

 protected:
  // `host` outlives this communicator.
  explicit RelayCommunicator(Communicator& host) : host_(host) {}
  explicit RelayCommunicator(std::unique_ptr<Communicator> host)
      : owned_(std::move(host)), host_(*owned_) {}

  Communicator& host() const { return host_; }

 private:
  // What a group split from this communicator is, given the host's. Collective over the group.
  virtual std::unique_ptr<Communicator> over(std::unique_ptr<Communicator> group) = 0;

  std::unique_ptr<Communicator> owned_;
  Communicator& host_;
};

}  // namespace degu
