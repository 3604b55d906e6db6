#include "cli/job.h"

#include <unistd.h>

#include <set>
#include <string>
#include <vector>

#include "base/log.h"
#include "comm/agree.h"
#include "comm/launch.h"
#include "comm/nccl_comm.h"
#include "comm/placement.h"
#include "comm/staged_comm.h"
#include "comm/world.h"
#include "tensor/device.h"

namespace degu {

Job::Job(int threads, DeviceType device, size_t scratch_bytes) : ranks_(world_communicator()) {
  const Placement placement = place_rank(ranks_);
  bind_rank(placement);
  const ContextOptions options{.threads = threads > 0 ? threads : placement.cores,
                               .scratch_bytes = scratch_bytes,
                               .isa = agree_on_isa(ranks_),
                               .device = device};
  if (device == DeviceType::kCpu) {
    context_ = std::make_unique<Context>(options);
  } else {
    open_device(options, placement.local_rank);
  }
}

void Job::open_device(const ContextOptions& options, int local_rank) {
  const int devices = device_count(options.device);
  ContextOptions own = options;
  own.ordinal = devices > 0 ? local_rank % devices : 0;
  run_together(ranks_, [&] { context_ = std::make_unique<Context>(own); });
  // Slurm may show each rank a GPU of its own alone, so counts of GPUs do not tell.
  const std::vector<std::string> gpus = ranks_.gather_text(context_->device_state()->identity());
  const bool shared = std::set<std::string>(gpus.begin(), gpus.end()).size() < gpus.size();
  const bool nccl = ranks_.size() > 1 && !shared && nccl_built();
  device_world_ =
      nccl ? make_nccl_communicator(ranks_, *context_) : make_staged_communicator(ranks_);

  char host[256] = {};
  gethostname(host, sizeof(host) - 1);
  const std::vector<std::string> table = ranks_.gather_text(fmt::format(
      "{}: {}, {} threads", host, context_->device_state()->description(), own.threads));
  if (ranks_.rank() != 0) return;
  for (size_t r = 0; r < table.size(); ++r) log_info("rank {} on {}", r, table[r]);
  if (table.size() > 1) {
    log_info("ranks exchange {}", nccl     ? "by NCCL"
                                  : shared ? "by way of the host: some share a GPU"
                                           : "by way of the host: this build has no NCCL");
  }
}

void add_device_option(CommandLine& line, DeviceType& device) {
  line.option("--device", device, "what computes: cpu, or cuda (a GPU per rank)");
}

void require_one_rank(std::string_view command) {
  const Launch launch = find_launch();
  const bool connected = launch.kind == Launch::Kind::kMpi || launch.kind == Launch::Kind::kSockets;
  if ((connected ? world_communicator().size() : launch.ranks) > 1) {
    throw ConfigError("degu {} runs on one rank; start a single process, without mpirun or srun -n",
                      command);
  }
}

}  // namespace degu
