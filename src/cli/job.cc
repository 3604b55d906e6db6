#include "cli/job.h"

#include "comm/agree.h"
#include "comm/placement.h"
#include "comm/world.h"

namespace degu {

Job::Job(int threads) : world_(world_communicator()) {
  const Placement placement = place_rank(world_);
  bind_rank(placement);
  context_ = std::make_unique<Context>(ContextOptions{
      .threads = threads > 0 ? threads : placement.cores, .isa = agree_on_isa(world_)});
}

}  // namespace degu
