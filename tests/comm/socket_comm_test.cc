// Sockets between threads of this process: the same table of properties as the other communicators.
#include "comm/socket_comm.h"

#include <atomic>
#include <catch2/catch.hpp>
#include <filesystem>

#include "cases.h"
#include "comm/two_stage_comm.h"
#include "socket_ranks.h"
#include "tensor/tensor.h"
#include "tests/support/temporary_folder.h"

namespace degu {
namespace {

using test::failures;
using test::job_of;

void expect(bool condition, const std::string& what) {
  if (!condition) throw std::runtime_error(what);
}

TEST_CASE("sockets: properties of every communicator") {
  const test::TemporaryFolder folder;
  for (int ranks = 1; ranks <= 5; ++ranks) {
    // Small rounds, so that a message takes several of them.
    for (size_t scratch : {size_t{1} << 14, CommOptions{}.scratch_bytes}) {
      if (ranks > 3 && scratch == CommOptions{}.scratch_bytes) continue;
      const CommOptions options{.verify = ranks % 2 == 0, .scratch_bytes = scratch};
      const auto said = failures(
          job_of(ranks, folder.path()),
          [](Communicator& comm) {
            for (const test::CommCase& check : test::comm_cases()) {
              try {
                check.run(comm);
              } catch (const std::exception& error) {
                throw std::runtime_error(fmt::format("{}: {}", check.name, error.what()));
              }
            }
          },
          options);
      for (size_t r = 0; r < said.size(); ++r) {
        INFO(ranks << " ranks, scratch " << scratch << ", rank " << r);
        CHECK_THAT(said[r], Catch::Equals(""));
      }
    }
  }
  CHECK(std::filesystem::is_empty(folder.path()));  // rank 0 removes the file
}

TEST_CASE("sockets: properties of every communicator hold in two stages") {
  const test::TemporaryFolder folder;
  const std::vector<int> nodes = {0, 0, 1, 1};
  const auto said = failures(job_of(4, folder.path()), [&](Communicator& world) {
    auto all = world.split(0, 0);
    const auto stages = make_two_stage_communicator(std::move(all), nodes, {});
    for (const test::CommCase& check : test::comm_cases()) check.run(*stages);
  });
  CHECK(said == std::vector<std::string>(4));
}

TEST_CASE("sockets: all ranks send large messages at once, both ways") {
  const test::TemporaryFolder folder;
  constexpr int kRanks = 3;
  constexpr int64_t kRows = 1'000'001;  // 8 MB to each rank: more than any buffer between them
  const auto said = failures(job_of(kRanks, folder.path()), [&](Communicator& comm) {
    Context context({.threads = 1, .scratch_bytes = 4096});
    const std::vector<int64_t> counts(kRanks, kRows);
    Tensor send(DType::kI64, {kRanks * kRows, 1});
    Tensor recv(DType::kI64, {kRanks * kRows, 1});
    for (int64_t i = 0; i < kRanks * kRows; ++i) send.as<int64_t>()[i] = comm.rank() + 10 * i;
    for (int round = 0; round < 2; ++round) {
      comm.all_to_all_rows(context, send, counts, recv, counts).wait();
      int64_t wrong = 0;
      for (int64_t from = 0; from < kRanks; ++from) {
        for (int64_t i = 0; i < kRows; ++i) {
          const int64_t sent = from + 10 * (comm.rank() * kRows + i);
          wrong += recv.as<int64_t>()[from * kRows + i] != sent ? 1 : 0;
        }
      }
      expect(wrong == 0, fmt::format("{} rows are wrong on rank {}", wrong, comm.rank()));
    }
  });
  CHECK(said == std::vector<std::string>(kRanks));
}

TEST_CASE("sockets: a message of another size than agreed is an error that names both") {
  const test::TemporaryFolder folder;
  const auto said = failures(job_of(2, folder.path()), [](Communicator& comm) {
    Context context({.threads = 1, .scratch_bytes = 4096});
    Tensor rows(DType::kF32, {8, 4});
    Tensor got(DType::kF32, {8, 4});
    const std::vector<int64_t> send = {2, 2};
    // Rank 0 expects one row more, rank 1 none, and each is sent two.
    const std::vector<int64_t> recv =
        comm.rank() == 0 ? std::vector<int64_t>{2, 3} : std::vector<int64_t>{0, 2};
    comm.all_to_all_rows(context, rows, send, got, recv).wait();
  });
  CHECK(said[0] == "all_to_all_rows: rank 0 of 2 expects 48 bytes from rank 1 and got 32");
  CHECK(said[1] == "all_to_all_rows: rank 1 of 2 expects 0 bytes from rank 0 and got 32");
}

TEST_CASE("sockets: ranks that make different calls are told so") {
  const test::TemporaryFolder folder;
  const auto said = failures(job_of(2, folder.path()), [](Communicator& comm) {
    const auto part = comm.split(0, 0);
    (comm.rank() == 0 ? comm : *part).barrier();
  });
  for (const std::string& what : said) {
    CHECK_THAT(what, Catch::Contains("do not make the same calls in the same order"));
  }
}

TEST_CASE("sockets: disagreements are found before the exchange, on all ranks") {
  const test::TemporaryFolder folder;
  const auto said = failures(job_of(3, folder.path()),
                             [](Communicator& comm) {
                               Context context({.threads = 1, .scratch_bytes = 4096});
                               Tensor x(DType::kF32, {comm.rank() == 2 ? 101 : 100});
                               comm.all_reduce(context, x, Reduce::kSum).wait();
                             },
                             {.verify = true});
  for (const std::string& what : said) {
    CHECK_THAT(what, Catch::Contains("of 100 x fp32") && Catch::Contains("rank 2 makes"));
  }
}

TEST_CASE("sockets: a rank that leaves early does not leave the others waiting") {
  const test::TemporaryFolder folder;
  const auto said = failures(job_of(3, folder.path()), [](Communicator& comm) {
    if (comm.rank() != 1) comm.barrier();
  });
  CHECK(said[1].empty());
  CHECK_THAT(said[2] + said[0], Catch::Contains("barrier: rank 1 of 3 does not take part"));
}

TEST_CASE("sockets: groups with common ranks take turns") {
  const test::TemporaryFolder folder;
  const auto said = failures(job_of(4, folder.path()), [](Communicator& comm) {
    const auto pair = comm.split(comm.rank() / 2, comm.rank());
    const auto stride = comm.split(comm.rank() % 2, comm.rank());
    for (int i = 0; i < 200; ++i) {
      // One pair is ahead of the other for most of the time.
      for (int k = 0; k < (comm.rank() < 2 ? 3 : 1); ++k) {
        expect(
            pair->broadcast_text(std::to_string(10 * i + k), k % 2) == std::to_string(10 * i + k),
            "pair");
      }
      expect(stride->gather_text(std::to_string(comm.rank()))[1] ==
                 std::to_string(2 + comm.rank() % 2),
             "stride");
      comm.barrier();
    }
  });
  CHECK(said == std::vector<std::string>(4));
}

TEST_CASE("sockets: a counter needs no other rank to take part") {
  const test::TemporaryFolder folder;
  std::atomic<int> done = 0;
  const auto said = failures(job_of(3, folder.path()), [&](Communicator& comm) {
    const auto part = comm.split(comm.rank() == 0 ? 0 : 1, 0);
    const auto counter = comm.make_counter(7);
    const auto of_the_part = part->make_counter(0);
    if (comm.rank() != 0) {
      for (int i = 0; i < 500; ++i) {
        counter->fetch_add(1);
        of_the_part->fetch_add(2);
      }
      ++done;
    }
    while (done < 2) std::this_thread::sleep_for(std::chrono::milliseconds(1));  // in no call
    comm.barrier();
    expect(counter->fetch_add(0) == 1007, "the counter of all");
    expect(of_the_part->fetch_add(0) == (comm.rank() == 0 ? 0 : 2000), "the counter of two");
  });
  CHECK(said == std::vector<std::string>(3));
}

}  // namespace
}  // namespace degu
