// Ranks as processes under MPI, on host memory.
//
// MPI calls return their error codes here and become CommErrors that name the collective, the rank
// and the sizes. One thread per process may use communicators (MPI_THREAD_FUNNELED).
#pragma once

#include <memory>
#include <string>

#include "comm/communicator.h"

namespace degu {

// Whether this build has MPI.
bool mpi_built();
// "Open MPI v4.1.4"; empty without MPI. May be asked before MPI is started.
std::string mpi_library();

// A communicator over all processes of the job. Starts MPI when nobody has. Collective over the
// job. ConfigError without MPI.
std::unique_ptr<Communicator> make_mpi_communicator(const CommOptions& options = {});

// Ends MPI if make_mpi_communicator started it; every MPI communicator must be gone. Collective.
void finalize_mpi();

}  // namespace degu
