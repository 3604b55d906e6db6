#include "server/api_request.h"

#include <catch2/catch.hpp>
#include <cstdlib>
#include <nlohmann/json.hpp>

#include "base/random.h"
#include "tests/server/api_context.h"

namespace degu {
namespace {

using nlohmann::json;
using testing::api_context;
using testing::small_tokenizer;

ApiError error_of(const std::string& body, bool chat = false) {
  try {
    chat ? parse_chat(body, api_context()) : parse_completion(body, api_context());
  } catch (const ApiError& error) {
    return error;
  }
  return {200, "", "", "accepted: " + body};
}

TEST_CASE("a completion request with every field") {
  const ApiCall call = parse_completion(
      R"({"model": "small", "prompt": "abc", "max_tokens": 7, "n": 2, "seed": -5, "temperature": 0.5,
          "top_k": 9, "top_p": 0.9, "min_p": 0.1, "repetition_penalty": 1.1, "frequency_penalty": 0.2,
          "presence_penalty": -0.3, "logit_bias": {"17": -100, "18": 2.5}, "stop": ["x", "yz"],
          "logprobs": 3, "echo": true, "ignore_eos": true, "routes": true, "stream": true,
          "stream_options": {"include_usage": true}, "user": "me", "suffix": null, "best_of": 2})",
      api_context());
  CHECK(call.choices() == 2);
  std::vector<int32_t> tokens = small_tokenizer().encode("abc");
  tokens.insert(tokens.begin(), small_tokenizer().bos_id());
  CHECK(call.prompts == std::vector<std::vector<int32_t>>{tokens});
  const Request& r = call.request;
  CHECK(r.max_tokens == 7);
  CHECK(call.seed == static_cast<uint64_t>(-5));
  CHECK(r.sampling.temperature == 0.5);
  CHECK(r.sampling.top_k == 9);
  CHECK(r.sampling.top_p == 0.9);
  CHECK(r.sampling.min_p == 0.1);
  CHECK(r.sampling.repetition_penalty == 1.1);
  CHECK(r.sampling.frequency_penalty == 0.2);
  CHECK(r.sampling.presence_penalty == -0.3);
  CHECK(r.sampling.logit_bias == std::vector<std::pair<int32_t, float>>{{17, -100.0f}, {18, 2.5f}});
  CHECK(r.sampling.logprobs == 3);
  CHECK(r.stop == std::vector<std::string>{"x", "yz"});
  CHECK((r.echo && r.ignore_eos && r.routes && call.stream && call.include_usage));
}

TEST_CASE("what is left out, or null, has a default") {
  for (const char* body : {R"({"prompt": "abc"})",
                           R"({"prompt": "abc", "max_tokens": null, "stop": null, "seed": null,
                               "logprobs": null, "stream": null, "stream_options": null})"}) {
    const ApiCall call = parse_completion(body, api_context());
    CHECK(call.request.max_tokens == 16);
    CHECK(call.request.sampling.temperature == 1);
    CHECK(call.request.sampling.logprobs == -1);
    CHECK(call.request.stop.empty());
    CHECK_FALSE(call.seed);
    CHECK_FALSE(call.stream);
  }
}

TEST_CASE("prompts are texts, tokens, or lists of either") {
  const auto prompts = [](const char* prompt) {
    return parse_completion(std::string(R"({"prompt": )") + prompt + "}", api_context()).prompts;
  };
  CHECK(prompts("[5, 6, 299]") == std::vector<std::vector<int32_t>>{{5, 6, 299}});
  CHECK(prompts("[[5], [6, 7]]") == std::vector<std::vector<int32_t>>{{5}, {6, 7}});
  CHECK(prompts(R"(["abc", "de"])").size() == 2);
  CHECK(prompts(R"(["abc", "de"])")[0] == prompts(R"("abc")")[0]);
  CHECK(prompts(R"("")") == std::vector<std::vector<int32_t>>{{small_tokenizer().bos_id()}});
}

