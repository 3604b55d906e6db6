// The one translation unit that carries Catch2's runner.
#define CATCH_CONFIG_RUNNER
#include "tests/support/session.h"

#include <catch2/catch.hpp>

namespace degu::test {

int run_session(int argc, char** argv) {
  return Catch::Session().run(argc, argv);
}

}  // namespace degu::test
