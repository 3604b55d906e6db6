// Checkpoints on a machine that misbehaves: in child processes that run out of disk, lack rights or
// are killed while writing.
#include <catch2/catch.hpp>

#include <fcntl.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <functional>
#include <nlohmann/json.hpp>

#include "base/log.h"
#include "base/random.h"
#include "base/timer.h"
#include "io/atomic_file.h"
#include "io/checkpoint.h"
#include "tensor/tensor.h"
#include "tests/support/temporary_folder.h"

namespace degu {
namespace {

namespace fs = std::filesystem;
using test::TemporaryFolder;

constexpr int64_t kElements = 1 << 18;  // 1 MiB of fp32

void write_step(const std::string& parent, int64_t step) {
  const auto self = make_self_communicator();
  CheckpointWriter writer(*self, parent + "/" + checkpoint_name(step), {{"step", step}});
  Tensor x(DType::kF32, {kElements});
  for (int64_t i = 0; i < kElements; ++i) x.as<float>()[i] = static_cast<float>(step);
  writer.add("model/a", x);
  writer.add("model/b", x);
  writer.attach("config.yaml", "step: " + std::to_string(step));
  writer.commit();
}

void check_step(const std::string& folder) {
  CheckpointReader reader(folder);
  reader.verify();
  const auto step = reader.metadata().at("step").get<int64_t>();
  CHECK(fs::path(folder).filename() == checkpoint_name(step));
  Tensor x(DType::kF32, {kElements});
  reader.read("model/b", x);
  CHECK(x.as<float>()[kElements - 1] == static_cast<float>(step));
}

// Runs `body` in a child and returns what it threw, as "code message", or "done". The child leaves
// without running destructors of the parent's objects.
std::string in_child(const std::function<void()>& body) {
  std::array<int, 2> channel{};
  REQUIRE(::pipe(channel.data()) == 0);
  const pid_t child = ::fork();
  if (child == 0) {
    std::string result = "done";
    try {
      body();
    } catch (const Error& error) {
      result = fmt::format("{} {}", static_cast<int>(error.exit_code()), error.what());
    }
    const auto written = ::write(channel[1], result.data(), result.size());
    ::_exit(written == static_cast<ssize_t>(result.size()) ? 0 : 1);
  }
  ::close(channel[1]);
  std::string result(4096, '\0');
  const ssize_t got = ::read(channel[0], result.data(), result.size());
  result.resize(got > 0 ? static_cast<size_t>(got) : 0);
  ::close(channel[0]);
  int status = 0;
  ::waitpid(child, &status, 0);
  INFO(result);
  CHECK(WIFEXITED(status));
  return result;
}

void limit_file_size(rlim_t bytes) {
  rlimit limit{};
  ::getrlimit(RLIMIT_FSIZE, &limit);
  limit.rlim_cur = bytes;
  ::setrlimit(RLIMIT_FSIZE, &limit);
}

TEST_CASE("a disk that is full: IoError with the reason, the last good checkpoint remains") {
  const TemporaryFolder temporary;
  write_step(temporary.path(), 1);
  // Too small for the file's first bytes, its first tensor, its second, its last metadata.
  const auto whole = fs::file_size(temporary.path() + "/" + checkpoint_name(1) + "/rank-00000.h5");
  for (rlim_t limit : {rlim_t{0}, rlim_t{4096}, rlim_t{1} << 20, static_cast<rlim_t>(whole - 64)}) {
    const std::string result = in_child([&] {
      ::signal(SIGXFSZ, SIG_IGN);  // the write fails with EFBIG instead
      limit_file_size(limit);
      write_step(temporary.path(), 2);
    });
    INFO("limit " << limit << ": " << result);
    CHECK(result.rfind("3 ", 0) == 0);
    CHECK(result.find("rank-00000.h5") != std::string::npos);
    CHECK(result.find("File too large") != std::string::npos);
    CHECK(result.find('\n') == std::string::npos);
    CHECK(find_latest(temporary.path()) == temporary.path() + "/" + checkpoint_name(1));
    CHECK(std::distance(fs::directory_iterator(temporary.path()), {}) == 1);
  }
  check_step(temporary.path() + "/" + checkpoint_name(1));
}

TEST_CASE("a full disk does not stop the next checkpoint of the same process") {
  const TemporaryFolder temporary;
  const std::string result = in_child([&] {
    ::signal(SIGXFSZ, SIG_IGN);
    int failures = 0;
    for (rlim_t limit = 0; limit < 5 << 20; limit += 64 << 10) {
      limit_file_size(limit);
      try {
        write_step(temporary.path(), 1);
      } catch (const IoError&) {
        ++failures;
      }
    }
    limit_file_size(RLIM_INFINITY);
    write_step(temporary.path(), 2);
    if (failures < 10) throw DataError("only {} failed", failures);
    std::exit(0);  // the library must be able to end as well
  });
  CHECK(result.empty());
  CHECK(list_checkpoints(temporary.path()).size() == 2);
  for (const CheckpointPlace& place : list_checkpoints(temporary.path())) check_step(place.folder);
}

TEST_CASE("a small file system that fills up") {
  const TemporaryFolder temporary;
  const std::string mount = temporary.path() + "/small";
  fs::create_directory(mount);
  if (::mount("degu-test", mount.c_str(), "tmpfs", 0, "size=3m") != 0) {
    WARN("skipped: no right to mount");
    return;
  }
  write_step(mount, 1);  // 2 MiB
  const std::string result = in_child([&] { write_step(mount, 2); });
  CHECK(result.find("No space left on device") != std::string::npos);
  CHECK(find_latest(mount) == mount + "/" + checkpoint_name(1));
  check_step(mount + "/" + checkpoint_name(1));
  CHECK(::umount2(mount.c_str(), MNT_DETACH) == 0);
}

TEST_CASE("missing rights: IoError naming the folder") {
  if (::geteuid() != 0) {
    WARN("skipped: only root can give up its rights to a folder of its own");
    return;
  }
  const TemporaryFolder temporary;
  fs::permissions(temporary.path(), fs::perms::owner_all | fs::perms::group_read |
                                        fs::perms::others_read | fs::perms::group_exec |
                                        fs::perms::others_exec);
  write_step(temporary.path(), 1);
  const std::string result = in_child([&] {
    if (::setgid(65534) != 0 || ::setuid(65534) != 0) ::_exit(1);
    write_step(temporary.path(), 2);
  });
  INFO(result);
  CHECK(result.rfind("3 ", 0) == 0);
  CHECK(result.find("Permission denied") != std::string::npos);
  CHECK(find_latest(temporary.path()) == temporary.path() + "/" + checkpoint_name(1));
}

TEST_CASE("SIGKILL at any moment of writing leaves the last good checkpoint") {
  const TemporaryFolder temporary;
  set_log_level(LogLevel::kError);
  const RandomStream draw(5, "kill");
  int64_t last = 0;
  int partial = 0;
  // Moments are drawn over the time that a few checkpoints take on this machine now; on a busy one
  // more rounds may be needed until some were caught in the middle and some got through.
  const Timer timer;
  write_step(temporary.path(), 0);
  const auto span = static_cast<uint64_t>(std::max(20'000.0, 4e6 * timer.seconds()));
  for (uint64_t round = 0; round < 40 || (round < 400 && (partial == 0 || last == 0)); ++round) {
    const pid_t child = ::fork();
    if (child == 0) {
      // Without end: the same step twice now and then, so that replacing is interrupted too.
      for (int64_t step = last + 1;; ++step) {
        write_step(temporary.path(), step);
        write_step(temporary.path(), step);
        prune_checkpoints(temporary.path(), 2);
      }
    }
    ::usleep(static_cast<useconds_t>(2000 + draw.below(round, span)));
    ::kill(child, SIGKILL);
    int status = 0;
    ::waitpid(child, &status, 0);
    REQUIRE(WIFSIGNALED(status));
    for (const fs::directory_entry& entry : fs::directory_iterator(temporary.path())) {
      partial += entry.path().string().ends_with(".partial");
    }
    const std::vector<CheckpointPlace> found = list_checkpoints(temporary.path());
    for (const CheckpointPlace& place : found) check_step(place.folder);
    const int64_t now = found.empty() ? 0 : found.back().step;
    CHECK(now >= last);
    last = now;
  }
  set_log_level(LogLevel::kInfo);
  CHECK(last > 0);
  CHECK(partial > 0);  // some were indeed caught in the middle
}

}  // namespace
}  // namespace degu
