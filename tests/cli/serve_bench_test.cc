// `degu bench serve` against servers with known delays, and against ones that misbehave.
#include "cli/serve_bench.h"

#include <httplib.h>
#include <catch2/catch.hpp>

#include <atomic>
#include <chrono>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <thread>

#include "base/error.h"
#include "base/random.h"
#include "cli/completion_stream.h"

namespace degu {
namespace {

using Json = nlohmann::json;
using std::chrono::milliseconds;

// An OpenAI-compatible server of a few lines, on a port of its own.
class FakeServer {
 public:
  using Handler = std::function<void(const httplib::Request&, httplib::Response&)>;
  explicit FakeServer(const Handler& completions) {
    server_.new_task_queue = [] { return new httplib::ThreadPool(16); };
    server_.Get("/v1/models", [](const httplib::Request&, httplib::Response& response) {
      response.set_content(R"({"data": [{"id": "fake"}]})", "application/json");
    });
    server_.Post("/v1/completions", completions);
    port_ = server_.bind_to_any_port("127.0.0.1");
    thread_ = std::thread([this] { server_.listen_after_bind(); });
    while (!server_.is_running()) std::this_thread::sleep_for(milliseconds(1));
  }
  ~FakeServer() {
    server_.stop();
    thread_.join();
  }
  HttpAddress address() const {
    return parse_http_address(fmt::format("http://127.0.0.1:{}/", port_));
  }

