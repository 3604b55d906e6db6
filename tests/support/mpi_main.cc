// The main of binaries that mpirun starts: MPI begins before the tests and ends after them,
// and only rank 0 reports unless a rank fails.
#include <cstdio>
#include <iostream>
#include <sstream>

#include "comm/world.h"
#include "tests/support/session.h"

int main(int argc, char** argv) {
  return degu::run_as_job([&] {
    degu::Communicator& world = degu::world_communicator();
    std::ostringstream report;
    std::streambuf* console = nullptr;
    if (world.rank() != 0) console = std::cout.rdbuf(report.rdbuf());
    const int failures = degu::test::run_session(argc, argv);
    if (console != nullptr) std::cout.rdbuf(console);
    if (failures != 0) {
      if (world.rank() != 0)
        std::fprintf(stderr, "rank %d:\n%s", world.rank(), report.str().c_str());
      if (world.size() > 1) world.abort("tests failed", degu::ExitCode::kFailure);
    }
    return failures == 0 ? degu::ExitCode::kDone : degu::ExitCode::kFailure;
  });
}
