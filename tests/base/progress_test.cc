#include "base/progress.h"

#include <catch2/catch.hpp>

using namespace degu;

TEST_CASE("amounts and durations for people", "[progress]") {
  CHECK(format_amount(0, Progress::Unit::kCount) == "0");
  CHECK(format_amount(999, Progress::Unit::kCount) == "999");
  CHECK(format_amount(1000, Progress::Unit::kCount) == "1,000");
  CHECK(format_amount(-123456, Progress::Unit::kCount) == "-123,456");
  CHECK(format_amount(1234567, Progress::Unit::kCount) == "1,234,567");
  CHECK(format_amount(999, Progress::Unit::kBytes) == "999 B");
  CHECK(format_amount(1500, Progress::Unit::kBytes) == "1.5 kB");
  CHECK(format_amount(110600000, Progress::Unit::kBytes) == "110.6 MB");
  CHECK(format_amount(2500000000, Progress::Unit::kBytes) == "2.50 GB");
  CHECK(format_duration(-1) == "0 s");
  CHECK(format_duration(59.6) == "1 min 0 s");
  CHECK(format_duration(190) == "3 min 10 s");
  CHECK(format_duration(7500) == "2 h 5 min");
}

TEST_CASE("what was done before takes no part in rate and time left", "[progress]") {
  Progress fresh("train", 100), resumed("train", 100, Progress::Unit::kCount, 90);
  CHECK_THAT(resumed.line(5.0), Catch::EndsWith(" 90%, 0/s"));
  fresh.set(10);
  resumed.set(95);
  CHECK_THAT(fresh.line(20.0), Catch::EndsWith(" 10%, 3 min 0 s left, 1/s"));
  CHECK_THAT(resumed.line(5.0, "loss 2"), Catch::EndsWith(" 95%, 5 s left, 1/s, loss 2"));
}