 private:
  httplib::Server server_;
  int port_ = 0;
  std::thread thread_;
};

void write(httplib::DataSink& sink, const std::string& text) {
  sink.write(text.data(), text.size());
}

// Streams `max_tokens` tokens: the first after `first`, the others `gap` apart.
FakeServer::Handler steady_answers(milliseconds first, milliseconds gap,
                                   std::atomic<int>* keyed = nullptr) {
  return [=](const httplib::Request& request, httplib::Response& response) {
    const Json asked = Json::parse(request.body);
    if (keyed != nullptr && request.get_header_value("Authorization") == "Bearer secret") ++*keyed;
    const int64_t tokens = asked.at("max_tokens");
    const auto prompt = static_cast<int64_t>(asked.at("prompt").size());
    response.set_chunked_content_provider("text/event-stream", [=](size_t,
                                                                   httplib::DataSink& sink) {
      for (int64_t t = 0; t < tokens; ++t) {
        std::this_thread::sleep_for(t == 0 ? first : gap);
        write(sink, "data: {\"choices\": [{\"text\": \"a\", \"finish_reason\": null}]}\r\n\r\n");
      }
      write(sink,
            ": a comment\ndata: {\"choices\": [{\"text\": \"\", \"finish_reason\": "
            "\"length\"}]}\n\n");
      write(sink, fmt::format("data: {{\"choices\": [], \"usage\": {{\"prompt_tokens\": {}, "
                              "\"completion_tokens\": {}}}}}\n\ndata: [DONE]\n\n",
                              prompt, tokens));
      sink.done();
      return true;
    });
  };
}

LoadOptions options_of(int64_t requests, double rate) {
  LoadOptions options;
  options.requests = requests;
  options.rate = rate;
  options.sizes = {{.prompt_tokens = 5, .max_tokens = 4}, {.prompt_tokens = 9, .max_tokens = 6}};
  options.vocab = 100;
  options.http.silence_seconds = 5;
  return options;
}

TEST_CASE("arrivals are Poisson, and the same for the same seed") {
  const std::vector<double> times = poisson_arrivals(20001, 50, 3);
  CHECK(times == poisson_arrivals(20001, 50, 3));
  CHECK(times != poisson_arrivals(20001, 50, 4));
  CHECK(times.front() == 0);
  CHECK(std::is_sorted(times.begin(), times.end()));
  // 20,000 exponential gaps: mean 20 ms, standard deviation of the mean 0.7 %.
  CHECK(times.back() / 20000 == Approx(0.02).epsilon(0.03));
  double squares = 0;
  for (size_t i = 1; i < times.size(); ++i) squares += std::pow(times[i] - times[i - 1], 2);
  CHECK(squares / 20000 == Approx(2 * 0.02 * 0.02).epsilon(0.08));  // E gap^2 = 2 / rate^2
}

TEST_CASE("what is measured is what the server did") {
  std::atomic<int> keyed = 0;
  const FakeServer server(steady_answers(milliseconds(60), milliseconds(20), &keyed));
  LoadOptions options = options_of(10, 100);
  options.http.api_key = "secret";
  options.slo_ttft = 10;
  options.slo_itl = 0.01;  // stricter than the server's 20 ms
  const LoadReport report = run_load(server.address(), options);
  CHECK(report.model == "fake");
  CHECK(keyed == 10);
  REQUIRE(report.requests.size() == 10);
  for (size_t i = 0; i < report.requests.size(); ++i) {
    const RequestOutcome& r = report.requests[i];
    INFO("request " << i << ": " << r.error);
    CHECK(r.complete());
    const int64_t tokens = i % 2 == 0 ? 4 : 6;
    CHECK(r.answer_tokens == tokens);
    CHECK(r.prompt_tokens == (i % 2 == 0 ? 5 : 9));
    CHECK(r.pieces == tokens);
    CHECK(r.gaps.size() == static_cast<size_t>(tokens - 1));
    // Sleeps may be longer than asked for on a busy machine, never shorter.
    CHECK(r.ttft >= 0.060);
    CHECK(r.seconds >= 0.060 + 0.020 * static_cast<double>(tokens - 1));
    for (double gap : r.gaps) CHECK(gap > 0);
    CHECK(r.seconds_per_token() >= 0.019);
  }
  const Json json = to_json(report, options);
  CHECK(json["complete"] == 10);
  CHECK(json["good"] == 0);
  CHECK(json["completion_tokens"] == 50);
  CHECK(json["ttft_seconds"]["p50"].get<double>() >= 0.060);
  CHECK(json["itl_seconds"]["p99"].get<double>() >= 0.019);
  LoadOptions loose = options;
  loose.slo_itl = 60;
  CHECK(to_json(report, loose)["good"] == 10);
  CHECK(to_json(report, loose)["goodput_requests_per_second"].get<double>() ==
        Approx(10 / report.seconds));
}

TEST_CASE("a slow server does not hold back the next requests") {
  std::atomic<int> at_once = 0, most = 0;
  const auto slow = steady_answers(milliseconds(300), milliseconds(1));
  const FakeServer server([&](const httplib::Request& request, httplib::Response& response) {
    most = std::max(most.load(), ++at_once);
    std::this_thread::sleep_for(milliseconds(300));
    --at_once;
    slow(request, response);
  });
  const LoadReport report = run_load(server.address(), options_of(8, 200));
  CHECK(most > 1);
  for (const RequestOutcome& r : report.requests) CHECK(r.complete());
}

TEST_CASE("misbehaving servers cost their requests and nothing else") {
  struct Case {
    const char* name;
    const char* body;
    const char* expected;  // part of the error
  };
  const Case cases[] = {
      {"no JSON", "data: {{{\n\n", "no JSON object"},
      {"an array", "data: [1, 2]\n\n", "no JSON object"},
      {"an error", "data: {\"error\": {\"message\": \"out of cache\"}}\n\n", "out of cache"},
      {"an odd error", "data: {\"error\": 7}\n\n", "without a message"},
      {"no choices", "data: {\"a\": 1}\n\n", "without choices"},
      {"cut off", "data: {\"choices\": [{\"text\": \"a\"}]}\n\n", "ended before"},
      {"nothing", "", "ended before"},
      {"wrong types", "data: {\"choices\": [7, null, {\"text\": 1, \"finish_reason\": []}]}\n\n",
       "ended before"},
      {"huge counts",
       "data: {\"choices\": [], \"usage\": {\"completion_tokens\": 99999999999999999999, "
       "\"prompt_tokens\": -7}}\n\n",
       "ended before"}};
  for (const Case& c : cases) {
    INFO(c.name);
    const FakeServer server([&](const httplib::Request&, httplib::Response& response) {
      response.set_content(c.body, "text/event-stream");
    });
    const LoadReport report = run_load(server.address(), options_of(3, 1000));
    for (const RequestOutcome& r : report.requests) {
      CHECK_FALSE(r.complete());
      CHECK(r.error.find(c.expected) != std::string::npos);
    }
    CHECK(to_json(report, options_of(3, 1000))["failed"] == 3);
  }
}

TEST_CASE("refusals, endless events and silence are told apart") {
  const FakeServer busy([](const httplib::Request&, httplib::Response& response) {
    response.status = 429;
    response.set_content(R"({"error": {"message": "queue full"}})", "application/json");
  });
  CHECK(run_load(busy.address(), options_of(1, 1)).requests[0].error == "status 429: queue full");

  const FakeServer endless([](const httplib::Request&, httplib::Response& response) {
    response.set_chunked_content_provider("text/event-stream", [](size_t, httplib::DataSink& sink) {
      const std::string block(1 << 16, 'x');
      return sink.write(block.data(), block.size());
    });
  });
  CHECK(run_load(endless.address(), options_of(1, 1)).requests[0].error ==
        "an event of more than 1 MiB");

  const FakeServer silent([](const httplib::Request&, httplib::Response& response) {
    std::this_thread::sleep_for(milliseconds(1500));
    response.set_content("data: [DONE]\n\n", "text/event-stream");
  });
  LoadOptions hasty = options_of(1, 1);
  hasty.http.silence_seconds = 0.3;
  CHECK_FALSE(run_load(silent.address(), hasty).requests[0].complete());

  HttpAddress nobody = silent.address();
  nobody.server = "http://127.0.0.1:1";
  CHECK_THROWS_AS(run_load(nobody, options_of(1, 1)), IoError);
  LoadOptions named = options_of(2, 100);
  named.model = "m";
  CHECK_FALSE(run_load(nobody, named).requests[1].complete());
}

TEST_CASE("events come whole however the bytes are cut") {
  const std::string text =
      "data: one\n\n: comment\nevent: x\ndata:two\r\n\r\ndata: a\ndata: b\n\n\n\ndata: cut";
  for (size_t piece : {1u, 2u, 3u, 7u, 100u}) {
    EventLines lines;
    std::vector<std::string> events;
    for (size_t at = 0; at < text.size(); at += piece) {
      CHECK(lines.feed(std::string_view(text).substr(at, piece)));
      while (auto event = lines.next()) events.push_back(*event);
    }
    CHECK(events == std::vector<std::string>{"one", "two", "a\nb"});
  }
}

TEST_CASE("random bytes are read as something or refused") {
  const RandomStream stream(9, "events");
  const std::string alphabet = "{}[]\":,data truefalsnl0123456789.eE+-\\u\n\r choicestxfi_usg";
  uint64_t at = 0;
  for (int round = 0; round < 20000; ++round) {
    std::string text = round % 2 == 0 ? "{\"choices\":[" : "";
    for (uint64_t n = stream.below(at++, 60); n > 0; --n) {
      text += alphabet[stream.below(at++, alphabet.size())];
    }
    const CompletionPiece piece = read_completion(text);
    CHECK((!piece.error.empty() || !piece.done));
  }
}

TEST_CASE("lengths and addresses are checked") {
  const auto path = std::filesystem::temp_directory_path() / "degu-lengths-test.csv";
  const auto read = [&](const char* text) {
    std::ofstream(path) << text;
    return read_request_sizes(path.string());
  };
  const std::vector<RequestSize> sizes = read("prompt_tokens,max_tokens\n5,7\r\n\n 12 , 1\n");
  REQUIRE(sizes.size() == 2);
  CHECK(sizes[0].max_tokens == 7);
  CHECK(sizes[1].prompt_tokens == 12);
  for (const char* bad : {"", "a,b\n", "1,2\n3\n", "1,0\n", "1,-2\n", "1,2,3\n", "1,x\n"}) {
    INFO(bad);
    CHECK_THROWS_AS(read(bad), DataError);
  }
  std::filesystem::remove(path);
  CHECK(parse_http_address("http://h:1/base/").base == "/base");
  CHECK(parse_http_address("http://h:1").server == "http://h:1");
  for (const char* bad : {"h:1", "ftp://h", "http://", "http:///x"}) {
    CHECK_THROWS_AS(parse_http_address(bad), ConfigError);
  }
}

}  // namespace
}  // namespace degu
