#include "io/file_stream.h"

#include <fcntl.h>
#include <unistd.h>

#include <catch2/catch.hpp>

#include <filesystem>
#include <fstream>
#include <utility>
#include <vector>

#include "base/random.h"
#include "io/atomic_file.h"
#include "tests/support/error_text.h"
#include "tests/support/temporary_folder.h"

namespace degu {
namespace {

namespace fs = std::filesystem;
using test::message;
using test::TemporaryFolder;

void write(const std::string& path, const std::string& content) {
  std::ofstream(path, std::ios::binary | std::ios::trunc) << content;
}

TEST_CASE("a file is streamed from any place, cached or not") {
  const TemporaryFolder temporary;
  for (const size_t size : {size_t{0}, size_t{1}, size_t{4097}, size_t{9} << 20}) {
    const std::string path = temporary.path() + "/" + std::to_string(size);
    std::string content(size, 0);
    for (size_t i = 0; i < size; ++i) content[i] = static_cast<char>(i * 2654435761u >> 13);
    write(path, content);
    for (const auto& [cached, shared] : {std::pair{true, false}, {false, false}, {false, true}}) {
      INFO(size << " bytes, " << (cached ? "cached" : "on the disk")
                << (shared ? ", read by others too" : ""));
      if (!cached) {
        sync_path(path);
        const int fd = ::open(path.c_str(), O_RDONLY);
        ::posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
        ::close(fd);
      }
      FileStream stream(path, shared);
      const auto same = [&](size_t begin, size_t count) {
        std::string got(count, '?');
        stream.read(static_cast<int64_t>(begin), std::as_writable_bytes(std::span(got)));
        return got == content.substr(begin, count);
      };
      CHECK(same(0, size));
      for (size_t at = 0; at < size; at += 300'007)
        CHECK(same(at, std::min(size - at, size_t{900})));
      for (uint64_t i = 0; i < 300 && size > 0; ++i) {
        const RandomStream draw(5, "places", i);
        const size_t begin = draw.below(0, size);
        const size_t most = i % 3 == 0 ? size_t{3} << 20 : size_t{100'000};
        CHECK(same(begin, draw.below(1, std::min(size - begin, most) + 1)));
      }
      CHECK_THAT(message([&] { same(size, 1); }), Catch::Contains("ends after"));
    }
  }
  CHECK_THAT(message([&] { FileStream(temporary.path() + "/none"); }),
             Catch::Contains("cannot open"));
  const std::string path = temporary.path() + "/cut";
  write(path, std::string(size_t{6} << 20, 'x'));
  FileStream stream(path);
  std::vector<std::byte> some(100);
  stream.read(0, some);
  fs::resize_file(path, 5'000'000);
  CHECK_THAT(message([&] { stream.read(5'500'000, some); }),
             Catch::Contains("cut: ends before byte"));
}

}  // namespace
}  // namespace degu
