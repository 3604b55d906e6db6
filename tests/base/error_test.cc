#include "base/error.h"

#include <catch2/catch.hpp>

namespace {

TEST_CASE("each error carries its exit code and its text") {
  const auto code_of = [](const degu::Error& error) { return static_cast<int>(error.exit_code()); };
  // The values are documented and relied upon by scripts.
  CHECK(code_of(degu::ConfigError("x")) == 2);
  CHECK(code_of(degu::ShapeError("x")) == 2);
  CHECK(code_of(degu::IoError("x")) == 3);
  CHECK(code_of(degu::DataError("x")) == 4);
  CHECK(code_of(degu::NumericError("x")) == 5);
  CHECK(code_of(degu::CommError("x")) == 6);
  CHECK(code_of(degu::DeviceError("x")) == 1);
  CHECK(static_cast<int>(degu::ExitCode::kInterrupted) == 75);
  CHECK(std::string(degu::IoError("{}: {} of {} bytes", "f.h5", 3, 7).what()) ==
        "f.h5: 3 of 7 bytes");
}

TEST_CASE("errors are caught as Error and as std::exception") {
  CHECK_THROWS_AS(throw degu::ConfigError("bad"), degu::Error);
  CHECK_THROWS_AS(throw degu::ConfigError("bad"), std::runtime_error);
}

}  // namespace
