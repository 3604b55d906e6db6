// Ranks as processes connected by TCP, on host memory: for machines without MPI, and for batch
// systems that cannot start MPI's ranks. One connection for each pair of ranks carries the
// collectives of all groups; nothing is tuned to a network.
//
// A rank that fails or dies ends the whole job within seconds, like MPI's: one line names it, and
// all processes exit with its code. The thread that sees to that is comm/socket_world.h's.
#pragma once

#include <memory>

#include "comm/communicator.h"
#include "comm/rendezvous.h"

namespace degu {

// A communicator over all processes of the job. Collective. What it and the communicators split
// from it share ends with the last of them; that waits until all ranks have come so far. Errors:
// those of meet() (comm/rendezvous.h).
std::unique_ptr<Communicator> make_socket_communicator(const SocketJob& job,
                                                       const CommOptions& options = {});

}  // namespace degu
