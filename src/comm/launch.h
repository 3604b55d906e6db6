// How this process was started, as its environment says: alone or as one of several ranks, and what
// connects them.
#pragma once

#include <string>

#include "comm/rendezvous.h"

namespace degu {

struct Launch {
  enum class Kind {
    kAlone,
    kMpi,      // mpirun, mpiexec, srun with PMI
    kSockets,  // DEGU_RENDEZVOUS: `job` says where the others are
    kUnclear   // started beside others whom nothing connects; `problem` says so in one line
  };
  Kind kind = Kind::kAlone;
  int ranks = 1;  // as far as the environment says; 0: MPI alone knows
  SocketJob job;
  std::string problem;
};

// Reads, in this order:
// - what mpirun and mpiexec set: MPI;
// - DEGU_RENDEZVOUS, a folder that all ranks see: sockets. The rank is DEGU_RANK of DEGU_RANKS, or
//   what srun says of its step. DEGU_JOB names the job (default: Slurm's job and step, else "job");
//   DEGU_RENDEZVOUS_TIMEOUT is in seconds (default 300). It comes before srun's PMI variables,
//   which are set whether or not MPI understands them;
// - DEGU_RANKS=1: alone, whatever Slurm says;
// - PMI's and PMIx's variables: MPI;
// - several tasks in Slurm's step: unclear.
// ConfigError for values that cannot be.
Launch find_launch();

// What to tell the user when Slurm has started `tasks` tasks and each is on its own.
std::string unconnected_tasks(int tasks);

}  // namespace degu
