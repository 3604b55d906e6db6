#include "comm/thread_comm.h"

#include <array>
#include <catch2/catch.hpp>
#include <cmath>

#include "cases.h"
#include "comm/staged_comm.h"
#include "late_comm.h"
#include "tensor/tensor.h"
#include "thread_ranks.h"

namespace degu {
namespace {

using test::failure;

Context& context() {
  thread_local Context ctx({.threads = 1, .scratch_bytes = 4096});
  return ctx;
}

TEST_CASE("threads as ranks: properties of every communicator") {
  for (int ranks : {1, 2, 3, 4, 7}) {
    for (const test::CommCase& check : test::comm_cases()) {
      // Small rounds, so that a message takes several of them.
      for (size_t scratch : {size_t{1} << 14, CommOptions{}.scratch_bytes}) {
        INFO(check.name << " on " << ranks << " ranks, scratch " << scratch);
        const CommOptions options{.verify = ranks % 2 == 0, .scratch_bytes = scratch};
        REQUIRE(failure(ranks, check.run, options).empty());
      }
    }
  }
}

TEST_CASE("one rank on its own: properties of every communicator") {
  const auto self = make_self_communicator();
  for (const test::CommCase& check : test::comm_cases()) {
    INFO(check.name);
    REQUIRE_NOTHROW(check.run(*self));
  }
}

TEST_CASE("by way of the host: properties of every communicator, on memory that is there already") {
  for (int ranks : {1, 2, 4}) {
    for (const test::CommCase& check : test::comm_cases()) {
      INFO(check.name << " on " << ranks << " ranks");
      REQUIRE(failure(ranks, [&](Communicator& comm) {
                check.run(*make_staged_communicator(comm));
              }).empty());
    }
  }
}

TEST_CASE("postponed until the wait: properties of every communicator") {
  for (int ranks : {1, 2, 4}) {
    for (const test::CommCase& check : test::comm_cases()) {
      INFO(check.name << " on " << ranks << " ranks");
      REQUIRE(failure(ranks, [&](Communicator& comm) {
                test::LateCommunicator late(comm);
                check.run(late);
              }).empty());
    }
  }
}

TEST_CASE("postponed until the wait: what is read, written or sent too early is found out") {
  run_as_threads(2, [](Communicator& comm) {
    test::LateCommunicator late(comm);
    Context context({.threads = 1, .scratch_bytes = 1});
    const std::array<int64_t, 2> one_each = {1, 1};
    std::array<float, 2> sent = {1, 2}, received = {0, 0};
    const View<float> send(sent.data(), {2, 1}), receive(received.data(), {2, 1});
    Work work = late.all_to_all_rows(context, send, one_each, receive, one_each);
    const bool nothing_yet = std::isnan(received[0]) && std::isnan(received[1]);
    sent = {3, 4};  // too early
    work.wait();
    const float mine = comm.rank() == 0 ? 3 : 4;
    if (!nothing_yet || received[0] != mine || received[1] != mine) throw DataError("not late");
    work = late.all_reduce(context, receive, Reduce::kSum, Order::kTree);
    received[1] = 0;  // too early
    try {
      work.wait();
    } catch (const CommError&) {
      return;
    }
    throw DataError("a write into memory under way went unnoticed");
  });
}

TEST_CASE("a rank that throws ends the others with its reason") {
  for (int ranks : {2, 4}) {
    std::vector<std::string> seen(static_cast<size_t>(ranks));
    auto body = [&](Communicator& comm) {
      const auto part = comm.split(comm.rank() % 2, 0);
      if (comm.rank() == 1) throw DataError("shard 3 is truncated");
      try {
        part->barrier();  // ranks of another group, too, wait in vain
        comm.barrier();
      } catch (const CommError& error) {
        seen[static_cast<size_t>(comm.rank())] = error.what();
        throw;
      }
    };
    REQUIRE_THROWS_AS(run_as_threads(ranks, body), DataError);
    for (int r = 0; r < ranks; ++r) {
      if (r != 1)
        CHECK(seen[static_cast<size_t>(r)] == "barrier: rank 1 failed: shard 3 is truncated");
    }
  }
}

TEST_CASE("abort carries its reason and code") {
  try {
    run_as_threads(3, [](Communicator& comm) {
      if (comm.rank() == 2) comm.abort("out of patience", ExitCode::kNumeric);
      comm.barrier();
    });
    FAIL("no error");
  } catch (const Error& error) {
    CHECK(std::string(error.what()) == "out of patience");
    CHECK(error.exit_code() == ExitCode::kNumeric);
  }
}

TEST_CASE("a rank that returns early does not leave the others waiting") {
  const std::string what = failure(3, [](Communicator& comm) {
    if (comm.rank() != 0) comm.barrier();
  });
  CHECK(what.find("rank 0 has returned") != std::string::npos);
}

TEST_CASE("disagreements between ranks are found before the exchange") {
  auto find = [](const std::string& text, const char* part) {
    INFO(text);
    return text.find(part) != std::string::npos;
  };
  std::string what = failure(2, [](Communicator& comm) {
    Tensor x(DType::kF32, {comm.rank() == 0 ? 100 : 101});
    comm.all_reduce(context(), x, Reduce::kSum).wait();
  });
  CHECK(find(what, "rank 0 of 2 makes all_reduce sum (tree) of 100 x fp32"));
  CHECK(find(what, "rank 1 makes all_reduce sum (tree) of 101 x fp32"));

  what = failure(3, [](Communicator& comm) {
    if (comm.rank() == 2) {
      comm.gather_text("hello");
    } else {
      comm.barrier();
    }
  });
  CHECK(find(what, "makes barrier, rank 2 makes gather_text"));

  what = failure(2, [](Communicator& comm) {
    Tensor rows(DType::kF32, {8, 4});
    Tensor got(DType::kF32, {8, 4});
    const std::vector<int64_t> send = {2, 3};
    const std::vector<int64_t> recv = {comm.rank() == 0 ? 2 : 1, comm.rank() == 0 ? 2 : 3};
    comm.all_to_all_rows(context(), rows, send, got, recv).wait();
  });
  CHECK(find(what, "rank 0 sends 3 rows to rank 1, which expects 1"));
}

TEST_CASE("without verification a size mismatch is still an error, not a hang") {
  const std::string what = failure(2,
                                   [](Communicator& comm) {
                                     Tensor x(DType::kF32, {comm.rank() == 0 ? 100 : 101});
                                     comm.all_reduce(context(), x, Reduce::kSum).wait();
                                   },
                                   {.verify = false});
  CHECK(what.find("which expects") != std::string::npos);
}

}  // namespace
}  // namespace degu