TEST_CASE("the first answer to a prompt has the call's seed, the others seeds of their own") {
  const ApiCall call = parse_completion(R"({"prompt": [[5], [6]], "n": 3})", api_context());
  CHECK(call.choices() == 6);
  CHECK(call.choice(0, 11).sampling.seed == 11);
  CHECK(call.choice(3, 11).sampling.seed == 11);
  CHECK(call.choice(1, 11).sampling.seed == call.choice(4, 11).sampling.seed);
  CHECK(call.choice(1, 11).sampling.seed != call.choice(2, 11).sampling.seed);
  CHECK(call.choice(2, 11).prompt == std::vector<int32_t>{5});
  CHECK(call.choice(3, 11).prompt == std::vector<int32_t>{6});
}

TEST_CASE("what cannot be served names the field and what it may be") {
  struct Case {
    const char* body;
    const char* param;
    const char* word;  // of the message
  };
  const std::string long_text = R"({"prompt": ")" + std::string(100000, 'a') + R"("})";
  const Case cases[] = {
      {"", "", "not JSON"},
      {"{", "", "not JSON"},
      {"[]", "", "must be an object"},
      {"\"\xff\"", "", "not JSON"},
      {R"({"prompt": 1e999})", "", "not JSON"},
      {R"({"prompt": [[[[[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]]]]]})", "", "deeper"},
      {R"({})", "prompt", "missing"},
      {R"({"prompt": 5})", "prompt", "must be a text"},
      {R"({"prompt": []})", "prompt", "must be a text"},
      {R"({"prompt": {}})", "prompt", "must be a text"},
      {R"({"prompt": [true]})", "prompt", "must be a text"},
      {R"({"prompt": ["a", 5]})", "prompt[1]", "all texts"},
      {R"({"prompt": [5, "a"]})", "prompt", "whole numbers"},
      {R"({"prompt": [5, 300]})", "prompt", "[0, 300)"},
      {R"({"prompt": [-1]})", "prompt", "[0, 300)"},
      {R"({"prompt": [1.5]})", "prompt", "[0, 300)"},
      {R"({"prompt": [18446744073709551615]})", "prompt", "[0, 300)"},
      {R"({"prompt": [[]]})", "prompt", "at least one"},
      {R"({"prompt": "a\u0000b"})", "prompt", "UTF-8"},
      {R"({"prompt": "a", "max_tokens": 201})", "max_tokens", "[0, 200]"},
      {R"({"prompt": "a", "max_tokens": -1})", "max_tokens", "[0, 200]"},
      {R"({"prompt": "a", "max_tokens": 1.5})", "max_tokens", "whole number"},
      {R"({"prompt": "a", "max_tokens": "7"})", "max_tokens", "whole number"},
      {R"({"prompt": "a", "temperature": -0.1})", "temperature", "[0, 100]"},
      {R"({"prompt": "a", "temperature": "hot"})", "temperature", "number"},
      {R"({"prompt": "a", "top_p": 0})", "top_p", "number"},
      {R"({"prompt": "a", "top_p": 1.1})", "top_p", "number"},
      {R"({"prompt": "a", "n": 0})", "n", "[1, 16]"},
      {R"({"prompt": "a", "n": 17})", "n", "[1, 16]"},
      {R"({"prompt": "a", "best_of": 3})", "best_of", "must equal n"},
      {R"({"prompt": "a", "suffix": "b"})", "suffix", "not served"},
      {R"({"prompt": "a", "logprobs": 21})", "logprobs", "[0, 20]"},
      {R"({"prompt": "a", "logprobs": true})", "logprobs", "whole number"},
      {R"({"prompt": "a", "stop": [""]})", "stop", "1 to 256 bytes"},
      {R"({"prompt": "a", "stop": [5]})", "stop", "1 to 256 bytes"},
      {R"({"prompt": "a", "stop": ["1","2","3","4","5","6","7","8","9","a","b","c","d","e","f","g","h"]})",
       "stop", "at most 16"},
      {R"({"prompt": "a", "logit_bias": {"x": 1}})", "logit_bias", "tokens are"},
      {R"({"prompt": "a", "logit_bias": {"300": 1}})", "logit_bias", "[0, 300)"},
      {R"({"prompt": "a", "logit_bias": {"5": 101}})", "logit_bias", "[-100, 100]"},
      {R"({"prompt": "a", "logit_bias": [5]})", "logit_bias", "an object"},
      {R"({"prompt": "a", "stream": 1})", "stream", "true or false"},
      {R"({"prompt": "a", "stream_options": {}})", "stream_options", "goes with"},
      {R"({"prompt": "a", "stream": true, "stream_options": {"usage": true}})",
       "stream_options.usage", "no field"},
      {R"({"prompt": "a", "max_token": 5})", "max_token", "did you mean \"max_tokens\"?"},
      {R"({"prompt": "a", "tools": []})", "tools", "no field"},
      {R"({"prompt": "a", "model": 5})", "model", "must be a text"},
      {long_text.c_str(), "prompt", "context of 200"},
  };
  for (const Case& c : cases) {
    INFO(std::string(c.body).substr(0, 200));
    const ApiError error = error_of(c.body);
    CHECK(error.status == 400);
    CHECK(error.param == c.param);
    CHECK_THAT(error.what(), Catch::Contains(c.word));
    CHECK(std::string(error.what()).size() < 400);
    CHECK(to_json(error)["error"]["message"].get<std::string>() == error.what());
  }
  CHECK(error_of(R"({"prompt": "a", "model": "gpt"})").status == 404);
  CHECK(error_of(R"({"prompt": "a", "model": "gpt"})").code == "model_not_found");
}

