#include "cli/job.h"

#include "comm/agree.h"
#include "comm/mpi_comm.h"
#include "comm/placement.h"
#include "comm/world.h"

namespace degu {

Job::Job(int threads) : world_(world_communicator()) {
  const Placement placement = place_rank(world_);
  bind_rank(placement);
  context_ = std::make_unique<Context>(ContextOptions{
      .threads = threads > 0 ? threads : placement.cores, .isa = agree_on_isa(world_)});
}

void require_one_rank(std::string_view command) {
  if (started_by_mpi_launcher() && world_communicator().size() > 1) {
    throw ConfigError("degu {} runs on one rank; start it without mpirun", command);
  }
}

}  // namespace degu
