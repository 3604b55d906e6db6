#include "io/atomic_file.h"

#include <unistd.h>
#include <catch2/catch.hpp>

#include <filesystem>
#include <fstream>
#include <string>

#include "base/error.h"

using namespace degu;
namespace fs = std::filesystem;

TEST_CASE("an atomic file appears whole or not at all", "[atomic_file]") {
  const fs::path folder = fs::temp_directory_path() / ("degu_atomic_" + std::to_string(::getpid()));
  fs::remove_all(folder);
  const std::string path = (folder / "deep" / "file.txt").string();
  write_file_atomic(path, "first");
  CHECK(read_file(path) == "first");
  {
    AtomicFile file(path);
    std::ofstream(file.temporary()) << "second";
    CHECK(read_file(path) == "first");
  }
  CHECK(read_file(path) == "first");
  CHECK_FALSE(fs::exists(path + ".partial"));
  {
    AtomicFile file(path);
    std::ofstream(file.temporary()) << "second";
    file.commit();
  }
  CHECK(read_file(path) == "second");
  CHECK_FALSE(fs::exists(path + ".partial"));
  const std::string binary("\0\n\xff", 3);
  write_file_atomic(path, binary);
  CHECK(read_file(path) == binary);

  CHECK_THROWS_AS(read_file((folder / "absent").string()), IoError);
  CHECK_THROWS_AS(write_file_atomic(path + "/below/a/file", "x"), IoError);
  CHECK_THROWS_AS(rename_durably((folder / "absent").string(), path), IoError);
  fs::remove_all(folder);
}