TEST_CASE("a prompt that fills the context is refused, one token less is served") {
  const auto of_length = [](int length, int max_tokens) {
    return json{{"prompt", std::vector<int>(static_cast<size_t>(length), 5)},
                {"max_tokens", max_tokens}}
        .dump();
  };
  CHECK(error_of(of_length(199, 5)).status == 200);
  CHECK(error_of(of_length(200, 5)).code == "context_length_exceeded");
  CHECK(error_of(of_length(200, 0)).status == 200);  // scored only
  CHECK(error_of(of_length(201, 0)).code == "context_length_exceeded");
}

TEST_CASE("one request has limits on prompts and answers") {
  json many = {{"prompt", std::vector<std::string>(128, "a")}};
  CHECK(error_of(many.dump()).status == 200);
  many["n"] = 2;
  CHECK(error_of(many.dump()).param == "n");
  many = {{"prompt", std::vector<std::string>(129, "a")}};
  CHECK(error_of(many.dump()).param == "prompt");
}

TEST_CASE("a conversation becomes one prompt") {
  const ApiCall call = parse_chat(
      R"({"messages": [{"role": "system", "content": "S"}, {"role": "user", "content": "abc"},
                       {"role": "assistant", "content": "de"},
                       {"role": "user", "content": [{"type": "text", "text": "f"},
                                                    {"type": "text", "text": "g"}]}],
          "max_completion_tokens": 9, "logprobs": true, "top_logprobs": 4, "stop": "q"})",
      api_context());
  CHECK(call.chat);
  CHECK(small_tokenizer().decode(call.prompts[0]) ==
        "S\n\nUser: abc\nAssistant: de\nUser: fg\nAssistant:");
  CHECK(call.request.max_tokens == 9);
  CHECK(call.request.sampling.logprobs == 4);
  CHECK(call.request.stop == std::vector<std::string>{"q", "\nUser:"});
  // Without a limit an answer may fill the context.
  const ApiCall open =
      parse_chat(R"({"messages": [{"role": "user", "content": "abc"}], "chat_template": "concat"})",
                 api_context());
  CHECK(open.request.max_tokens == 200);
  CHECK(small_tokenizer().decode(open.prompts[0]) == "abc\n");
  // An answer that the assistant has begun goes on.
  const ApiCall begun = parse_chat(
      R"({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]})",
      api_context());
  CHECK(small_tokenizer().decode(begun.prompts[0]) == "User: a\nAssistant: b");
}

