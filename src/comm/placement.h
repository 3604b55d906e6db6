// Which cores a rank computes on.
//
// Open MPI binds each process of `mpirun -n 1` (and 2) to a single core unless told otherwise, so
// threads that the process starts would share that core. A rank therefore takes the cores that its
// launcher itself may use on this node, those being what the user, the batch system or the
// container granted, and keeps the share of them that its place among the node's ranks gives it.
// Shares of a node's ranks are disjoint; hardware threads of one core stay together. Where no
// launcher is found (srun, ranks started by hand), ranks of a node that may all run on the same
// cores share those out in the same way. A binding that
// was asked for by name (`--bind-to core`, `srun --cpu-bind`) is left as it is, and so is
// everything when DEGU_BIND=none is set.
#pragma once

#include <vector>

#include "comm/communicator.h"

namespace degu {

struct Placement {
  int local_rank = 0;  // among the ranks on this node, by rank
  int local_size = 1;
  std::vector<int> cpus;  // where this rank may run, ascending
  int cores = 1;          // distinct cores among them: the threads to compute with
  bool rebind = false;    // cpus differ from the present binding
};

// Collective. Changes nothing. Threads as ranks share the process's cores without rebinding.
Placement place_rank(Communicator& comm);

// Binds the calling thread, and with it all threads it will start, to placement.cpus.
void bind_rank(const Placement& placement);

// Cores of the node over its ranks, at least 1: what `threads: 0` means in a configuration.
// Collective.
int default_threads(Communicator& comm);

}  // namespace degu
