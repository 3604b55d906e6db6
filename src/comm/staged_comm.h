// Collectives on an accelerator's memory by way of the host: what is on the device is copied to the
// host, exchanged there by another communicator, and copied back. Slow, and right on any number of
// ranks per device: for one rank, for ranks that share a GPU, and where NCCL is missing. Its sums
// are those of the communicator underneath, bit for bit.
#pragma once

#include <memory>

#include "comm/communicator.h"

namespace degu {

// Takes views on the host (straight through) or on the device of the context that each call brings.
// `inner` outlives it; so do the groups split from it, which own theirs.
std::unique_ptr<Communicator> make_staged_communicator(Communicator& inner);

}  // namespace degu
