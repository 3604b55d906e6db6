#include "base/timer.h"

#include <catch2/catch.hpp>
#include <thread>

namespace {

TEST_CASE("a timer counts wall-clock seconds from its start or restart") {
  degu::Timer timer;
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  const double first = timer.seconds();
  CHECK(first >= 0.02);
  CHECK(timer.seconds() >= first);
  timer.restart();
  CHECK(timer.seconds() < first);
}

}  // namespace
