// Damaged HDF5 files: read to the end in child processes, since the library itself is under test
// too.
#include <sys/wait.h>
#include <unistd.h>
#include <catch2/catch.hpp>

#include <cstddef>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/random.h"
#include "io/hdf5.h"
#include "tests/support/temporary_folder.h"

using namespace degu;

namespace {

void write_sample(const std::string& path) {
  h5::File file = h5::File::create(path);
  file.set_attribute("format", "sample");
  file.set_attribute("version", 3);
  file.set_attribute("widths", std::vector<int32_t>{1, 2, 3});
  file.write<float>("plain", std::vector<float>(100, 1.5f));
  file.write<int64_t>("deep/er/table", std::vector<int64_t>(60, 7), {3, 4, 5});
  file.write_strings("names", {"one", "two", "", "four"});
  const h5::Layout layout = {
      .chunk = {32}, .deflate = 4, .shuffle = true, .checksum = true, .growable = true};
  file.create_dataset("packed", h5::ElementType::kI32, {0}, layout)
      .append<int32_t>(std::vector<int32_t>(100, -9));
  file.close();
}

void read_object(const h5::Object& object) {
  for (const std::string& name : object.attribute_names()) {
    try {
      (void)object.attribute_vector<double>(name);
    } catch (const Error&) {
      (void)object.attribute_text(name);
    }
  }
}

void read_group(const h5::Group& group, int depth) {
  read_object(group);
  if (depth > 3) throw DataError("a cycle of groups");
  for (const std::string& name : group.names()) {
    try {
      if (!group.is_dataset(name)) {
        read_group(group.group(name), depth + 1);
        continue;
      }
      const h5::Dataset dataset = group.dataset(name);
      read_object(dataset);
      const int64_t elements = h5::element_count(dataset.shape());
      const h5::ElementType type = dataset.element_type();
      if (elements < 0 || elements > 1 << 20) throw DataError("too large to be ours");
      std::vector<std::byte> content(static_cast<size_t>(elements) * h5::size_of(type));
      dataset.read_box({}, {}, type, content.data(), elements);
    } catch (const Error&) {  // one damaged object; the next may be whole
      (void)group.read_strings(name);
    }
  }
}

// How the child ended: 0 read whole, 1 refused with an Error.
int read_in_child(const std::string& path) {
  const pid_t child = ::fork();
  if (child == 0) {
    ::alarm(20);
    try {
      read_group(h5::File::open(path), 0);
    } catch (const Error&) {
      ::_exit(1);
    } catch (...) {
      ::_exit(2);
    }
    ::_exit(0);
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  return status;
}

}  // namespace

TEST_CASE("no damaged HDF5 file does worse than an Error", "[hdf5][fuzz]") {
  const test::TemporaryFolder folder;
  const std::string path = folder.path() + "/sample.h5";
  write_sample(path);
  std::ifstream in(path, std::ios::binary);
  const std::string whole((std::istreambuf_iterator<char>(in)), {});
  REQUIRE(read_in_child(path) == 0);

  const char* variable = std::getenv("DEGU_FUZZ_ROUNDS");
  const int rounds = variable != nullptr ? std::atoi(variable) : 300;
  int refused = 0;
  for (int round = 0; round < rounds; ++round) {
    const RandomStream draw(7, "hdf5 fuzz", static_cast<uint64_t>(round));
    std::string damaged = whole;
    if (draw.below(0, 8) == 0) damaged.resize(draw.below(1, damaged.size()));
    const uint64_t changes = 1 + draw.below(2, 6);
    for (uint64_t i = 0; i < changes; ++i) {
      const uint64_t at = draw.below(10 + 3 * i, damaged.size());
      const uint64_t value = draw.below(11 + 3 * i, 256);
      // Headers lie in runs of zeros: mostly change bytes that say something.
      const size_t place = damaged.find_first_not_of('\0', at);
      damaged[place == std::string::npos ? at : place] = static_cast<char>(value);
    }
    std::ofstream(path, std::ios::binary | std::ios::trunc) << damaged;
    const int status = read_in_child(path);
    CAPTURE(round, status, WIFSIGNALED(status) ? WTERMSIG(status) : 0);
    CHECK(WIFEXITED(status));
    CHECK(WEXITSTATUS(status) <= 1);
    refused += WIFEXITED(status) && WEXITSTATUS(status) == 1;
  }
  CHECK(refused > rounds / 20);
}
