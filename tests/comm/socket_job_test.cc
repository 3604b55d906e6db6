// Whole jobs of processes that sockets connect: they end within seconds when a rank fails or dies,
// with one line that names it, and share the node's cores.
#include <sys/wait.h>

#include <array>
#include <catch2/catch.hpp>
#include <cstdio>
#include <string>
#include <vector>

#include "base/cpu_info.h"
#include "base/timer.h"
#include "tests/support/temporary_folder.h"

namespace {

struct Result {
  std::vector<int> codes;  // by rank
  double seconds = 0;
  std::string output;  // both streams of all ranks
};

size_t count(const std::string& text, const std::string& part) {
  size_t n = 0;
  for (size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) ++n;
  return n;
}

// What launchers set is taken away: these tests may run in a job themselves.
const std::string kClean =
    "env -u OMPI_COMM_WORLD_SIZE -u MPI_LOCALNRANKS -u PMIX_RANK -u PMI_RANK -u PMI_SIZE "
    "-u SLURM_STEP_NUM_TASKS -u SLURM_PROCID -u SLURM_STEP_ID ";

Result shell(const std::string& command) {
  const degu::Timer timer;
  Result result;
  FILE* pipe = popen(("{ " + command + "; } 2>&1").c_str(), "r");
  REQUIRE(pipe != nullptr);
  std::array<char, 4096> buffer{};
  while (std::fgets(buffer.data(), buffer.size(), pipe) != nullptr) result.output += buffer.data();
  const int status = pclose(pipe);
  result.codes = {WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status)};
  result.seconds = timer.seconds();
  return result;
}

// `timeout` turns a hang into a failure (124).
Result job(int ranks, const std::string& mode, const std::string& environment = "") {
  const degu::test::TemporaryFolder folder;
  std::string command;
  for (int r = 0; r < ranks; ++r) {
    command += "{ " + kClean + environment + " DEGU_RENDEZVOUS=" + folder.path() +
               " DEGU_RANKS=" + std::to_string(ranks) + " DEGU_RANK=" + std::to_string(r) +
               " timeout 60 " DEGU_PROBE " " + mode + "; echo $? >" + folder / std::to_string(r) +
               "; } & ";
  }
  Result result = shell(command + "wait; cat " + folder.path() + "/? | tr '\\n' ' '");
  // The codes are the last line.
  const size_t begin = result.output.find_last_of('\n') + 1;
  std::string codes = result.output.substr(begin);
  result.output.erase(begin);
  result.codes.clear();
  for (size_t at = 0; at < codes.size(); at = codes.find(' ', at) + 1) {
    result.codes.push_back(std::stoi(codes.substr(at)));
  }
  REQUIRE(result.codes.size() == static_cast<size_t>(ranks));
  return result;
}

std::string last_of(int ranks) {
  return std::to_string(ranks - 1) + " of " + std::to_string(ranks);
}

TEST_CASE("a job of processes ends well") {
  for (int ranks : {1, 2, 4}) {
    const Result result = job(ranks, "well");
    INFO(result.output);
    CHECK(result.output.empty());
    CHECK(result.codes == std::vector<int>(static_cast<size_t>(ranks), 0));
  }
}

TEST_CASE("a failing rank ends all within seconds, with its line and its code") {
  struct Case {
    const char* mode;
    int code;
    const char* line;
  };
  for (const Case& c : {Case{"throw", 4, "shard 7 is truncated"}, Case{"nested", 3, "disk full"},
                        Case{"busy", 4, "shard 7 is truncated"}}) {
    for (int ranks : {2, 4}) {
      const Result result = job(ranks, c.mode);
      INFO(c.mode << ": " << result.output);
      CHECK(result.codes == std::vector<int>(static_cast<size_t>(ranks), c.code));
      CHECK(result.seconds < 20);
      CHECK(result.output == "degu: rank " + last_of(ranks) + ": " + c.line + "\n");
    }
  }
}

TEST_CASE("of ranks that fail at once one has the word") {
  for (int repetition = 0; repetition < 5; ++repetition) {
    const Result result = job(4, "all");
    INFO(result.output);
    CHECK(result.codes == std::vector<int>(4, 5));
    CHECK(count(result.output, "\n") == 1);
    CHECK(count(result.output, " of 4: the loss of step 3 is nan\n") == 1);
  }
}

TEST_CASE("a rank that dies without a word ends all within seconds and is named") {
  for (const char* mode : {"kill", "crash"}) {
    for (int ranks : {2, 4}) {
      const Result result = job(ranks, mode);
      INFO(mode << ": " << result.output);
      for (int r = 0; r < ranks - 1; ++r) CHECK(result.codes[static_cast<size_t>(r)] == 6);
      CHECK(result.codes.back() > 128);
      CHECK(result.seconds < 20);
      CHECK(count(result.output, "degu: rank ") == 1);
      CHECK(count(result.output, "rank " + std::to_string(ranks - 1) + " has ended without") == 1);
    }
  }
  const Result result = job(3, "kill_first");
  INFO(result.output);
  CHECK(result.codes[1] == 6);
  CHECK(result.codes[2] == 6);
  CHECK(result.seconds < 20);
  CHECK(count(result.output, "rank 0 has ended without a goodbye") >= 1);
}

TEST_CASE("a rank that exits in the middle ends all") {
  const Result result = job(3, "exit");
  INFO(result.output);
  for (int code : result.codes) {
    CHECK(code != 0);
    CHECK(code != 124);
  }
  CHECK(result.seconds < 20);
  CHECK(count(result.output, "rank 2 of 3 does not take part") == 1);
}

TEST_CASE("processes that nobody bound share the node's cores") {
  const int cores = degu::physical_cores();
  if (cores < 2) return;
  Result result = job(2, "place");
  INFO(result.output);
  const std::string half = std::to_string(cores / 2);
  CHECK(count(result.output, "rank 0 threads " + half + " inherited " + half + " cpus 0") == 1);
  CHECK(count(result.output, "rank 1 threads ") == 1);
  CHECK(result.output.substr(result.output.find("rank 1")).find(" cpus 0") == std::string::npos);
  result = job(2 * cores, "place");
  CHECK(count(result.output, " threads 1 inherited " + std::to_string(cores)) ==
        static_cast<size_t>(2 * cores));
  result = job(2, "place", "DEGU_BIND=none");
  CHECK(count(result.output, " threads " + std::to_string(cores)) == 2);
}

TEST_CASE("Slurm's tasks that nothing connects are refused, not run each on its own") {
  const std::string task = kClean + "SLURM_JOB_ID=1 SLURM_STEP_ID=0 SLURM_PROCID=0 ";
  Result result = shell(task + "SLURM_STEP_NUM_TASKS=8 " DEGU_PROBE " well");
  INFO(result.output);
  CHECK(result.codes[0] == 2);
  CHECK(count(result.output, "\n") == 1);
  CHECK(count(result.output, "degu: Slurm has started 8 tasks and nothing connects them") == 1);
  CHECK(shell(task + "SLURM_STEP_NUM_TASKS=8 " DEGU_PROBE " serial").output == "serial\n");
  CHECK(shell(task + "SLURM_STEP_NUM_TASKS=1 " DEGU_PROBE " well").codes[0] == 0);
  CHECK(shell(task + "SLURM_STEP_NUM_TASKS=8 DEGU_RANKS=1 " DEGU_PROBE " well").codes[0] == 0);
}

}  // namespace
