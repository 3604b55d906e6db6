// The server under clients that vanish, dawdle, flood or lie, and at its end: nothing is lost, and
// /health answers.
#include <catch2/catch.hpp>
#include <thread>

#include "tests/server/served.h"

namespace degu {
namespace {

using nlohmann::json;
using testing::metric;
using testing::RawClient;
using testing::Served;
using testing::small_options;
using testing::small_tokenizer;

// The small model makes ten thousand tokens a second and more: an answer that must still be on its
// way when the test looks has thousands.
const EngineOptions kLongAnswers = {.context = 7000, .max_running = 24};
constexpr int kLongWait = 300'000;  // milliseconds: with sanitizers they take a minute
json long_request(int tokens) {
  return {{"prompt", "abc"}, {"max_tokens", tokens}, {"ignore_eos", true}, {"stream", true}};
}

bool idle(const Served& served) {
  const EngineStats stats = served.engine.stats();
  return stats.running == 0 && stats.waiting == 0 && stats.pages_in_use == 0 &&
         served.server.in_flight() == 0;
}

double count_of(const Served& served, const std::string& name) {
  return metric("\n" + served.client().Get("/metrics")->body, name + "{model_name=\"small\"");
}

TEST_CASE("a client that leaves ends its answer") {
  Served served(small_options(), kLongAnswers);
  json body = long_request(6900);
  SECTION("in the middle of a stream") {
    for (int i = 0; i < 10; ++i) {
      RawClient client(served.port);
      client.post("/v1/completions", body);
      CHECK(client.read_until("data: ").find("200 OK") != std::string::npos);
    }
  }
  SECTION("before an answer at once") {
    body["stream"] = false;
    body["n"] = 16;
    for (int i = 0; i < 10; ++i) {
      RawClient client(served.port);
      client.post("/v1/completions", body);
      CHECK(Served::soon([&] { return served.server.in_flight() > 0; }));
    }
  }
  SECTION("with a reset") {
    for (int i = 0; i < 10; ++i) {
      RawClient client(served.port);
      client.post("/v1/completions", body);
      client.read_until("data: ");
      client.reset();
    }
  }
  CHECK(Served::soon([&] { return idle(served); }));
  CHECK(count_of(served, "degu:clients_vanished_total") == 10);
  CHECK(Served::soon([&] {
    return served.engine.stats().finished[static_cast<size_t>(FinishReason::kCancelled)] >= 10;
  }));
}

TEST_CASE("a client that does not read is dropped, and holds nobody up") {
  ServerOptions options = small_options();
  options.limits.write_seconds = 0.5;
  Served served(options);
  json body = long_request(240);
  body["n"] = 16;
  body["logprobs"] = 20;
  RawClient slow(served.port, 4096);
  slow.post("/v1/completions", body);
  REQUIRE(Served::soon([&] { return served.engine.stats().running > 0; }));
  // Others are served meanwhile.
  CHECK(served.post("/v1/completions", {{"prompt", "abc"}, {"max_tokens", 5}})->status == 200);
  CHECK(Served::soon([&] { return idle(served); }));
  CHECK(count_of(served, "degu:clients_vanished_total") == 1);
}

TEST_CASE("hostile bytes are refused and the next client is served") {
  ServerOptions options = small_options();
  options.limits.read_seconds = 0.3;
  options.limits.receive_seconds = 1;
  options.limits.idle_seconds = 0.5;
  options.limits.body_bytes = 4096;
  Served served(options);
  const std::string head =
      "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"
      "Content-Type: application/json\r\n";
  const auto answer_to = [&](const std::string& bytes, bool* closed = nullptr) {
    RawClient client(served.port);
    client.send(bytes);
    const std::string answer = client.read_until("", 5000);
    if (closed != nullptr) *closed = client.closed();
    return answer.substr(0, answer.find("\r\n"));
  };
  bool closed = false;
  CHECK(answer_to("\r\n\r\n\r\n").find("200") == std::string::npos);
  CHECK(answer_to("GARBAGE\r\n\r\n").find("400") != std::string::npos);
  CHECK(answer_to("GET / HTTP/9.9\r\n\r\n").find("400") != std::string::npos);
  CHECK(answer_to("GET /" + std::string(10000, 'a') + " HTTP/1.1\r\n\r\n").find("414") !=
        std::string::npos);
  answer_to("GET / HTTP/1.1\r\n" + std::string(1 << 20, 'h'), &closed);
  CHECK(closed);
  std::string many = "GET /health HTTP/1.1\r\n";
  for (int i = 0; i < 20000; ++i) many += "X-" + std::to_string(i) + ": y\r\n";
  CHECK(answer_to(many + "\r\n", &closed).find("200") == std::string::npos);
  CHECK(closed);
  CHECK(answer_to(head + "Content-Length: 99999999999\r\n\r\n{").find("413") != std::string::npos);
  CHECK(answer_to(head + "Content-Length: -5\r\n\r\n{").find("400") != std::string::npos);
  CHECK(answer_to(head + "Content-Length: 5\r\nContent-Length: 6\r\n\r\n{}").find("400") !=
        std::string::npos);
  CHECK(answer_to(head + "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n")
            .find("400") != std::string::npos);
  CHECK(answer_to(head + "\r\n{}").find("411") != std::string::npos);
  // Fewer bytes than promised: refused when the time for the rest is over.
  CHECK(answer_to(head + "Content-Length: 500\r\n\r\n{").find("400") != std::string::npos);
  // Chunks without an end.
  std::string chunks;
  for (int i = 0; i < 100; ++i) chunks += "100\r\n" + std::string(256, ' ') + "\r\n";
  CHECK(answer_to(head + "Transfer-Encoding: chunked\r\n\r\n" + chunks).find("413") !=
        std::string::npos);
  CHECK(answer_to(head + "Transfer-Encoding: chunked\r\n\r\nzz\r\n").find("400") !=
        std::string::npos);
  // One byte at a time, never done: the time for a whole request is limited.
  {
    RawClient client(served.port);
    const auto start = std::chrono::steady_clock::now();
    client.send("GET /health HTTP/1.1\r\nX: ");
    while (client.send("y") && client.read_until("", 100).empty() && !client.closed()) {
    }
    CHECK(std::chrono::steady_clock::now() - start < std::chrono::seconds(4));
  }
  CHECK(answer_to("GET /health HTTP/1.1\r\nRange: bytes=" + std::string(7000, '9') +
                  "-\r\nConnection: close\r\n\r\n")
            .starts_with("HTTP/1.1"));
  CHECK(served.post("/v1/completions", {{"prompt", "abc"}, {"max_tokens", 5}})->status == 200);
  CHECK(Served::soon([&] { return idle(served); }));
}

TEST_CASE("a body is counted after it is unpacked") {
  ServerOptions options = small_options();
  options.limits.body_bytes = 100000;
  Served served(options);
  httplib::Client client = served.client();
  client.set_compress(true);  // gzip
  const auto small = client.Post("/v1/completions", R"({"prompt": "a"})", "application/json");
  CHECK(small->status == 200);
  const std::string spaces(20'000'000, ' ');  // NOLINT: meant to be large
  const auto bomb = client.Post("/v1/completions", spaces, "application/json");
  REQUIRE(bomb);
  CHECK(bomb->status == 413);
}

TEST_CASE("requests that follow on one connection are answered in order") {
  Served served;
  RawClient client(served.port);
  const std::string get = "GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n";
  client.send(get + get +
              "GET /v1/models HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
  const std::string all = client.read_until("");
  CHECK(client.closed());
  size_t answers = 0;
  for (size_t at = 0; (at = all.find("HTTP/1.1 200", at)) != std::string::npos; ++at) ++answers;
  CHECK(answers == 3);
  CHECK(all.find("max_model_len") > all.rfind("\"status\""));
}

TEST_CASE("over the limits: 429 with Retry-After, and /health answers") {
  ServerOptions options = small_options();
  options.limits.concurrent = 3;
  options.limits.connections = 10;
  Served served(options, kLongAnswers);
  std::vector<std::unique_ptr<RawClient>> busy;
  for (int i = 0; i < 3; ++i) {
    busy.push_back(std::make_unique<RawClient>(served.port));
    busy.back()->post("/v1/completions", long_request(6900));
    busy.back()->read_until("data: ");
  }
  const auto refused = served.post("/v1/completions", {{"prompt", "abc"}});
  REQUIRE(served.server.in_flight() == 3);
  CHECK(refused->status == 429);
  CHECK(refused->get_header_value("Retry-After") == "1");
  CHECK(json::parse(refused->body)["error"]["type"].get<std::string>() == "rate_limit_error");
  CHECK(served.client().Get("/health")->status == 200);
  // Clients that connect and say nothing take no place from those that ask.
  std::vector<std::unique_ptr<RawClient>> silent;
  for (int i = 0; i < 14; ++i) silent.push_back(std::make_unique<RawClient>(served.port));
  for (int i = 0; i < 5; ++i) {
    const auto health = served.client().Get("/health");
    REQUIRE(health);
    CHECK(health->status == 200);
  }
  for (int i = 0; i < 100; ++i) silent.push_back(std::make_unique<RawClient>(served.port));
  CHECK(Served::soon([&] {
    const auto health = served.client().Get("/health");
    return health && health->status == 200;
  }));
  for (auto& client : busy) {
    CHECK(client->read_until("[DONE]", kLongWait).find("[DONE]") != std::string::npos);
  }
  CHECK(Served::soon([&] { return served.server.in_flight() == 0; }));
  CHECK(served.post("/v1/completions", {{"prompt", "abc"}})->status == 200);
}

TEST_CASE("more open requests than connections: the rest waits, or is told to come later") {
  ServerOptions options = small_options();
  options.limits.concurrent = 2;
  options.limits.connections = 3;
  options.limits.read_seconds = 20;
  Served served(options);
  // Each holds its connection with half a request.
  std::vector<std::unique_ptr<RawClient>> half;
  for (int i = 0; i < 3; ++i) {
    half.push_back(std::make_unique<RawClient>(served.port));
    half.back()->send("GET /health HTTP/1.1\r\n");
  }
  // Until the server has read that, they are idle, and idle ones give way to those that wait.
  std::this_thread::sleep_for(std::chrono::seconds(1));
  std::vector<std::unique_ptr<RawClient>> waiting;
  std::string told;
  for (int i = 0; i < 200 && told.empty(); ++i) {
    waiting.push_back(std::make_unique<RawClient>(served.port));
    told = waiting.back()->read_until("\r\n", 20);  // all well before a half request is too old
  }
  CHECK(told.find("503") != std::string::npos);
  for (auto& client : half) {
    client->send("Host: localhost\r\n\r\n");
    CHECK(client->read_until("\r\n").find("200") != std::string::npos);
  }
}

TEST_CASE("a full queue of the engine is 429 too") {
  Served served(small_options(), {.context = 1100, .max_running = 1, .max_waiting = 4});
  json body = long_request(1000);
  body["n"] = 5;  // one may run, four wait: some of ten do not fit
  body["stream"] = false;
  std::atomic<int> full{0};
  std::atomic<int> served_well{0};
  std::vector<std::thread> clients;
  for (int i = 0; i < 6; ++i) {
    clients.emplace_back([&] {
      const auto answer = served.post("/v1/completions", body);
      full += answer && answer->status == 429 && answer->has_header("Retry-After");
      served_well += answer && answer->status == 200;
    });
  }
  for (std::thread& client : clients) client.join();
  CHECK(full + served_well == 6);
  CHECK(full > 0);
  CHECK(Served::soon([&] { return idle(served); }));
}

TEST_CASE("an answer ends at the server's time limit") {
  ServerOptions options = small_options();
  options.limits.request_seconds = 0.02;
  Served served(options, kLongAnswers);
  json body = long_request(6900);
  body["stream"] = false;
  body["n"] = 16;
  const json out = json::parse(served.post("/v1/completions", body)->body);
  CHECK(out["choices"][15]["finish_reason"].get<std::string>() == "deadline");
}

// Clients ask one request after the other until they are refused. Returns by outcome.
struct Outcomes {
  std::atomic<int> whole{0};    // 200 with all its tokens
  std::atomic<int> cut{0};      // 200, but told that it was cut short
  std::atomic<int> refused{0};  // 503
  std::atomic<int> unheard{0};  // the connection was refused: never accepted
  std::atomic<int> lost{0};     // accepted and not answered
};

void load(const Served& served, Outcomes& outcomes, std::atomic<bool>& over, int tokens) {
  json body = long_request(240);
  body["max_tokens"] = tokens;
  while (!over) {
    body["stream"] = !body["stream"].get<bool>();
    RawClient client(served.port);
    if (!client.connected()) {
      ++outcomes.unheard;
      return;
    }
    client.post("/v1/completions", body);
    const bool stream = body["stream"];
    const std::string answer = client.read_until(stream ? "[DONE]" : "\"usage\"", 60000);
    if (answer.empty()) {  // closed before anything was read of it
      ++outcomes.unheard;
      return;
    }
    const bool complete = answer.find(stream ? "[DONE]" : "\"usage\"") != std::string::npos;
    if (answer.find(" 503 ") < 20) {
      ++outcomes.refused;
      return;
    }
    if (complete && answer.find("\"cancelled\"") != std::string::npos) {
      ++outcomes.cut;
    } else if (complete && answer.find("\"length\"") != std::string::npos) {
      ++outcomes.whole;
    } else {
      ++outcomes.lost;
    }
  }
}

TEST_CASE("an orderly end under load answers everything that was accepted") {
  Served served;
  Outcomes outcomes;
  std::atomic<bool> over{false};
  std::vector<std::thread> clients;
  const bool in_time = GENERATE(true, false);
  for (int i = 0; i < 12; ++i) {
    clients.emplace_back([&] { load(served, outcomes, over, in_time ? 30 : 240); });
  }
  CHECK(Served::soon([&] { return served.engine.stats().running > 4; }));
  std::thread ending([&] {
    const int cut = served.end(in_time ? 60 : 0);
    if (in_time && cut != 0) ++outcomes.lost;
  });
  ending.join();
  over = true;
  for (std::thread& client : clients) client.join();
  CHECK(outcomes.lost == 0);
  CHECK(outcomes.whole + outcomes.cut > 0);
  if (in_time) CHECK(outcomes.cut == 0);
  CHECK(served.engine.stats().pages_in_use == 0);
}

TEST_CASE("a request that was let in just before the engine ended is told so") {
  Served served;
  served.engine.stop();  // the server does not know it yet
  const auto answer = served.post("/v1/completions", long_request(3));
  CHECK(answer->status == 503);
  CHECK(answer->has_header("Retry-After"));
}

TEST_CASE("while ending, readiness fails and new requests are refused") {
  Served served(small_options(), kLongAnswers);
  RawClient running(served.port);
  running.post("/v1/completions", long_request(3000));
  running.read_until("data: ");
  CHECK_FALSE(served.server.drain(0));
  const auto ready = served.client().Get("/ready");
  CHECK(ready->status == 503);
  CHECK(ready->body.find("ending") != std::string::npos);
  CHECK(served.client().Get("/health")->status == 200);
  CHECK(served.post("/v1/completions", {{"prompt", "a"}})->status == 503);
  CHECK(running.read_until("[DONE]", kLongWait).find("[DONE]") != std::string::npos);
  CHECK(served.server.drain(20));
}

// A lane whose passes fail from some point on.
class FailingLane : public Lanes {
 public:
  FailingLane(Lanes& lane, int good_passes) : lane_(lane), left_(good_passes) {}
  int count() const override { return lane_.count(); }
  Context& context() override { return lane_.context(); }
  const ModelShape& shape() const override { return lane_.shape(); }
  const PassLimits& limits() const override { return lane_.limits(); }
  int32_t pages() const override { return lane_.pages(); }
  std::vector<PassOutput> run(std::span<const PassPlan> plans) override {
    if (left_-- == 0) throw CommError("rank 1 is gone");
    return lane_.run(plans);
  }

 private:
  Lanes& lane_;
  int left_;
};

TEST_CASE("when passes fail, clients and /ready hear the reason") {
  testing::Bench bench(40);
  FailingLane lane(bench.lane, 5);
  Engine engine(small_tokenizer(), lane, {.context = 256});
  Server server(engine, small_tokenizer(), 300, 2, small_options());
  const int port = server.start();
  std::thread computing([&] { engine.run(); });
  httplib::Client client("127.0.0.1", port);
  json body = long_request(240);
  SECTION("streamed") {
    const auto answer = client.Post("/v1/completions", body.dump(), "application/json");
    REQUIRE(answer);
    CHECK(answer->body.find("rank 1 is gone") != std::string::npos);
    CHECK(answer->body.ends_with("data: [DONE]\n\n"));
  }
  SECTION("at once") {
    body["stream"] = false;
    const auto answer = client.Post("/v1/completions", body.dump(), "application/json");
    CHECK(answer->status == 500);
    CHECK(answer->body.find("rank 1 is gone") != std::string::npos);
  }
  computing.join();  // a failed pass ends the loop
  const auto ready = client.Get("/ready");
  CHECK(ready->status == 503);
  CHECK(ready->body.find("rank 1 is gone") != std::string::npos);
  CHECK(client.Get("/health")->status == 200);
}

}  // namespace
}  // namespace degu