TEST_CASE("every template marks the turns and ends where the answer begins") {
  const std::vector<ChatMessage> talk = {{"user", "one"}, {"assistant", "two"}, {"user", "three"}};
  for (const ChatTemplate& each : chat_templates()) {
    INFO(each.name);
    const std::string text = each.render(talk);
    const size_t one = text.find("one");
    const size_t two = text.find("two");
    CHECK(one < two);
    CHECK(two < text.find("three"));
    CHECK(text.find("three") != std::string::npos);
    CHECK_FALSE(text.ends_with(' '));
    for (const std::string& stop : each.stops) CHECK_FALSE(text.ends_with(stop));
  }
  CHECK_THROWS_WITH(find_chat_template("none"), Catch::Contains("chatml"));
}

TEST_CASE("a conversation that cannot be served names the message") {
  struct Case {
    const char* messages;
    const char* param;
  };
  const Case cases[] = {
      {R"([])", "messages"},
      {R"("abc")", "messages"},
      {R"([5])", "messages[0]"},
      {R"([{"role": "user"}])", "messages[0].content"},
      {R"([{"role": "king", "content": "a"}])", "messages[0].role"},
      {R"([{"content": "a"}])", "messages[0].role"},
      {R"([{"role": "user", "content": 5}])", "messages[0].content"},
      {R"([{"role": "user", "content": [{"type": "image_url"}]}])", "messages[0].content[0].type"},
      {R"([{"role": "user", "content": "a", "tool_calls": [1]}])", "messages[0].tool_calls"},
      {R"([{"role": "user", "content": "a"}, {"role": "user", "contents": "a"}])",
       "messages[1].content"},
  };
  for (const Case& c : cases) {
    INFO(c.messages);
    const ApiError error = error_of(std::string(R"({"messages": )") + c.messages + "}", true);
    CHECK(error.status == 400);
    CHECK(error.param == c.param);
  }
  const std::string talk = R"({"messages": [{"role": "user", "content": "a"}], )";
  CHECK(error_of(talk + R"("top_logprobs": 2})", true).param == "top_logprobs");
  CHECK(error_of(talk + R"("response_format": {"type": "json_object"}})", true).param ==
        "response_format");
  CHECK(error_of(talk + R"("chat_template": "none"})", true).param == "chat_template");
  CHECK(error_of(talk + R"("response_format": {"type": "text"}})", true).status == 200);
}

TEST_CASE("tokenize and detokenize") {
  bool pieces = false;
  const ApiContext context = api_context();
  CHECK(parse_tokenize(R"({"prompt": "abc"})", context, pieces).front() ==
        small_tokenizer().bos_id());
  CHECK_FALSE(pieces);
  CHECK(parse_tokenize(R"({"prompt": "abc", "add_special_tokens": false,
                           "return_token_strs": true})",
                       context, pieces) == small_tokenizer().encode("abc"));
  CHECK(pieces);
  CHECK(parse_tokenize(R"({"messages": [{"role": "user", "content": "a"}]})", context, pieces) ==
        parse_tokenize(R"({"prompt": "User: a\nAssistant:"})", context, pieces));
  CHECK_THROWS_AS(parse_tokenize(R"({})", context, pieces), ApiError);
  CHECK_THROWS_AS(parse_tokenize(R"({"prompt": "a", "messages": []})", context, pieces), ApiError);
  CHECK(parse_detokenize(R"({"tokens": [5, 6]})", context) == std::vector<int32_t>{5, 6});
  CHECK(parse_detokenize(R"({"tokens": []})", context).empty());
  CHECK_THROWS_AS(parse_detokenize(R"({"tokens": [300]})", context), ApiError);
  CHECK_THROWS_AS(parse_detokenize(R"({"tokens": "a"})", context), ApiError);
}

