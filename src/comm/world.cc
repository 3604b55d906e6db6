#include "comm/world.h"

#include <cstdio>
#include <exception>

#include "base/log.h"
#include "comm/mpi_comm.h"

namespace degu {
namespace {

std::unique_ptr<Communicator>& world_slot() {
  static std::unique_ptr<Communicator> slot;
  return slot;
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
    world = started_by_mpi_launcher() ? make_mpi_communicator() : make_self_communicator();
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
