#include "io/hdf5.h"

#include <unistd.h>
#include <catch2/catch.hpp>

#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <limits>
#include <string>
#include <thread>
#include <vector>

#include "base/error.h"
#include "io/atomic_file.h"

using namespace degu;
namespace fs = std::filesystem;

namespace {

class Scratch {
 public:
  Scratch() {
    static int counter = 0;
    folder_ = fs::temp_directory_path() /
              ("degu_h5_" + std::to_string(::getpid()) + "_" + std::to_string(counter++));
    fs::create_directories(folder_);
  }
  ~Scratch() { fs::remove_all(folder_); }
  std::string operator/(const std::string& name) const { return (folder_ / name).string(); }

 private:
  fs::path folder_;
};

template <class T>
std::vector<T> ramp(size_t n) {
  std::vector<T> out(n);
  for (size_t i = 0; i < n; ++i) out[i] = static_cast<T>(i * 7 + 3);
  return out;
}

}  // namespace

TEMPLATE_TEST_CASE("every element type survives a file", "[hdf5]", int8_t, uint8_t, int16_t,
                   uint16_t, int32_t, uint32_t, int64_t, uint64_t, float, double) {
  const Scratch scratch;
  const auto values = ramp<TestType>(24);
  {
    h5::File file = h5::File::create(scratch / "a.h5");
    file.write<TestType>("x", values);
    file.write<TestType>("deep/er/y", std::span<const TestType>(values), {2, 3, 4});
    file.set_attribute("largest", std::numeric_limits<TestType>::max());
    file.set_attribute("all", values);
    file.close();
  }
  const h5::File file = h5::File::open(scratch / "a.h5");
  CHECK(file.read<TestType>("x") == values);
  const h5::Dataset y = file.dataset("deep/er/y");
  CHECK(y.shape() == h5::Shape{2, 3, 4});
  CHECK(y.name() == "/deep/er/y");
  CHECK(y.read<TestType>() == values);
  CHECK(y.template read_rows<TestType>(1, 1) ==
        std::vector<TestType>(values.begin() + 12, values.end()));
  std::vector<TestType> box(4);
  y.read_box({0, 1, 1}, {2, 1, 2}, h5::element_type_of<TestType>(), box.data(), 4);
  CHECK(box == std::vector<TestType>{values[5], values[6], values[17], values[18]});
  CHECK(file.attribute<TestType>("largest") == std::numeric_limits<TestType>::max());
  CHECK(file.attribute_vector<TestType>("all") == values);
}

TEST_CASE("bf16 is stored as its bits", "[hdf5]") {
  const Scratch scratch;
  const std::vector<bf16> values = {bf16(1.0f), bf16(-2.5f), bf16(3e38f)};
  h5::File file = h5::File::create(scratch / "a.h5");
  file.write<bf16>("x", values);
  CHECK(file.read<bf16>("x") == values);
  CHECK(file.dataset("x").element_type() == h5::ElementType::kU16);
}

TEST_CASE("growing, compressed, checksummed datasets", "[hdf5]") {
  const Scratch scratch;
  const auto values = ramp<int32_t>(10007);
  {
    h5::File file = h5::File::create(scratch / "a.h5");
    h5::Dataset x = file.create_dataset<int32_t>(
        "x", {0},
        {.chunk = {1000}, .deflate = 4, .shuffle = true, .checksum = true, .growable = true});
    for (size_t at = 0, step = 1; at < values.size(); at += step, step = step * 2 + 1) {
      step = std::min(step, values.size() - at);
      x.append(std::span<const int32_t>(values).subspan(at, step));
    }
    h5::Dataset pairs =
        file.create_dataset<uint8_t>("pairs", {0, 2}, {.chunk = {8, 2}, .growable = true});
    const std::vector<uint8_t> six = {1, 2, 3, 4, 5, 6};
    pairs.append(std::span<const uint8_t>(six));
    CHECK(pairs.rows() == 3);
    CHECK_THROWS_AS(pairs.append(std::span<const uint8_t>(six).first(3)), DataError);
  }
  const h5::File file = h5::File::open(scratch / "a.h5");
  CHECK(file.read<int32_t>("x") == values);
  CHECK(file.dataset("x").read_rows<int32_t>(9999, 8) ==
        std::vector<int32_t>(values.begin() + 9999, values.end()));
  CHECK(fs::file_size(scratch / "a.h5") < values.size() * 2);
}

TEST_CASE("text and lists of text", "[hdf5]") {
  const Scratch scratch;
  const std::vector<std::string> names = {"", "α", "two words", std::string(5000, 'x')};
  {
    h5::File file = h5::File::create(scratch / "a.h5");
    file.write_strings("names", names);
    file.write_strings("none", {});
    file.set_attribute("empty", "");
    file.set_attribute("text", "grüße");
    file.set_attribute("text", "replaced");
    file.set_attribute("none", std::vector<int64_t>{});
  }
  const h5::File file = h5::File::open(scratch / "a.h5");
  CHECK(file.read_strings("names") == names);
  CHECK(file.read_strings("none").empty());
  CHECK(file.attribute_text("empty").empty());
  CHECK(file.attribute_text("text") == "replaced");
  CHECK(file.attribute_vector<int64_t>("none").empty());
  CHECK(file.attribute_names() == std::vector<std::string>{"empty", "none", "text"});
  CHECK(file.names() == std::vector<std::string>{"names", "none"});
}