// Requests cut, spliced, with bytes and values exchanged: each is served or refused with a status
// of the client's fault, and what is accepted keeps every limit. DEGU_FUZZ_ROUNDS sets how many.
TEST_CASE("any bytes are a request or an error of the client") {
  const std::vector<std::string> seeds = {
      R"({"model": "small", "prompt": "abc def", "max_tokens": 7, "n": 2, "seed": 5, "stop": ["x"]})",
      R"({"prompt": [5, 6, 7], "temperature": 0.5, "top_k": 9, "top_p": 0.9, "logprobs": 3})",
      R"({"prompt": [[5], [6, 7]], "logit_bias": {"17": -100}, "echo": true, "routes": true})",
      R"({"prompt": ["a", "b"], "stream": true, "stream_options": {"include_usage": true}})",
      R"({"messages": [{"role": "system", "content": "S"}, {"role": "user", "content": "abc"}]})",
      R"({"messages": [{"role": "user", "content": [{"type": "text", "text": "f"}]}], "logprobs": true,
          "top_logprobs": 2, "max_completion_tokens": 4, "frequency_penalty": 1, "min_p": 0.1})",
      R"({"tokens": [5, 6, 299]})",
  };
  const std::vector<std::string> values = {"null",
                                           "true",
                                           "-1",
                                           "0",
                                           "1e308",
                                           "-9223372036854775808",
                                           "18446744073709551615",
                                           "\"\"",
                                           "[]",
                                           "{}",
                                           "1e-5",
                                           "[[]]",
                                           "\"\\ud83d\\ude00\"",
                                           "\"\\ud83d\"",
                                           "\xff",
                                           "\\",
                                           "\"",
                                           "}",
                                           "[",
                                           ",",
                                           "\"\\u0000\""};
  const char* rounds_text = std::getenv("DEGU_FUZZ_ROUNDS");
  const uint64_t rounds = rounds_text != nullptr ? std::strtoull(rounds_text, nullptr, 10) : 20000;
  const ApiContext context = api_context();
  uint64_t accepted = 0;
  uint64_t refused = 0;
  for (uint64_t round = 0; round < rounds; ++round) {
    const RandomStream draw(round, "fuzz");
    uint64_t i = 0;
    const auto below = [&](uint64_t n) { return draw.below(i++, n); };
    const uint64_t seed = below(seeds.size());
    std::string body = seeds[seed];
    for (uint64_t change = below(4); change > 0 && !body.empty(); --change) {
      const size_t at = below(body.size());
      switch (below(6)) {
        case 0:
          body[at] = static_cast<char>(below(256));
          break;
        case 1:
          body.erase(at, 1 + below(8));
          break;
        case 2:
          body.insert(at, values[below(values.size())]);
          break;
        case 3:
          body.insert(at, body.substr(below(body.size()), below(30)));
          break;
        case 4:
          body.resize(at);
          break;
        default: {  // another value after a colon
          const size_t colon = body.find(':', at);
          if (colon == std::string::npos) break;
          const size_t end = std::min(body.find_first_of(",}", colon), body.size());
          body.replace(colon + 1, end - colon - 1, values[below(values.size())]);
        }
      }
    }
    // Mostly the endpoint that the request was written for.
    const uint64_t own = seed < 4 ? 0 : seed < 6 ? 1 : 3;
    const uint64_t which = below(4) == 0 ? below(4) : own;
    try {
      bool pieces = false;
      if (which >= 2) {
        const auto tokens =
            which == 2 ? parse_tokenize(body, context, pieces) : parse_detokenize(body, context);
        for (int32_t t : tokens) REQUIRE((t >= 0 && t < 300));
      } else {
        const ApiCall call =
            which == 0 ? parse_completion(body, context) : parse_chat(body, context);
        REQUIRE(call.choices() >= 1);
        REQUIRE(call.choices() <= 128);
        REQUIRE((call.request.max_tokens >= 0 && call.request.max_tokens <= 200));
        for (size_t c = 0; c < call.choices(); ++c) {
          const Request request = call.choice(c, 1);
          request.sampling.check(300);  // what the engine would refuse was refused here
          REQUIRE((!request.prompt.empty() && request.prompt.size() <= 200));
        }
      }
      ++accepted;
    } catch (const ApiError& error) {
      ++refused;
      const bool fault = error.status == 400 || error.status == 404;
      if (!fault || error.what()[0] == '\0') FAIL(error.status << " for " << body);
      to_json(error).dump(-1, ' ', false, json::error_handler_t::replace);
    } catch (const std::exception& error) {
      FAIL(error.what() << " for " << body);
    }
  }
  WARN(rounds << " inputs: " << accepted << " accepted, " << refused << " refused");
  CHECK(accepted + refused == rounds);
  CHECK(accepted > rounds / 20);
  CHECK(refused > rounds / 20);
}

}  // namespace
}  // namespace degu
