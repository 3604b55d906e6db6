#include "server/access.h"

#include <sys/stat.h>

#include <catch2/catch.hpp>
#include <fstream>

#include "base/error.h"
#include "tests/support/temporary_folder.h"

namespace degu {
namespace {

TEST_CASE("an API key is taken as a bearer token, whole") {
  const ApiKeys keys({"0123456789abcdef", "another-key-of-mine"});
  CHECK(keys.required());
  CHECK(keys.accept("Bearer 0123456789abcdef"));
  CHECK(keys.accept("bearer another-key-of-mine"));
  for (const char* header :
       {"", "Bearer", "Bearer ", "Bearer 0123456789abcde", "Bearer 0123456789abcdef ",
        "Basic 0123456789abcdef", "0123456789abcdef"}) {
    INFO(header);
    CHECK_FALSE(keys.accept(header));
  }
  CHECK_FALSE(ApiKeys({}).required());
}

TEST_CASE("a file of keys is for its owner's eyes") {
  const test::TemporaryFolder folder;
  const std::string path = folder.path() + "/keys";
  std::ofstream(path) << "# mine\n0123456789abcdef\r\n\nanother-key-of-mine\n";
  chmod(path.c_str(), 0644);
  CHECK_THROWS_WITH(read_api_keys(path), Catch::Contains("chmod 600"));
  chmod(path.c_str(), 0600);
  CHECK(read_api_keys(path) == std::vector<std::string>{"0123456789abcdef", "another-key-of-mine"});
  std::ofstream(path) << "short\n";
  CHECK_THROWS_WITH(read_api_keys(path), Catch::Contains(":1"));
  std::ofstream(path) << "0123456789 abcdef\n";
  CHECK_THROWS_AS(read_api_keys(path), DataError);
  std::ofstream(path) << "# none\n";
  CHECK_THROWS_AS(read_api_keys(path), DataError);
  CHECK_THROWS_AS(read_api_keys(folder.path() + "/absent"), IoError);
}

TEST_CASE("a loopback server is asked for by a loopback name") {
  for (const char* host : {"", "localhost", "LOCALHOST:8000", "127.0.0.1:8000", "127.1.2.3",
                           "[::1]:8000", "[::1]", "a.localhost:80"}) {
    INFO(host);
    CHECK(host_allowed(host, {}));
  }
  for (const char* host : {"example.com", "example.com:8000", "localhost.example.com",
                           "127.example.com", "10.0.0.1", "[::2]:8000", "[::1"}) {
    INFO(host);
    CHECK_FALSE(host_allowed(host, {}));
  }
  CHECK(host_allowed("Mine.example:8000", {"mine.example"}));
  CHECK(is_loopback("127.0.0.1"));
  CHECK_FALSE(is_loopback("0.0.0.0"));
}

}  // namespace
}  // namespace degu
