// Whole jobs under mpirun: they end within seconds when a rank fails, and compute on the right
// cores.
#include <catch2/catch.hpp>

#include <sys/wait.h>

#include <array>
#include <cstdio>
#include <string>

#include "base/cpu_info.h"
#include "base/timer.h"

namespace {

struct Result {
  int code = 0;
  double seconds = 0;
  std::string output;  // both streams
};

Result shell(const std::string& command) {
  const degu::Timer timer;
  Result result;
  FILE* pipe = popen((command + " 2>&1").c_str(), "r");
  REQUIRE(pipe != nullptr);
  std::array<char, 4096> buffer{};
  while (std::fgets(buffer.data(), buffer.size(), pipe) != nullptr) result.output += buffer.data();
  const int status = pclose(pipe);
  result.code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  result.seconds = timer.seconds();
  return result;
}

// `timeout` turns a hang into a failure (124). Open MPI's own binding is what is tested, so a
// policy that the caller's environment sets (scripts/env.sh does) is taken away.
Result job(const std::string& flags, const std::string& mode, const std::string& environment = "") {
  return shell(environment +
               " env -u OMPI_MCA_hwloc_base_binding_policy timeout 60 " DEGU_MPIEXEC
               " --allow-run-as-root --oversubscribe " +
               flags + " " DEGU_PROBE " " + mode);
}

size_t count(const std::string& text, const std::string& part) {
  size_t n = 0;
  for (size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) ++n;
  return n;
}

TEST_CASE("a failing rank ends the job within seconds, with its reason in one line") {
  for (const char* ranks : {"-n 2", "-n 4"}) {
    const std::string last = std::string(ranks) == "-n 2" ? "1 of 2" : "3 of 4";
    Result result = job(ranks, "throw");
    INFO(result.output);
    CHECK(result.code == 4);
    CHECK(result.seconds < 20);
    CHECK(count(result.output, "degu: rank " + last + ": shard 7 is truncated\n") == 1);

    result = job(ranks, "nested");
    INFO(result.output);
    CHECK(result.code == 3);
    CHECK(result.seconds < 20);
    CHECK(count(result.output, "degu: rank " + last + ": disk full\n") == 1);

    for (const char* mode : {"kill", "crash", "exit"}) {
      result = job(ranks, mode);
      INFO(mode << ": " << result.output);
      CHECK(result.code != 0);
      CHECK(result.code != 124);
      CHECK(result.seconds < 20);
    }
  }
}

TEST_CASE("a serial command runs without MPI, under mpirun and outside it") {
  CHECK(shell(DEGU_PROBE " serial").output == "serial\n");
  const Result result = job("-n 1", "serial");
  CHECK(result.code == 0);
  CHECK(result.output == "serial\n");
  CHECK(shell(DEGU_PROBE " isa").code == 0);
}

TEST_CASE("ranks undo a binding that is too narrow and share the node's cores") {
  const int cores = degu::physical_cores();
  Result result = job("-n 1", "place");
  INFO(result.output);
  CHECK(count(result.output, "rank 0 threads " + std::to_string(cores) + " inherited " +
                                 std::to_string(cores)) == 1);

  result = job("-n 1 --bind-to none", "place");
  INFO(result.output);
  CHECK(count(result.output, "rank 0 threads " + std::to_string(cores)) == 1);

  if (cores >= 2) {
    const std::string half = std::to_string(cores / 2);
    for (const char* flags : {"-n 2", "-n 2 --bind-to none"}) {
      result = job(flags, "place");
      INFO(result.output);
      CHECK(count(result.output, "rank 0 threads " + half + " inherited " + half + " cpus 0") == 1);
      CHECK(count(result.output, "rank 1 threads ") == 1);
      CHECK(result.output.substr(result.output.find("rank 1")).find(" cpus 0") ==
            std::string::npos);
    }
    // More ranks than cores: one thread each, wherever the system puts it.
    result = job("-n " + std::to_string(2 * cores), "place");
    INFO(result.output);
    CHECK(count(result.output, " threads 1 inherited " + std::to_string(cores)) ==
          static_cast<size_t>(2 * cores));
    // A binding that was asked for by name stays; so does everything with DEGU_BIND=none.
    result = job("-n 1 --bind-to core", "place");
    INFO(result.output);
    CHECK(count(result.output, "rank 0 threads 1 inherited 1") == 1);
    result = job("-n 1 -x DEGU_BIND", "place", "DEGU_BIND=none");
    INFO(result.output);
    CHECK(count(result.output, "rank 0 threads 1 inherited 1") == 1);
    // What the user's own taskset granted is all that ranks divide.
    result = shell("taskset -c 0 timeout 60 " DEGU_MPIEXEC
                   " --allow-run-as-root --oversubscribe -n 1 " DEGU_PROBE " place");
    INFO(result.output);
    CHECK(count(result.output, "rank 0 threads 1 inherited 1 cpus 0\n") == 1);
  }
}

TEST_CASE("ranks agree on the least instruction set") {
  const Result result =
      shell("timeout 60 " DEGU_MPIEXEC " --allow-run-as-root --oversubscribe -n 1 " DEGU_PROBE
            " isa : -n 1 -x DEGU_ISA=portable " DEGU_PROBE " isa");
  INFO(result.output);
  CHECK(count(result.output, "isa portable") == 1);
}

TEST_CASE("an instruction set that one rank cannot provide ends the job with the reason") {
  const Result result =
      shell("timeout 60 " DEGU_MPIEXEC " --allow-run-as-root --oversubscribe -n 1 " DEGU_PROBE
            " isa : -n 1 -x DEGU_ISA=sse9 " DEGU_PROBE " isa");
  INFO(result.output);
  CHECK(result.code == 2);
  CHECK(count(result.output, "DEGU_ISA=sse9") >= 1);
}

TEST_CASE(
    "with several nodes a line says how rows travel; the ranks per node are the same for all") {
  struct Case {
    const char* flags;
    const char* line;  // null: none
    int two_stage;
  };
  const Case cases[] = {
      {"-n 4", nullptr, 0},
      {"-n 4 -x DEGU_RANKS_PER_NODE=2",
       "2 nodes: experts' rows travel in two stages, within nodes and across them", 1},
      {"-n 2 -x DEGU_RANKS_PER_NODE=1",
       "2 nodes: experts' rows travel directly between ranks; expert group of ranks 0 to 1: "
       "each is on a node of its own",
       0},
  };
  for (const Case& c : cases) {
    const Result result = job(c.flags, "mesh");
    INFO(c.flags << ": " << result.output);
    CHECK(result.code == 0);
    CHECK(count(result.output, "mesh two_stage " + std::to_string(c.two_stage)) == 1);
    CHECK(count(result.output, "rows travel") == (c.line == nullptr ? 0 : 1));
    if (c.line != nullptr) CHECK(count(result.output, c.line) == 1);
  }
  const Result result =
      shell("timeout 60 " DEGU_MPIEXEC
            " --allow-run-as-root --oversubscribe -n 1 -x DEGU_RANKS_PER_NODE=1 " DEGU_PROBE
            " mesh : -n 1 -x DEGU_RANKS_PER_NODE=2 " DEGU_PROBE " mesh");
  INFO(result.output);
  CHECK(result.code == 2);
  CHECK(count(result.output,
              "DEGU_RANKS_PER_NODE differs between ranks: '1' on rank 0, '2' on rank 1") >= 1);
}

}  // namespace
