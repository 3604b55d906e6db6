// The communicator over the whole job, and the frame in which a program runs on it.
#pragma once

#include <functional>

#include "comm/communicator.h"

namespace degu {

// All ranks of the job: by MPI when its launcher started this process, by sockets when
// DEGU_RENDEZVOUS names where the ranks meet (comm/launch.h), one rank on its own otherwise. Made
// at the first call, which is collective; a command that never calls it never touches MPI.
// ConfigError when there are other ranks and nothing connects them. Sets the rank that log lines
// carry. Lives until run_as_job ends.
Communicator& world_communicator();

// Runs `body` and returns the process's exit code. An exception is printed as one line ("degu: rank
// 1 of 2: …") and ends the whole job with the error's own code, so that no other rank waits for
// ever. main() of every program:  return degu::run_as_job([&] { return command(); });
int run_as_job(const std::function<ExitCode()>& body);

}  // namespace degu
