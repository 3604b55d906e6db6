#include "server/api_response.h"

#include <catch2/catch.hpp>

#include "tests/server/api_context.h"

namespace degu {
namespace {

using nlohmann::json;
using testing::api_context;
using testing::small_tokenizer;

int32_t byte_token(unsigned char byte) {
  return 3 + byte;  // docs/formats/tokenizer.md
}

// Two events of one choice: "a", then half of "é" and its other half, then the end of the text.
std::vector<Event> events() {
  const auto record = [](int32_t token, const char* text, float logprob) {
    return TokenRecord{.token = token,
                       .text = text,
                       .logprob = logprob,
                       .top = {{token, logprob}, {byte_token(0xff), -2.5f}},
                       .experts_LK = {1, 2, 3, 4}};
  };
  Event first{.id = 1, .tokens = {record(byte_token('a'), "a", -0.5f)}};
  first.usage = {.prompt_tokens = 5, .cached_tokens = 3, .completion_tokens = 1};
  Event second{.id = 1,
               .tokens = {record(byte_token(0xc3), "", -1.0f), record(byte_token(0xa9), "é", -1.5f),
                          record(small_tokenizer().eos_id(), "", -0.25f)},
               .finish = FinishReason::kStop};
  second.tokens.back().experts_LK.clear();
  second.usage = {.prompt_tokens = 5, .cached_tokens = 3, .completion_tokens = 4};
  return {first, second};
}

json parse_event(const std::string& text) {
  REQUIRE(text.starts_with("data: "));
  REQUIRE(text.ends_with("\n\n"));
  return json::parse(text.substr(6));
}

TEST_CASE("a completion at once") {
  const ApiCall call =
      parse_completion(R"({"prompt": "a", "logprobs": 2, "routes": true})", api_context());
  ResponseWriter writer(call, small_tokenizer(), "small", "cmpl-1", 99, 2);
  for (Event& event : events()) writer.add(0, std::move(event));
  CHECK(writer.open() == 0);
  const json out = json::parse(writer.whole());
  CHECK(out["object"].get<std::string>() == "text_completion");
  CHECK(out["model"].get<std::string>() == "small");
  CHECK(out["created"] == 99);
  CHECK(out["usage"] == json({{"prompt_tokens", 5},
                              {"completion_tokens", 4},
                              {"total_tokens", 9},
                              {"prompt_tokens_details", {{"cached_tokens", 3}}}}));
  const json& choice = out["choices"][0];
  CHECK(choice["text"].get<std::string>() == "aé");
  CHECK(choice["finish_reason"].get<std::string>() == "stop");
  const json& logprobs = choice["logprobs"];
  CHECK(logprobs["tokens"] == json({"a", "bytes:\\xc3", "bytes:\\xa9", "</s>"}));
  CHECK(logprobs["token_logprobs"] == json({-0.5, -1.0, -1.5, -0.25}));
  CHECK(logprobs["text_offset"] == json({0, 1, 1, 2}));  // in characters
  CHECK(logprobs["top_logprobs"][1] == json({{"bytes:\\xc3", -1.0}, {"bytes:\\xff", -2.5}}));
  CHECK(choice["routes"][0] ==
        json({{"token", byte_token('a')}, {"text", "a"}, {"experts", {{1, 2}, {3, 4}}}}));
  CHECK(choice["routes"][3]["experts"].empty());
}

TEST_CASE("the pieces of a stream say together what the whole says") {
  const ApiCall call = parse_completion(
      R"({"prompt": "a", "logprobs": 2, "stream": true, "stream_options": {"include_usage": true}})",
      api_context());
  ResponseWriter writer(call, small_tokenizer(), "small", "cmpl-1", 99, 2);
  CHECK(writer.begin().empty());
  std::string text;
  json offsets = json::array();
  json finish;
  for (const Event& event : events()) {
    const json piece = parse_event(writer.piece(0, event));
    CHECK(piece["usage"].is_null());
    text += piece["choices"][0]["text"];
    for (const json& each : piece["choices"][0]["logprobs"]["text_offset"]) offsets.push_back(each);
    finish = piece["choices"][0]["finish_reason"];
  }
  CHECK(text == "aé");
  CHECK(offsets == json({0, 1, 1, 2}));
  CHECK(finish.get<std::string>() == "stop");
  CHECK(writer.open() == 0);
  const std::string end = writer.end();
  CHECK(end.ends_with("data: [DONE]\n\n"));
  const json usage = parse_event(end.substr(0, end.find("data: [DONE]")));
  CHECK(usage["choices"].empty());
  CHECK(usage["usage"]["total_tokens"] == 9);
}

TEST_CASE("a conversation's answer") {
  const std::string body =
      R"({"messages": [{"role": "user", "content": "a"}], "logprobs": true, "top_logprobs": 2})";
  const ApiCall call = parse_chat(body, api_context());
  ResponseWriter writer(call, small_tokenizer(), "small", "chatcmpl-1", 99, 2);
  for (Event& event : events()) writer.add(0, std::move(event));
  const json out = json::parse(writer.whole());
  CHECK(out["object"].get<std::string>() == "chat.completion");
  CHECK(out["choices"][0]["message"]["content"].get<std::string>() == "aé");
  CHECK(out["choices"][0]["message"]["role"].get<std::string>() == "assistant");
  const json& content = out["choices"][0]["logprobs"]["content"];
  REQUIRE(content.size() == 4);
  CHECK(content[1]["bytes"] == json({0xc3}));
  CHECK(content[1]["top_logprobs"].size() == 2);
  CHECK(content[3]["bytes"].empty());

  ResponseWriter stream(call, small_tokenizer(), "small", "chatcmpl-1", 99, 2);
  CHECK(parse_event(stream.begin())["choices"][0]["delta"]["role"].get<std::string>() ==
        "assistant");
  const json piece = parse_event(stream.piece(0, events()[0]));
  CHECK(piece["object"].get<std::string>() == "chat.completion.chunk");
  CHECK(piece["choices"][0]["delta"] == json({{"content", "a"}}));
  CHECK(stream.end() == "data: [DONE]\n\n");
}

TEST_CASE("a prompt that is answered several times counts once") {
  const ApiCall call = parse_completion(R"({"prompt": ["a", "b"], "n": 2})", api_context());
  ResponseWriter writer(call, small_tokenizer(), "small", "cmpl-1", 99, 2);
  for (size_t choice = 0; choice < 4; ++choice) {
    for (Event& event : events()) writer.add(choice, std::move(event));
  }
  const json out = json::parse(writer.whole());
  CHECK(out["choices"].size() == 4);
  CHECK(out["choices"][3]["index"] == 3);
  CHECK(out["usage"]["prompt_tokens"] == 10);
  CHECK(out["usage"]["completion_tokens"] == 16);
}

TEST_CASE("a probability of nothing is a number in JSON") {
  const ApiCall call = parse_completion(R"({"prompt": "a", "logprobs": 0})", api_context());
  ResponseWriter writer(call, small_tokenizer(), "small", "cmpl-1", 99, 2);
  Event event{.id = 1, .finish = FinishReason::kLength};
  event.tokens.push_back({.token = 5, .text = "\x02", .logprob = -INFINITY});
  event.tokens.push_back({.token = 6, .text = "x"});  // the first of a prompt has none
  writer.add(0, std::move(event));
  const json out = json::parse(writer.whole())["choices"][0]["logprobs"];
  CHECK(out["token_logprobs"] == json({-9999.0, nullptr}));
  CHECK(out["top_logprobs"][1].is_null());
}

}  // namespace
}  // namespace degu
