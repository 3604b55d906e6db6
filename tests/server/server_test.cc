// The endpoints, over HTTP: what they answer, that text is the engine's, how they refuse.
#include "server/server.h"

#include <catch2/catch.hpp>
#include <thread>

#include "server/api_request.h"
#include "tests/server/served.h"

namespace degu {
namespace {

using nlohmann::json;
using testing::metric;
using testing::Served;
using testing::small_options;
using testing::small_tokenizer;

// A request of kind i, and what the engine alone says to it.
json varied_body(int i) {
  const std::string words = "abcde fabc dead beef cab fed";
  json body = {{"prompt", words.substr(0, static_cast<size_t>(i) * 3 + 3)},
               {"max_tokens", 6 + i * 5},
               {"seed", i},
               {"ignore_eos", i % 3 != 0}};
  if (i % 2 == 0) body["temperature"] = 0;
  if (i % 3 == 1) body["stop"] = {"a", "é"};
  if (i % 4 == 2) body["echo"] = true;
  if (i % 4 == 3) body["repetition_penalty"] = 1.3;
  return body;
}

constexpr int kKinds = 8;

const std::vector<std::string>& expected_texts() {
  static const std::vector<std::string> texts = [] {
    testing::Bench bench(40);
    std::vector<std::string> all;
    const ApiContext context{.tokenizer = &small_tokenizer(),
                             .model = "small",
                             .vocab = 300,
                             .context = 256,
                             .chat = &find_chat_template("plain"),
                             .limits = {}};
    for (int i = 0; i < kKinds; ++i) {
      const ApiCall call = parse_completion(varied_body(i).dump(), context);
      Engine engine(small_tokenizer(), bench.lane, {.context = 256, .prefix_cache = false});
      std::string text;
      engine.submit(call.choice(0, *call.seed), [&](Event&& event) { text += event.text(); });
      while (engine.step()) {
      }
      all.push_back(text);
    }
    return all;
  }();
  return texts;
}

// The events of a stream: each is one JSON object, the last is the end mark.
std::vector<json> parse_stream(const std::string& text) {
  std::vector<json> events;
  size_t at = 0;
  bool ended = false;
  while (at < text.size()) {
    const size_t end = text.find("\n\n", at);
    REQUIRE(end != std::string::npos);
    const std::string line = text.substr(at, end - at);
    REQUIRE(line.starts_with("data: "));
    REQUIRE_FALSE(ended);
    ended = line == "data: [DONE]";
    if (!ended) events.push_back(json::parse(line.substr(6)));
    at = end + 2;
  }
  REQUIRE(ended);
  return events;
}

std::string text_of_stream(const std::string& body) {
  std::string text;
  for (const json& event : parse_stream(body)) {
    for (const json& choice : event["choices"]) text += choice["text"].get<std::string>();
  }
  return text;
}

TEST_CASE("an answer over HTTP is the engine's, at once and streamed") {
  Served served;
  for (int i = 0; i < kKinds; ++i) {
    INFO("kind " << i);
    json body = varied_body(i);
    const auto whole = served.post("/v1/completions", body);
    REQUIRE(whole);
    REQUIRE(whole->status == 200);
    CHECK(whole->get_header_value("Content-Type") == "application/json");
    const json out = json::parse(whole->body);
    CHECK(out["choices"][0]["text"].get<std::string>() == expected_texts()[static_cast<size_t>(i)]);
    body["stream"] = true;
    body["stream_options"] = {{"include_usage", true}};
    const auto streamed = served.post("/v1/completions", body);
    REQUIRE(streamed);
    CHECK(streamed->get_header_value("Content-Type") == "text/event-stream");
    const std::vector<json> events = parse_stream(streamed->body);
    CHECK(text_of_stream(streamed->body) == expected_texts()[static_cast<size_t>(i)]);
    CHECK(events.back()["choices"].empty());
    CHECK(events.back()["usage"]["completion_tokens"] == out["usage"]["completion_tokens"]);
    CHECK(events[events.size() - 2]["choices"][0]["finish_reason"] ==
          out["choices"][0]["finish_reason"]);
    for (const json& event : events) CHECK(event["id"] == events[0]["id"]);
  }
}

TEST_CASE("several prompts and answers come together, each what it is alone") {
  Served served;
  const json body = {{"prompt", {"abc", "fed cab"}}, {"n", 2}, {"max_tokens", 9}, {"seed", 3}};
  const json together = json::parse(served.post("/v1/completions", body)->body);
  REQUIRE(together["choices"].size() == 4);
  const json alone = json::parse(
      served.post("/v1/completions", {{"prompt", "fed cab"}, {"max_tokens", 9}, {"seed", 3}})
          ->body);
  CHECK(together["choices"][2]["text"] == alone["choices"][0]["text"]);
  CHECK(together["choices"][2]["text"] != together["choices"][3]["text"]);
  json streamed = body;
  streamed["stream"] = true;
  std::vector<std::string> texts(4);
  for (const json& event : parse_stream(served.post("/v1/completions", streamed)->body)) {
    for (const json& choice : event["choices"]) {
      texts[choice["index"].get<size_t>()] += choice["text"].get<std::string>();
    }
  }
  for (size_t i = 0; i < 4; ++i) {
    CHECK(texts[i] == together["choices"][i]["text"].get<std::string>());
  }
}

TEST_CASE("echo with log-probabilities scores a prompt as the harness asks") {
  Served served;
  const json prompt = {5, 17, 290, 40, 41};
  const auto answer = served.post(
      "/v1/completions",
      {{"prompt", prompt}, {"max_tokens", 1}, {"temperature", 0}, {"logprobs", 1}, {"echo", true}});
  const json logprobs = json::parse(answer->body)["choices"][0]["logprobs"];
  REQUIRE(logprobs["token_logprobs"].size() == 6);
  CHECK(logprobs["token_logprobs"][0].is_null());
  for (size_t i = 1; i < 6; ++i) {
    const double own = logprobs["token_logprobs"][i];
    CHECK(own < 0);
    double best = -1e9;
    for (const auto& [name, value] : logprobs["top_logprobs"][i].items()) {
      best = std::max(best, value.get<double>());
    }
    CHECK(own <= best);
  }
  // The sampled token is the likeliest.
  CHECK(logprobs["top_logprobs"][5].size() == 1);
}

TEST_CASE("conversations") {
  Served served;
  json body = {{"messages", {{{"role", "user"}, {"content", "abc"}}}},
               {"max_tokens", 12},
               {"seed", 5},
               {"logprobs", true},
               {"top_logprobs", 2}};
  const json whole = json::parse(served.post("/v1/chat/completions", body)->body);
  const std::string text = whole["choices"][0]["message"]["content"];
  CHECK(whole["choices"][0]["logprobs"]["content"].size() ==
        whole["usage"]["completion_tokens"].get<size_t>());
  body["stream"] = true;
  std::string streamed;
  const std::vector<json> events = parse_stream(served.post("/v1/chat/completions", body)->body);
  CHECK(events[0]["choices"][0]["delta"]["role"].get<std::string>() == "assistant");
  for (const json& event : events) streamed += event["choices"][0]["delta"].value("content", "");
  CHECK(streamed == text);
  const json plain = json::parse(served
                                     .post("/v1/completions", {{"prompt", "User: abc\nAssistant:"},
                                                               {"max_tokens", 12},
                                                               {"seed", 5},
                                                               {"stop", "\nUser:"}})
                                     ->body);
  CHECK(plain["choices"][0]["text"].get<std::string>() == text);
}

TEST_CASE("the smaller endpoints") {
  Served served;
  httplib::Client client = served.client();
  CHECK(client.Get("/health")->status == 200);
  CHECK(client.Head("/health")->status == 200);
  CHECK(client.Get("/ready")->status == 200);
  const json models = json::parse(client.Get("/v1/models")->body);
  CHECK(models["data"][0]["id"].get<std::string>() == "small");
  CHECK(models["data"][0]["max_model_len"] == 256);
  CHECK(client.Get("/v1/models/small")->status == 200);
  CHECK(client.Get("/v1/models/other")->status == 404);
  const auto page = client.Get("/");
  CHECK(page->status == 200);
  CHECK(page->body.starts_with("<!doctype html>"));
  CHECK(page->get_header_value("Content-Security-Policy").find("default-src 'none'") == 0);

  const json tokens = json::parse(
      served.post("/tokenize", {{"prompt", "abc é"}, {"return_token_strs", true}})->body);
  CHECK(tokens["count"] == tokens["tokens"].size());
  CHECK(tokens["token_strs"][0].get<std::string>() == "<s>");
  const json text = json::parse(served.post("/detokenize", {{"tokens", tokens["tokens"]}})->body);
  CHECK(text["prompt"].get<std::string>() == "abc é");
}

TEST_CASE("a response has the experts of each token when asked") {
  Served served;
  const json out = json::parse(served
                                   .post("/v1/completions", {{"prompt", "abc"},
                                                             {"max_tokens", 5},
                                                             {"routes", true},
                                                             {"echo", true},
                                                             {"ignore_eos", true}})
                                   ->body);
  const json& routes = out["choices"][0]["routes"];
  const auto all = static_cast<size_t>(out["usage"]["total_tokens"]);
  REQUIRE(routes.size() == all);
  for (size_t i = 0; i + 1 < all; ++i) {
    REQUIRE(routes[i]["experts"].size() == 2);  // layers
    CHECK(routes[i]["experts"][0].size() == 2);
  }
  CHECK(routes[all - 1]["experts"].empty());
}

TEST_CASE("refusals have the right status, OpenAI's form and a remedy") {
  Served served;
  struct Case {
    const char* method;
    const char* path;
    const char* type;
    std::string body;
    int status;
    const char* word;
  };
  const char* kJson = "application/json";
  const Case cases[] = {
      {"POST", "/v1/completions", kJson, "{", 400, "JSON"},
      {"POST", "/v1/completions", kJson, R"({"prompt": "a", "temperature": -1})", 400,
       "temperature"},
      {"POST", "/v1/completions", kJson, R"({"prompt": "a", "model": "other"})", 404, "small"},
      {"POST", "/v1/completions", "text/plain", R"({"prompt": "a"})", 415, "application/json"},
      {"POST", "/v1/completions", kJson, std::string((1 << 20) + 1, ' '), 413, "bytes"},
      {"GET", "/v1/completions", kJson, "", 405, "POST"},
      {"POST", "/health", kJson, "{}", 405, "GET"},
      {"DELETE", "/v1/models/small", kJson, "", 405, "GET"},
      {"OPTIONS", "/v1/completions", kJson, "", 405, "POST"},
      {"GET", "/nothing", kJson, "", 404, "/v1/completions"},
      {"POST", "/v1/chat/completions", kJson, "{}", 400, "messages"},
      {"POST", "/tokenize", kJson, "{}", 400, "prompt"},
      {"POST", "/detokenize", kJson, "{}", 400, "tokens"},
  };
  for (const Case& c : cases) {
    INFO(c.method << " " << c.path << " " << c.body.substr(0, 60));
    httplib::Request request;
    request.method = c.method;
    request.path = c.path;
    if (request.method == "POST") {
      request.body = c.body;
      request.set_header("Content-Type", c.type);
    }
    const auto answer = served.client().send(request);
    REQUIRE(answer);
    CHECK(answer->status == c.status);
    const json error = json::parse(answer->body)["error"];
    CHECK_THAT(error["message"].get<std::string>(), Catch::Contains(c.word));
    CHECK(error["type"].is_string());
    CHECK(error.contains("param"));
    CHECK(error.contains("code"));
    if (c.status == 405) CHECK(answer->has_header("Allow"));
  }
}

TEST_CASE("API keys guard everything but health, readiness and the page") {
  ServerOptions options = small_options();
  options.api_keys = {"0123456789abcdef"};
  Served served(options);
  httplib::Client client = served.client();
  for (const char* path : {"/health", "/ready", "/"}) CHECK(client.Get(path)->status == 200);
  for (const char* path : {"/v1/models", "/metrics"}) {
    const auto answer = client.Get(path);
    CHECK(answer->status == 401);
    CHECK(answer->get_header_value("WWW-Authenticate") == "Bearer");
    CHECK(client.Get(path, {{"Authorization", "Bearer 0123456789abcdeX"}})->status == 401);
    CHECK(client.Get(path, {{"Authorization", "Bearer 0123456789abcdef"}})->status == 200);
  }
  CHECK(served.post("/v1/completions", {{"prompt", "a"}})->status == 401);
  client.set_bearer_token_auth("0123456789abcdef");
  CHECK(client.Post("/v1/completions", R"({"prompt": "a"})", "application/json")->status == 200);
}

TEST_CASE("foreign pages may not ask unless they are let in") {
  const httplib::Headers origin = {{"Origin", "http://example.com"}};
  {
    Served served;
    httplib::Client client = served.client();
    CHECK_FALSE(client.Get("/health", origin)->has_header("Access-Control-Allow-Origin"));
    CHECK(client.Get("/health", {{"Host", "example.com"}})->status == 403);
    CHECK(client.Get("/health", {{"Host", "localhost:8000"}})->status == 200);
  }
  ServerOptions options = small_options();
  options.cors_origin = "http://example.com";
  options.allowed_hosts = {"mine.example"};
  Served served(options);
  httplib::Client client = served.client();
  CHECK(client.Get("/health", origin)->get_header_value("Access-Control-Allow-Origin") ==
        "http://example.com");
  CHECK(client.Options("/v1/completions", origin)->status == 204);
  CHECK(client.Get("/health", {{"Host", "mine.example"}})->status == 200);
}

TEST_CASE("metrics count what was done") {
  ServerOptions options = small_options();
  options.price_per_hour = 2;
  Served served(options);
  const json body = {
      {"prompt", std::vector<int>(100, 5)}, {"max_tokens", 10}, {"ignore_eos", true}};
  for (int i = 0; i < 2; ++i) REQUIRE(served.post("/v1/completions", body)->status == 200);
  REQUIRE(served.post("/v1/completions", {{"prompt", 5}})->status == 400);
  REQUIRE(Served::soon([&] {
    return served.engine.stats().finished[static_cast<size_t>(FinishReason::kLength)] == 2;
  }));
  const auto answer = served.client().Get("/metrics");
  CHECK(answer->get_header_value("Content-Type").starts_with("text/plain; version=0.0.4"));
  const std::string text = "\n" + answer->body;
  const std::string model = "{model_name=\"small\"";
  CHECK(metric(text, "degu:num_requests_running" + model) == 0);
  CHECK(metric(text, "degu:prompt_tokens_total" + model) == 200);
  CHECK(metric(text, "degu:generation_tokens_total" + model) == 20);
  CHECK(metric(text, "degu:prefix_cache_queries_total" + model) == 200);
  CHECK(metric(text, "degu:prefix_cache_hits_total" + model) == 64);
  CHECK(metric(text, "degu:time_to_first_token_seconds_count" + model) == 2);
  CHECK(metric(text, "degu:inter_token_latency_seconds_count" + model) == 18);
  CHECK(metric(text, "degu:e2e_request_latency_seconds_count" + model) == 2);
  CHECK(metric(text, "degu:request_success_total" + model + ",finished_reason=\"length\"") == 2);
  CHECK(metric(text, "degu:cost_per_million_tokens" + model) > 0);
  CHECK(metric(text, "degu:distinct_experts_per_step" + model) >= 2);
  CHECK(metric(text, "degu:http_requests_total" + model +
                         ",code=\"400\",endpoint=\"/v1/completions\"") == 1);
  double rows = 0;
  for (int e = 0; e < 8; ++e) {
    const double load = metric(text, "degu:expert_rows_total" + model + ",layer=\"1\",expert=\"" +
                                         std::to_string(e) + "\"");
    REQUIRE(load >= 0);
    rows += load;
  }
  CHECK(rows == 2 * (200 - 64 + 18));  // top 2; an answer's last token is not read
}

TEST_CASE("two hundred streams at once, each with the text it has alone") {
  ServerOptions options = small_options();
  options.limits.concurrent = 220;
  options.limits.connections = 240;
  Served served(options);
  expected_texts();
  constexpr int kStreams = 200;
  std::atomic<int> equal{0};
  std::atomic<int> bad{0};
  std::vector<std::thread> clients;
  for (int s = 0; s < kStreams; ++s) {
    clients.emplace_back([&, s] {
      json body = varied_body(s % kKinds);
      body["stream"] = true;
      const auto answer = served.post("/v1/completions", body);
      if (!answer || answer->status != 200) {
        ++bad;
        return;
      }
      std::string text;
      size_t at = 0;
      for (size_t end; (end = answer->body.find("\n\n", at)) != std::string::npos; at = end + 2) {
        const std::string line = answer->body.substr(at + 6, end - at - 6);
        if (line != "[DONE]") text += json::parse(line)["choices"][0]["text"].get<std::string>();
      }
      equal += text == expected_texts()[static_cast<size_t>(s % kKinds)];
    });
  }
  CHECK(served.client().Get("/health")->status == 200);
  for (std::thread& client : clients) client.join();
  CHECK(bad == 0);
  CHECK(equal == kStreams);
  CHECK(served.engine.stats().pages_in_use == 0);
}

}  // namespace
}  // namespace degu
