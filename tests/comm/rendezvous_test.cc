// Ranks that find each other, or say why not: old files, strangers, ranks too many and too few.
#include "comm/rendezvous.h"

#include <sys/socket.h>
#include <sys/stat.h>

#include <atomic>
#include <catch2/catch.hpp>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "base/timer.h"
#include "comm/handshake.h"
#include "comm/launch.h"
#include "comm/nodes.h"
#include "socket_ranks.h"
#include "tests/support/error_text.h"
#include "tests/support/scoped_environment.h"
#include "tests/support/temporary_folder.h"

namespace degu {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using std::chrono::steady_clock;
using test::failures;
using test::job_of;

Deadline in(milliseconds time) {
  return steady_clock::now() + time;
}

Card card_of(const std::string& token, int port) {
  return {.token = token,
          .node = node_name(),
          .rank = 0,
          .size = 2,
          .port = port,
          .addresses = {"127.0.0.1"}};
}

void write(const std::string& path, const std::string& text) {
  std::ofstream(path) << text;
}

// What is there once it is a card.
Card wait_for_card(const std::string& path) {
  while (true) {
    std::ifstream in(path);
    std::ostringstream text;
    text << in.rdbuf();
    if (auto card = parse_card(text.str())) return *card;
    std::this_thread::sleep_for(milliseconds(5));
  }
}

void meet_and_talk(const std::vector<SocketJob>& ranks) {
  const auto said = failures(ranks, [](Communicator& comm) {
    if (comm.gather_text("x").size() != static_cast<size_t>(comm.size())) {
      throw std::runtime_error("not all are there");
    }
  });
  CHECK(said == std::vector<std::string>(ranks.size()));
}

TEST_CASE("a file that an earlier job left is no obstacle") {
  const test::TemporaryFolder folder;
  const std::vector<SocketJob> ranks = job_of(3, folder.path());
  const std::string path = address_file(ranks[0]);
  int free_port = 0;
  { const Socket gone = listen_on_free_port(free_port); }
  SECTION("nobody listens there any more") {
    write(path, to_text(card_of("old", free_port)));
  }
  SECTION("it is cut short") {
    write(path, "token abc\nrank");
  }
  SECTION("it is empty") {
    write(path, "");
  }
  SECTION("it is something else") {
    write(path, std::string(100'000, '\xff'));
  }
  meet_and_talk(ranks);
  CHECK_FALSE(std::filesystem::exists(path));
}

TEST_CASE("another job that listens at an old address turns the ranks away") {
  const test::TemporaryFolder folder;
  const std::vector<SocketJob> ranks = job_of(2, folder.path());
  Door other;
  std::atomic<bool> stop = false;
  std::atomic<bool> taken = false;
  std::thread host([&] {
    while (!stop) {
      if (other.next("another token", in(milliseconds(20)))) taken = true;
    }
  });
  write(address_file(ranks[0]), to_text(card_of("old", other.port())));
  meet_and_talk(ranks);
  stop = true;
  host.join();
  CHECK_FALSE(taken);
}

TEST_CASE("strangers neither stop the ranks nor hold them up") {
  const test::TemporaryFolder folder;
  std::vector<SocketJob> ranks = job_of(2, folder.path());
  std::vector<std::string> said(2);
  const auto join = [&](size_t r) {
    said[r] = failures({ranks[r]}, [](Communicator& comm) { comm.barrier(); })[0];
  };
  std::thread first([&] { join(0); });
  const Card card = wait_for_card(address_file(ranks[0]));
  struct stat status {};
  REQUIRE(::stat(address_file(ranks[0]).c_str(), &status) == 0);
  CHECK((status.st_mode & 0777) == 0600);
  const auto call = [&](std::string_view bytes) {
    std::string problem;
    Socket socket = connect_to("127.0.0.1", card.port, in(seconds(5)), problem);
    REQUIRE(socket);
    REQUIRE(send_all(socket, std::as_bytes(std::span(bytes)), in(seconds(5))));
    return socket;
  };
  const auto closed = [&](const Socket& socket) {
    std::byte one{};
    const degu::Timer timer;
    return !receive_all(socket, {&one, 1}, in(seconds(20))) && timer.seconds() < 15;
  };
  std::vector<Socket> silent;
  for (int i = 0; i < 20; ++i) silent.push_back(call(i % 2 == 0 ? "" : "DEGU"));
  CHECK(closed(call("GET / HTTP/1.1\r\nHost: here\r\n\r\n")));
  CHECK(closed(call(std::string("DEGU\0\0\0\0\xff\xff\xff\xff", 12))));  // 4 GiB to come
  CHECK(closed(call(std::string("DEGU\0\0\0\0\4\0\0\0abc\n", 16))));     // no card
  Card wrong = card;
  wrong.rank = 1;
  wrong.token = "guessed";
  const Socket guesser = call("");
  REQUIRE(send_message(guesser, Greeting::kJoin, to_text(wrong), in(seconds(5))));
  const auto answer = receive_message(guesser, kMaxGreeting, in(seconds(5)));
  CHECK((answer && answer->kind == Greeting::kUnknown));
  CHECK(closed(guesser));
  CHECK(closed(silent.front()));  // said nothing for too long
  std::thread second([&] { join(1); });
  first.join();
  second.join();
  CHECK(said == std::vector<std::string>(2));
}

TEST_CASE("two processes that claim the same rank are an error on all") {
  for (const int twice : {0, 1}) {
    const test::TemporaryFolder folder;
    std::vector<SocketJob> ranks = job_of(3, folder.path());
    ranks[2].rank = twice;
    for (SocketJob& rank : ranks) rank.timeout = seconds(5);
    const auto said = failures(ranks, [](Communicator&) {});
    const auto count = std::count_if(said.begin(), said.end(), [&](const std::string& what) {
      return what.find(fmt::format("two processes claim rank {} of the job", twice)) !=
             std::string::npos;
    });
    INFO(said[0] << "\n" << said[1] << "\n" << said[2]);
    // Of two ranks 0 the one that nobody can join may wait until its time is over.
    CHECK(count >= (twice == 0 ? 1 : 2));
    for (const std::string& what : said) CHECK_FALSE(what.empty());
    CHECK(std::filesystem::is_empty(folder.path()));
  }
}

TEST_CASE("a rank that comes and dies before the others ends the wait") {
  const test::TemporaryFolder folder;
  const std::vector<SocketJob> ranks = job_of(3, folder.path());
  std::vector<std::string> said;
  std::thread first([&] { said = failures({ranks[0]}, [](Communicator&) {}); });
  Card card = wait_for_card(address_file(ranks[0]));
  card.rank = 2;
  card.size = 3;
  {
    std::string problem;
    const Socket socket = connect_to("127.0.0.1", card.port, in(seconds(5)), problem);
    REQUIRE(socket);
    REQUIRE(send_message(socket, Greeting::kJoin, to_text(card), in(seconds(5))));
    const auto answer = receive_message(socket, kMaxGreeting, in(seconds(5)));
    REQUIRE((answer && answer->kind == Greeting::kAccepted));
  }
  first.join();
  CHECK(said[0] == "rank 2 of 3 has ended before the ranks were connected; see what it said");
}

TEST_CASE("ranks that disagree about the size are an error on all") {
  const test::TemporaryFolder folder;
  std::vector<SocketJob> ranks = job_of(2, folder.path());
  ranks[1].size = 3;
  for (const std::string& what : failures(ranks, [](Communicator&) {})) {
    CHECK(
        what ==
        "rank 1 says that the job has 3 ranks, rank 0 says 2: start all with the same DEGU_RANKS");
  }
}

TEST_CASE("who is missing is said by all who are there") {
  const test::TemporaryFolder folder;
  std::vector<SocketJob> ranks = job_of(4, folder.path());
  for (SocketJob& rank : ranks) rank.timeout = milliseconds(700);
  for (const std::string& what : failures({ranks[0], ranks[2]}, [](Communicator&) {})) {
    CHECK_THAT(what, Catch::Contains("ranks 1, 3 of 4 have not come to") &&
                         Catch::Contains("within 0.7 s: start them"));
  }
  CHECK_THAT(failures({ranks[0], ranks[1], ranks[2]}, [](Communicator&) {})[1],
             Catch::Contains("rank 3 of 4 has not come to"));
  CHECK_THAT(failures({ranks[1]}, [](Communicator&) {})[0],
             Catch::Contains("rank 1 of 4 has not met rank 0 by") &&
                 Catch::Contains("No such file or directory"));
  CHECK(std::filesystem::is_empty(folder.path()));
}

TEST_CASE("rank 0 needs a folder that it may write to") {
  std::vector<SocketJob> ranks = job_of(2, "/proc");
  CHECK_THAT(failures({ranks[0]}, [](Communicator&) {})[0],
             Catch::Contains("rank 0 cannot write /proc/degu-test.address"));
}

TEST_CASE("sockets speak IPv4 and IPv6") {
  int port = 0;
  const Socket listener = listen_on_free_port(port);
  const std::vector<std::string> own = interface_addresses();
  for (const char* address : {"127.0.0.1", "::1"}) {
    if (std::find(own.begin(), own.end(), address) == own.end()) continue;
    std::string problem;
    const Socket caller = connect_to(address, port, in(seconds(5)), problem);
    REQUIRE(caller);
    REQUIRE(wait_readable(listener.fd(), in(seconds(5))));
    const Socket called = accept_one(listener);
    CHECK(peer_address(caller) == address);
    CHECK(peer_address(called) == address);
    CHECK(is_loopback_address(address));
  }
  std::string problem;
  CHECK_FALSE(connect_to("here", port, in(seconds(1)), problem));
  CHECK(problem == "not an address");
}

TEST_CASE("a card is read back, and nothing else is taken for one") {
  Card card = card_of("0123abcd", 4711);
  card.addresses = {"10.0.0.1", "fd00::2"};
  const std::string text = to_text(card);
  const auto same = parse_card(text);
  REQUIRE(same);
  CHECK(to_text(*same) == text);
  CHECK(parse_cards(text + text, 2));
  CHECK_FALSE(parse_cards(text + text, 1));
  CHECK_FALSE(parse_cards(text, 2));
  for (size_t length = 0; length < text.size(); ++length) {
    CHECK_FALSE(parse_card(text.substr(0, length)));
  }
  const auto with = [&](const std::string& line) {
    return parse_card(text.substr(0, text.size() - 4) + line + "\nend\n").has_value();
  };
  CHECK(with("address ::1"));
  for (const char* line : {"", " ", "port", "port 0", "port 65536", "port x", "rank -1", "rank 2",
                           "rank 99999999999", "size 0", "colour blue", "token "}) {
    INFO(line);
    CHECK_FALSE(with(line));
  }
  CHECK_FALSE(with("address " + std::string(65, '1')));
  std::string many;
  for (int i = 0; i < 40; ++i) many += "address 10.0.0.1\n";
  CHECK_FALSE(with(many + "address ::1"));
}

// What launchers set is taken away for the scope.
struct NoLauncher {
  test::ScopedEnvironment ompi{"OMPI_COMM_WORLD_SIZE", ""}, local{"MPI_LOCALNRANKS", ""};
  test::ScopedEnvironment pmix{"PMIX_RANK", ""}, pmi{"PMI_RANK", ""}, pmi_size{"PMI_SIZE", ""};
  test::ScopedEnvironment folder{"DEGU_RENDEZVOUS", ""}, rank{"DEGU_RANK", ""};
  test::ScopedEnvironment ranks{"DEGU_RANKS", ""}, job{"DEGU_JOB", ""};
  test::ScopedEnvironment timeout{"DEGU_RENDEZVOUS_TIMEOUT", ""}, proc{"SLURM_PROCID", ""};
  test::ScopedEnvironment tasks{"SLURM_STEP_NUM_TASKS", ""}, all_tasks{"SLURM_NTASKS", ""};
  test::ScopedEnvironment slurm_job{"SLURM_JOB_ID", ""}, step{"SLURM_STEP_ID", ""};
};

TEST_CASE("how a process was started is told by its environment") {
  using Kind = Launch::Kind;
  using Set = test::ScopedEnvironment;
  const NoLauncher clean;
  const test::TemporaryFolder folder;
  CHECK(find_launch().kind == Kind::kAlone);
  {
    const Set a("OMPI_COMM_WORLD_SIZE", "2"), b("DEGU_RENDEZVOUS", folder.path());
    CHECK(find_launch().kind == Kind::kMpi);  // mpirun has the last word
  }
  {
    const Set a("PMI_RANK", "0"), b("SLURM_STEP_NUM_TASKS", "4");
    CHECK(find_launch().kind == Kind::kMpi);
    CHECK(find_launch().ranks == 4);  // what MPI has to confirm
    const Set c("DEGU_RENDEZVOUS", folder.path()), d("SLURM_PROCID", "3");
    CHECK(find_launch().kind == Kind::kSockets);
  }
  {
    const Set a("SLURM_STEP_NUM_TASKS", "8"), b("SLURM_PROCID", "5"), c("SLURM_STEP_ID", "2");
    const Set d("SLURM_JOB_ID", "77");
    CHECK(find_launch().kind == Kind::kUnclear);
    CHECK(find_launch().ranks == 8);
    CHECK_THAT(find_launch().problem, Catch::Contains("Slurm has started 8 tasks") &&
                                          Catch::Contains("srun --mpi=pmix") &&
                                          Catch::Contains("DEGU_RENDEZVOUS"));
    const Set e("DEGU_RENDEZVOUS", folder.path());
    Launch launch = find_launch();
    CHECK(launch.kind == Kind::kSockets);
    CHECK(launch.job.rank == 5);
    CHECK(launch.job.size == 8);
    CHECK(launch.job.name == "77.2");
    CHECK(launch.job.timeout == seconds(300));
    const Set f("DEGU_RANK", "1"), g("DEGU_RANKS", "2"), h("DEGU_JOB", "mine");
    const Set i("DEGU_RENDEZVOUS_TIMEOUT", "2.5");
    launch = find_launch();
    CHECK(launch.job.rank == 1);
    CHECK(launch.job.size == 2);
    CHECK(launch.job.name == "mine");
    CHECK(launch.job.timeout == milliseconds(2500));
  }
  {
    const Set a("SLURM_STEP_NUM_TASKS", "8"), b("DEGU_RANKS", "1");
    CHECK(find_launch().kind == Kind::kAlone);
  }
  {  // a batch script, which is no task
    const Set a("SLURM_NTASKS", "8"), b("SLURM_PROCID", "0"), c("SLURM_JOB_ID", "77");
    CHECK(find_launch().kind == Kind::kAlone);
    const Set d("DEGU_RENDEZVOUS", folder.path());
    CHECK(find_launch().kind == Kind::kUnclear);
    const Set e("SLURM_STEP_ID", "0");
    CHECK(find_launch().job.size == 8);
  }
}

TEST_CASE("what the environment says wrongly is one line") {
  using Set = test::ScopedEnvironment;
  const NoLauncher clean;
  const test::TemporaryFolder folder;
  const Set where("DEGU_RENDEZVOUS", folder.path());
  const auto said = [](const char* name, const std::string& value) {
    const Set changed(name, value);
    return test::message([] { find_launch(); });
  };
  {
    const Set rank("DEGU_RANK", "1"), ranks("DEGU_RANKS", "2");
    CHECK(said("DEGU_RANK", "1").empty());
    CHECK(said("DEGU_RANK", "abc") == "DEGU_RANK=abc: must be a whole number, 0 or more");
    CHECK(said("DEGU_RANK", "-1") == "DEGU_RANK=-1: must be a whole number, 0 or more");
    CHECK(said("DEGU_RANK", "2") == "DEGU_RANK=2 of DEGU_RANKS=2: ranks are numbered from 0");
    CHECK(said("DEGU_RANKS", "0") == "DEGU_RANKS=0: must be a whole number, 1 or more");
    CHECK_THAT(said("DEGU_RANKS", ""), Catch::Contains("DEGU_RANK is set and DEGU_RANKS is not"));
    CHECK_THAT(said("DEGU_RANK", ""), Catch::Contains("DEGU_RANKS is set and DEGU_RANK is not"));
    CHECK_THAT(said("DEGU_RENDEZVOUS", "/no/folder"),
               Catch::Contains("DEGU_RENDEZVOUS=/no/folder: rank 1 of 2 sees no such folder"));
    CHECK_THAT(said("DEGU_RENDEZVOUS", ""),
               Catch::Contains("DEGU_RANKS is set, but not DEGU_RENDEZVOUS"));
    CHECK_THAT(said("DEGU_JOB", "a/b"), Catch::Contains("DEGU_JOB=a/b: becomes part"));
    for (const char* time : {"soon", "0", "-3", "nan", "1e9", "3s"}) {
      CHECK_THAT(said("DEGU_RENDEZVOUS_TIMEOUT", time),
                 Catch::Contains("must be a number of seconds"));
    }
  }
  CHECK_THAT(find_launch().problem, Catch::Contains("set DEGU_RANK and DEGU_RANKS"));
}

}  // namespace
}  // namespace degu
