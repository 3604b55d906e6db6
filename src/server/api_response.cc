#include "server/api_response.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "data/utf8.h"

namespace degu {
namespace {

using nlohmann::json;

// What a number below every probability is told as: JSON has no infinity.
constexpr double kLeastLogprob = -9999.0;

json logprob_json(std::optional<float> logprob) {
  if (!logprob) return {};
  return std::isfinite(*logprob) ? std::max<double>(*logprob, kLeastLogprob) : kLeastLogprob;
}

json bytes_of(const std::string& text) {
  json bytes = json::array();
  for (char c : text) bytes.push_back(static_cast<unsigned char>(c));
  return bytes;
}

int64_t count_characters(std::string_view text) {
  return std::count_if(text.begin(), text.end(),
                       [](char c) { return (static_cast<unsigned char>(c) & 0xC0u) != 0x80u; });
}

json finish_json(const std::optional<FinishReason>& finish) {
  if (!finish) return {};
  return enum_names(FinishReason{})[static_cast<size_t>(*finish)];
}

std::string as_event(const json& value) {
  return "data: " + dump_json(value) + "\n\n";
}

}  // namespace

std::string dump_json(const json& value) {
  return value.dump(-1, ' ', false, json::error_handler_t::replace);
}

std::string token_string(const Tokenizer& tokenizer, int32_t token) {
  if (token >= tokenizer.vocab_size()) return fmt::format("<token {}>", token);
  std::string text = tokenizer.token_text(token);
  if (text.empty()) return tokenizer.piece(token);
  if (find_bad_utf8(text) == std::string::npos) return text;
  std::string escaped = "bytes:";
  for (char c : text) escaped += fmt::format("\\x{:02x}", static_cast<unsigned char>(c));
  return escaped;
}

ResponseWriter::ResponseWriter(const ApiCall& call, const Tokenizer& tokenizer, std::string model,
                               std::string id, int64_t created, int top_k)
    : call_(call),
      tokenizer_(tokenizer),
      model_(std::move(model)),
      id_(std::move(id)),
      created_(created),
      top_k_(top_k),
      choices_(call.choices()),
      open_(call.choices()) {}

void ResponseWriter::note(size_t choice, const Event& event) {
  Choice& c = choices_[choice];
  c.usage = event.usage;
  if (event.finish) {
    c.finish = event.finish;
    --open_;
  }
}

// ---- parts ----

json ResponseWriter::head(bool piece) const {
  const char* object = "text_completion";
  if (call_.chat) object = piece ? "chat.completion.chunk" : "chat.completion";
  return {{"id", id_}, {"object", object}, {"created", created_}, {"model", model_}};
}

json ResponseWriter::usage() const {
  int64_t prompt = 0;
  int64_t cached = 0;
  int64_t completion = 0;
  for (size_t i = 0; i < choices_.size(); ++i) {
    const Usage& u = choices_[i].usage;
    completion += u.completion_tokens;
    if (i % static_cast<size_t>(call_.n) != 0) continue;  // a prompt counts once
    prompt += u.prompt_tokens;
    cached += u.cached_tokens;
  }
  return {{"prompt_tokens", prompt},
          {"completion_tokens", completion},
          {"total_tokens", prompt + completion},
          {"prompt_tokens_details", {{"cached_tokens", cached}}}};
}

json ResponseWriter::completion_logprobs(std::span<const TokenRecord> tokens,
                                         int64_t first_character) const {
  json names = json::array();
  json logprobs = json::array();
  json tops = json::array();
  json offsets = json::array();
  int64_t offset = first_character;
  for (const TokenRecord& t : tokens) {
    const std::string name = token_string(tokenizer_, t.token);
    names.push_back(name);
    logprobs.push_back(logprob_json(t.logprob));
    offsets.push_back(offset);
    offset += count_characters(t.text);
    if (!t.logprob) {
      tops.push_back(nullptr);
      continue;
    }
    // The token itself is always among them. A name that two tokens share keeps the likelier one.
    json top = json::object();
    for (const TokenLogprob& each : t.top) {
      top.emplace(token_string(tokenizer_, each.token), logprob_json(each.logprob));
    }
    top.emplace(name, logprob_json(t.logprob));
    tops.push_back(std::move(top));
  }
  return {{"tokens", names},
          {"token_logprobs", logprobs},
          {"top_logprobs", tops},
          {"text_offset", offsets}};
}

json ResponseWriter::chat_logprobs(std::span<const TokenRecord> tokens) const {
  const auto entry = [&](int32_t token, std::optional<float> logprob) {
    const std::string text =
        token < tokenizer_.vocab_size() ? tokenizer_.token_text(token) : std::string();
    return json{{"token", token_string(tokenizer_, token)},
                {"logprob", logprob_json(logprob)},
                {"bytes", bytes_of(text)}};
  };
  json content = json::array();
  for (const TokenRecord& t : tokens) {
    json one = entry(t.token, t.logprob);
    one["top_logprobs"] = json::array();
    for (const TokenLogprob& each : t.top) {
      one["top_logprobs"].push_back(entry(each.token, each.logprob));
    }
    content.push_back(std::move(one));
  }
  return {{"content", content}, {"refusal", nullptr}};
}

json ResponseWriter::routes(std::span<const TokenRecord> tokens) const {
  json all = json::array();
  for (const TokenRecord& t : tokens) {
    json layers = json::array();
    for (size_t at = 0; at < t.experts_LK.size(); at += static_cast<size_t>(top_k_)) {
      const auto from = t.experts_LK.begin() + static_cast<std::ptrdiff_t>(at);
      layers.push_back(std::vector<int32_t>(from, from + top_k_));
    }
    all.push_back({{"token", t.token}, {"text", t.text}, {"experts", std::move(layers)}});
  }
  return all;
}

json ResponseWriter::choice_json(size_t choice, const std::string& text,
                                 std::span<const TokenRecord> tokens, int64_t first_character,
                                 bool piece) const {
  const Choice& c = choices_[choice];
  json out = {{"index", choice}, {"finish_reason", finish_json(c.finish)}, {"logprobs", nullptr}};
  if (call_.request.sampling.logprobs >= 0) {
    out["logprobs"] =
        call_.chat ? chat_logprobs(tokens) : completion_logprobs(tokens, first_character);
  }
  if (call_.request.routes) out["routes"] = routes(tokens);
  if (!call_.chat) {
    out["text"] = text;
  } else if (!piece) {
    out["message"] = {{"role", "assistant"}, {"content", text}, {"refusal", nullptr}};
  } else {
    out["delta"] = text.empty() ? json::object() : json{{"content", text}};
  }
  return out;
}

// ---- streaming ----

std::string ResponseWriter::begin() {
  if (!call_.chat) return {};
  std::string out;
  for (size_t i = 0; i < choices_.size(); ++i) {
    json piece = head(true);
    const json choice = {{"index", i},
                         {"delta", {{"role", "assistant"}, {"content", ""}}},
                         {"logprobs", nullptr},
                         {"finish_reason", nullptr}};
    piece["choices"] = json::array({choice});
    if (call_.include_usage) piece["usage"] = nullptr;
    out += as_event(piece);
  }
  return out;
}

std::string ResponseWriter::piece(size_t choice, const Event& event) {
  note(choice, event);
  Choice& c = choices_[choice];
  const std::string text = event.text();
  json piece = head(true);
  piece["choices"] = json::array({choice_json(choice, text, event.tokens, c.characters, true)});
  if (call_.include_usage) piece["usage"] = nullptr;
  c.characters += count_characters(text);
  return as_event(piece);
}

std::string ResponseWriter::end() {
  std::string out;
  if (call_.include_usage) {
    json piece = head(true);
    piece["choices"] = json::array();
    piece["usage"] = usage();
    out = as_event(piece);
  }
  return out + "data: [DONE]\n\n";
}

std::string ResponseWriter::failure(const json& error) {
  return as_event(error) + "data: [DONE]\n\n";
}

// ---- at once ----

void ResponseWriter::add(size_t choice, Event&& event) {
  note(choice, event);
  Choice& c = choices_[choice];
  c.text += event.text();
  std::move(event.tokens.begin(), event.tokens.end(), std::back_inserter(c.tokens));
}

std::string ResponseWriter::whole() const {
  json out = head(false);
  out["choices"] = json::array();
  for (size_t i = 0; i < choices_.size(); ++i) {
    out["choices"].push_back(choice_json(i, choices_[i].text, choices_[i].tokens, 0, false));
  }
  out["usage"] = usage();
  return dump_json(out);
}

}  // namespace degu