TEST_CASE("attributes convert only when the value survives", "[hdf5]") {
  const Scratch scratch;
  h5::File file = h5::File::create(scratch / "a.h5");
  file.set_attribute("n", int64_t{300});
  file.set_attribute("half", 0.5);
  CHECK(file.attribute<int32_t>("n") == 300);
  CHECK(file.attribute<double>("n") == 300.0);
  CHECK_THROWS_AS(file.attribute<uint8_t>("n"), DataError);
  CHECK_THROWS_AS(file.attribute<int64_t>("half"), DataError);
  CHECK_THROWS_AS(file.attribute_text("n"), DataError);
  CHECK_THROWS_AS(file.attribute<int>("absent"), DataError);
}

TEST_CASE("errors name the file and the object", "[hdf5]") {
  const Scratch scratch;
  {
    h5::File file = h5::File::create(scratch / "a.h5");
    file.write<int32_t>("group/x", ramp<int32_t>(100));
    CHECK_THROWS_WITH(file.dataset("group/y"),
                      Catch::Contains("a.h5") && Catch::Contains("'/group/y'"));
    CHECK_THROWS_AS(file.read<float>("group/x"), DataError);
    CHECK_THROWS_WITH(file.read<float>("group/x"),
                      Catch::Contains("holds int32, expected float32"));
    const h5::Dataset x = file.dataset("group/x");
    CHECK_THROWS_AS(x.read_rows<int32_t>(90, 11), DataError);
    CHECK_THROWS_AS(x.read_rows<int32_t>(-1, 1), DataError);
    CHECK_THROWS_AS(file.close(), IoError);  // x is still open
  }
  CHECK_THROWS_AS(h5::File::open(scratch / "absent.h5"), IoError);
  CHECK_THROWS_AS(h5::File::create(scratch / "no/folder.h5"), IoError);
  std::ofstream(scratch / "text.h5") << "not a data file";
  CHECK_THROWS_AS(h5::File::open(scratch / "text.h5"), DataError);
  CHECK_FALSE(h5::File::is_hdf5(scratch / "text.h5"));
  CHECK(h5::File::is_hdf5(scratch / "a.h5"));
}

TEST_CASE("truncated and altered files are noticed", "[hdf5]") {
  const Scratch scratch;
  const std::string path = scratch / "a.h5";
  {
    h5::File file = h5::File::create(path);
    file.write<int32_t>("x", ramp<int32_t>(4096), {.chunk = {1024}, .checksum = true});
  }
  std::string bytes = read_file(path);
  {
    const int32_t needle[] = {3 + 7 * 2000, 3 + 7 * 2001};
    const size_t at = bytes.find(std::string(reinterpret_cast<const char*>(needle), sizeof needle));
    REQUIRE(at != std::string::npos);
    std::string altered = bytes;
    altered[at] = static_cast<char>(altered[at] ^ 0x10);
    write_file_atomic(scratch / "altered.h5", altered);
    const h5::File file = h5::File::open(scratch / "altered.h5");
    CHECK_THROWS_AS(file.read<int32_t>("x"), DataError);
  }
  write_file_atomic(scratch / "short.h5", std::string_view(bytes).substr(0, bytes.size() - 100));
  CHECK_THROWS_AS(h5::File::open(scratch / "short.h5"), DataError);
}

TEST_CASE("a full disk is an IoError", "[hdf5]") {
  if (!fs::exists("/dev/full")) return;
  // HDF5 will not open a device, so the atomic writer stands for the path; HDF5's own message is
  // covered by the missing folder above.
  const Scratch scratch;
  fs::create_symlink("/dev/full", scratch / "x.partial");
  CHECK_THROWS_WITH(write_file_atomic(scratch / "x", "text"), Catch::Contains("No space left"));
}

TEST_CASE("equal calls write equal files", "[hdf5]") {
  const Scratch scratch;
  for (const char* name : {"a.h5", "b.h5"}) {
    h5::File file = h5::File::create(scratch / name);
    file.set_attribute("version", 1);
    file.write<int32_t>("g/x", ramp<int32_t>(5000),
                        {.chunk = {512}, .deflate = 1, .shuffle = true});
    file.write_strings("g/s", {"a", "b"});
    file.close();
    if (name[0] == 'a') std::this_thread::sleep_for(std::chrono::milliseconds(1100));
  }
  const bool equal = read_file(scratch / "a.h5") == read_file(scratch / "b.h5");
  CHECK(equal);
}

TEST_CASE("threads may each use their own file", "[hdf5]") {
  const Scratch scratch;
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&scratch, t] {
      h5::File file = h5::File::create(scratch / (std::to_string(t) + ".h5"));
      for (int i = 0; i < 20; ++i) {
        file.write<int32_t>("x" + std::to_string(i), std::vector<int32_t>(100, t));
        if (file.has("absent") || file.has("absent/child")) std::abort();
      }
    });
  }
  for (auto& thread : threads) thread.join();
  for (int t = 0; t < 4; ++t) {
    const h5::File file = h5::File::open(scratch / (std::to_string(t) + ".h5"));
    CHECK(file.read<int32_t>("x19") == std::vector<int32_t>(100, t));
  }
}
