// Started by job_test under mpirun and by socket_job_test: `job_probe MODE`.
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <thread>

#include "comm/agree.h"
#include "comm/mesh.h"
#include "comm/placement.h"
#include "comm/world.h"
#include "tensor/tensor.h"

namespace degu {
namespace {

ExitCode run(const std::string& mode) {
  if (mode == "serial") {  // touches no communicator, hence no MPI
    std::printf("serial\n");
    return ExitCode::kDone;
  }
  Communicator& world = world_communicator();
  const int last = world.size() - 1;
  if (mode == "place") {
    const Placement placement = place_rank(world);
    bind_rank(placement);
    std::string cpus;
    for (int cpu : placement.cpus) cpus += fmt::format(" {}", cpu);
    // A thread started now inherits the binding.
    int inherited = 0;
    std::thread([&] { inherited = physical_cores(); }).join();
    const std::string line = fmt::format("rank {} threads {} inherited {} cpus{}", world.rank(),
                                         placement.cores, inherited, cpus);
    for (const std::string& text : world.gather_text(line)) {
      if (world.rank() == 0) std::printf("%s\n", text.c_str());
    }
    return ExitCode::kDone;
  }
  if (mode == "isa") {
    const Isa isa = agree_on_isa(world);
    if (world.rank() == 0) std::printf("isa %s\n", std::string(isa_name(isa)).c_str());
    return ExitCode::kDone;
  }
  if (mode == "mesh") {
    const Mesh mesh(world, world.size());
    if (world.rank() == 0) std::printf("mesh two_stage %d\n", mesh.two_stage() ? 1 : 0);
    return ExitCode::kDone;
  }
  world.barrier();
  if (mode == "well") return ExitCode::kDone;
  if (mode == "all") throw NumericError("the loss of step 3 is nan");
  if (mode == "kill_first" && world.rank() == 0) std::raise(SIGKILL);
  if (mode == "busy") {  // in no call when the last rank fails
    if (world.rank() == last) throw DataError("shard 7 is truncated");
    std::this_thread::sleep_for(std::chrono::seconds(60));
  }
  if (world.rank() == last) {
    if (mode == "throw") throw DataError("shard 7 is truncated");
    if (mode == "nested") {
      const auto part = world.split(0, 0);
      const auto counter = world.make_counter(0);
      throw IoError("disk full");
    }
    if (mode == "kill") std::raise(SIGKILL);
    if (mode == "crash") std::abort();
    if (mode == "exit") std::exit(9);
  }
  if (mode == "nested" && world.rank() != last) {
    const auto part = world.split(0, 0);
    const auto counter = world.make_counter(0);
    part->barrier();
  }
  Context ctx({.threads = 1, .scratch_bytes = 4096});
  Tensor x(DType::kF32, {1000});
  while (true) world.all_reduce(ctx, x, Reduce::kSum).wait();  // waits for one who never comes
}

}  // namespace
}  // namespace degu

int main(int argc, char** argv) {
  return degu::run_as_job([&] { return degu::run(argc > 1 ? argv[1] : ""); });
}
