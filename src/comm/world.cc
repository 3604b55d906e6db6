#include "comm/world.h"

#include <cstdio>
#include <exception>

#include "base/log.h"
#include "comm/launch.h"
#include "comm/mpi_comm.h"
#include "comm/socket_comm.h"

namespace degu {
namespace {

std::unique_ptr<Communicator>& world_slot() {
  static std::unique_ptr<Communicator> slot;
  return slot;
}

std::unique_ptr<Communicator> make_world() {
  const Launch launch = find_launch();
  switch (launch.kind) {
    case Launch::Kind::kAlone:
      break;
    case Launch::Kind::kUnclear:
      throw ConfigError("{}", launch.problem);
    case Launch::Kind::kSockets:
      return make_socket_communicator(launch.job);
    case Launch::Kind::kMpi: {
      auto world = make_mpi_communicator();
      // srun sets the variables of its own PMI; an MPI that was built without it starts alone.
      if (world->size() == 1 && launch.ranks > 1) {
        throw ConfigError("{}", unconnected_tasks(launch.ranks));
      }
      return world;
    }
  }
  return make_self_communicator();
}

// The line and the code of what a command threw.
int report(const char* what, ExitCode code) {
  if (world_slot() && world_slot()->size() > 1) world_slot()->abort(what, code);
  std::fprintf(stderr, "degu: %s\n", what);
  return static_cast<int>(code);
}

}  // namespace

Communicator& world_communicator() {
  std::unique_ptr<Communicator>& world = world_slot();
  if (!world) {
    world = make_world();
    set_log_rank(world->rank(), world->size());
  }
  return *world;
}

int run_as_job(const std::function<ExitCode()>& body) {
  int code = 0;
  try {
    code = static_cast<int>(body());
  } catch (const Error& error) {
    code = report(error.what(), error.exit_code());
  } catch (const std::bad_alloc&) {
    code = report("out of memory", ExitCode::kFailure);
  } catch (const std::exception& error) {
    code = report(error.what(), ExitCode::kFailure);
  } catch (...) {
    code = report("unknown exception", ExitCode::kFailure);
  }
  world_slot().reset();
  finalize_mpi();
  return code;
}

}  // namespace degu
