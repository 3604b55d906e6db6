// In the place of mpi_comm.cc where there is no MPI.
#include "comm/mpi_comm.h"

namespace degu {

bool mpi_built() {
  return false;
}

std::string mpi_library() {
  return {};
}

std::unique_ptr<Communicator> make_mpi_communicator(const CommOptions&) {
  throw ConfigError(
      "an MPI launcher started this process, but this build has no MPI: install it and build "
      "again, or start the ranks without MPI, by DEGU_RENDEZVOUS (docs/cluster.md)");
}

void finalize_mpi() {}

}  // namespace degu
