#include "server/api_request.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <limits>

#include "base/random.h"
#include "server/json_object.h"

namespace degu {
namespace {

using nlohmann::json;

constexpr int64_t kAnyInt = std::numeric_limits<int64_t>::max();

// The name may be left out; another model's is an error that says which is served.
void check_model(JsonObject& fields, const ApiContext& context) {
  const std::optional<std::string> model = fields.text("model");
  if (!model || *model == context.model) return;
  throw ApiError(404, "invalid_request_error", "model_not_found",
                 fmt::format("there is no model {} here; this server has \"{}\"",
                             show(json(*model)), context.model),
                 "model");
}

std::vector<int32_t> encode_text(const std::string& param, const std::string& text, bool bos,
                                 const ApiContext& context) {
  require_text(param, text);
  // Encoding takes time; what no number of the longest tokens fits into the context need not be
  // encoded.
  const std::vector<int32_t>& bytes = context.tokenizer->token_bytes();
  const int64_t longest = bytes.empty() ? 1 : *std::max_element(bytes.begin(), bytes.end());
  if (static_cast<int64_t>(text.size()) > (context.context + 1) * std::max<int64_t>(1, longest)) {
    throw invalid_request(param,
                          fmt::format("{} has {} bytes, more than the context of {} tokens holds",
                                      param, text.size(), context.context),
                          "context_length_exceeded");
  }
  std::vector<int32_t> tokens;
  if (bos && context.tokenizer->bos_id() >= 0) tokens.push_back(context.tokenizer->bos_id());
  const std::vector<int32_t> ids = context.tokenizer->encode(text);
  tokens.insert(tokens.end(), ids.begin(), ids.end());
  return tokens;
}

std::vector<int32_t> read_tokens(const std::string& param, const json& list,
                                 const ApiContext& context) {
  std::vector<int32_t> tokens;
  if (static_cast<int64_t>(list.size()) > context.context) {
    throw invalid_request(
        param,
        fmt::format("{} has {} tokens; the context is {}", param, list.size(), context.context),
        "context_length_exceeded");
  }
  tokens.reserve(list.size());
  for (const json& each : list) {
    const bool whole = each.is_number_integer() && each.is_number_unsigned();
    if (!whole || each.get<uint64_t>() >= static_cast<uint64_t>(context.vocab)) {
      throw invalid_request(param, fmt::format("{} holds {}; tokens are whole numbers in [0, {})",
                                               param, show(each), context.vocab));
    }
    tokens.push_back(each.get<int32_t>());
  }
  return tokens;
}

// A text, a list of texts, a list of tokens, or a list of lists of tokens.
std::vector<std::vector<int32_t>> read_prompts(JsonObject& fields, const ApiContext& context) {
  const json* prompt = fields.find("prompt");
  if (prompt == nullptr) {
    throw invalid_request("prompt", "prompt is missing; give a text or a list of tokens");
  }
  if (prompt->is_string()) {
    return {encode_text("prompt", prompt->get_ref<const std::string&>(), context.bos, context)};
  }
  const bool list = prompt->is_array() && !prompt->empty();
  if (list && prompt->front().is_number()) return {read_tokens("prompt", *prompt, context)};
  if (!list || !(prompt->front().is_string() || prompt->front().is_array())) {
    throw invalid_request("prompt", fmt::format("prompt is {}; it must be a text, a list of texts, "
                                                "a list of tokens or a list of such lists",
                                                show(*prompt)));
  }
  if (static_cast<int64_t>(prompt->size()) > context.limits.prompts) {
    throw invalid_request("prompt", fmt::format("prompt has {} entries; at most {} are served "
                                                "together",
                                                prompt->size(), context.limits.prompts));
  }
  std::vector<std::vector<int32_t>> prompts;
  const bool texts = prompt->front().is_string();
  for (size_t i = 0; i < prompt->size(); ++i) {
    const json& each = (*prompt)[i];
    const std::string param = fmt::format("prompt[{}]", i);
    if (texts ? !each.is_string() : !each.is_array()) {
      throw invalid_request(param, fmt::format("{} is {}; the entries of a list are all texts or "
                                               "all lists of tokens",
                                               param, show(each)));
    }
    prompts.push_back(
        texts ? encode_text(param, each.get_ref<const std::string&>(), context.bos, context)
              : read_tokens(param, each, context));
  }
  return prompts;
}

std::vector<std::string> read_stops(JsonObject& fields, const ApiContext& context) {
  const json* stop = fields.find("stop");
  if (stop == nullptr) return {};
  const json list = stop->is_array() ? *stop : json::array({*stop});
  if (static_cast<int64_t>(list.size()) > context.limits.stop_strings) {
    throw invalid_request("stop", fmt::format("stop has {} strings; at most {} are looked for",
                                              list.size(), context.limits.stop_strings));
  }
  std::vector<std::string> stops;
  for (const json& each : list) {
    if (!each.is_string() || each.get_ref<const std::string&>().empty() ||
        each.get_ref<const std::string&>().size() > context.limits.stop_bytes) {
      throw invalid_request("stop", fmt::format("stop holds {}; it must be a text of 1 to {} bytes",
                                                show(each), context.limits.stop_bytes));
    }
    stops.push_back(each.get<std::string>());
    require_text("stop", stops.back());
  }
  return stops;
}

void read_logit_bias(JsonObject& fields, const ApiContext& context, SamplingParams& sampling) {
  const json* bias = fields.find("logit_bias");
  if (bias == nullptr) return;
  if (!bias->is_object() || static_cast<int64_t>(bias->size()) > context.limits.logit_bias) {
    throw invalid_request("logit_bias",
                          fmt::format("logit_bias is {}; it must be an object from token to number "
                                      "with at most {} entries",
                                      show(*bias), context.limits.logit_bias));
  }
  for (const auto& [name, value] : bias->items()) {
    int64_t token = -1;
    const char* const end = name.data() + name.size();
    const auto parsed = std::from_chars(name.data(), end, token);
    if (parsed.ec != std::errc{} || parsed.ptr != end || token < 0 || token >= context.vocab) {
      throw invalid_request("logit_bias", fmt::format("logit_bias names {}; tokens are whole "
                                                      "numbers in [0, {})",
                                                      show(json(name)), context.vocab));
    }
    if (!value.is_number() || std::abs(value.get<double>()) > 100) {
      throw invalid_request("logit_bias", fmt::format("logit_bias of token {} is {}; it must be a "
                                                      "number in [-100, 100]",
                                                      token, show(value)));
    }
    sampling.logit_bias.emplace_back(static_cast<int32_t>(token), value.get<float>());
  }
}

void read_sampling(JsonObject& fields, const ApiContext& context, SamplingParams& sampling) {
  // Powers of two that are no number a person would give: open ends of intervals.
  constexpr double kAboveZero = 0x1p-60;
  sampling.temperature = fields.number("temperature", 0, 100).value_or(1);
  sampling.top_k = static_cast<int>(fields.integer("top_k", -1, context.vocab).value_or(0));
  sampling.top_k = std::max(sampling.top_k, 0);  // -1 and 0 both say: all
  sampling.top_p = fields.number("top_p", kAboveZero, 1).value_or(1);
  sampling.min_p = fields.number("min_p", 0, 1).value_or(0);
  sampling.repetition_penalty = fields.number("repetition_penalty", kAboveZero, 100).value_or(1);
  sampling.frequency_penalty = fields.number("frequency_penalty", -100, 100).value_or(0);
  sampling.presence_penalty = fields.number("presence_penalty", -100, 100).value_or(0);
  read_logit_bias(fields, context, sampling);
}

void read_stream(JsonObject& fields, ApiCall& call) {
  call.stream = fields.boolean("stream").value_or(false);
  const json* options = fields.find("stream_options");
  if (options == nullptr) return;
  if (!call.stream) {
    throw invalid_request("stream_options", "stream_options goes with \"stream\": true");
  }
  JsonObject inner(*options, "stream_options.");
  call.include_usage = inner.boolean("include_usage").value_or(false);
  inner.ignore({"include_obfuscation"});
  inner.refuse_others();
}

// What both kinds of call have.
void read_common(JsonObject& fields, const ApiContext& context, ApiCall& call) {
  const ServerLimits& limits = context.limits;
  check_model(fields, context);
  call.n = static_cast<int>(fields.integer("n", 1, limits.n).value_or(1));
  if (const auto seed = fields.integer("seed", -kAnyInt - 1, kAnyInt)) {
    call.seed = static_cast<uint64_t>(*seed);
  }
  read_sampling(fields, context, call.request.sampling);
  call.request.stop = read_stops(fields, context);
  call.request.ignore_eos = fields.boolean("ignore_eos").value_or(false);
  call.request.routes = fields.boolean("routes").value_or(false);
  read_stream(fields, call);
  fields.ignore(
      {"user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key"});
}

void check_sizes(const ApiContext& context, const ApiCall& call, const std::string& prompt_param) {
  if (static_cast<int64_t>(call.choices()) > context.limits.choices) {
    throw invalid_request(
        "n", fmt::format("{} prompts times n = {} are {} answers; at most {} are "
                         "given together",
                         call.prompts.size(), call.n, call.choices(), context.limits.choices));
  }
  for (const std::vector<int32_t>& prompt : call.prompts) {
    const auto length = static_cast<int64_t>(prompt.size());
    if (length == 0) {
      throw invalid_request(prompt_param, "the prompt has no token; give at least one");
    }
    if (length >= context.context + (call.request.max_tokens == 0 ? 1 : 0)) {
      throw invalid_request(prompt_param,
                            fmt::format("the prompt has {} tokens; the context of {} leaves no "
                                        "room for an answer",
                                        length, context.context),
                            "context_length_exceeded");
    }
  }
}

int64_t most_tokens(const ApiContext& context) {
  return context.limits.max_tokens > 0 ? std::min(context.limits.max_tokens, context.context)
                                       : context.context;
}

std::string read_content(const json& content, const std::string& param) {
  if (content.is_string()) {
    require_text(param, content.get_ref<const std::string&>());
    return content.get<std::string>();
  }
  if (!content.is_array()) {
    throw invalid_request(param, fmt::format("{} is {}; it must be a text or a list of parts of "
                                             "type text",
                                             param, show(content)));
  }
  std::string text;
  for (size_t i = 0; i < content.size(); ++i) {
    JsonObject part(content[i], fmt::format("{}[{}].", param, i));
    const std::string type = part.text("type").value_or("text");
    if (type != "text") {
      throw invalid_request(part.path("type"), fmt::format("{} is {}; only text is served",
                                                           part.path("type"), show(json(type))));
    }
    text += part.text("text").value_or("");
    part.refuse_others();
  }
  return text;
}

std::vector<ChatMessage> read_messages(JsonObject& fields, const ApiContext& context) {
  const json* list = fields.find("messages");
  if (list == nullptr || !list->is_array() || list->empty()) {
    throw invalid_request("messages", "messages must be a list of at least one message");
  }
  if (static_cast<int64_t>(list->size()) > context.limits.messages) {
    throw invalid_request("messages", fmt::format("messages has {} entries; at most {} are read",
                                                  list->size(), context.limits.messages));
  }
  std::vector<ChatMessage> messages;
  for (size_t i = 0; i < list->size(); ++i) {
    JsonObject message((*list)[i], fmt::format("messages[{}].", i));
    std::string role = message.text("role").value_or("");
    if (role == "developer") role = "system";
    if (role != "system" && role != "user" && role != "assistant") {
      throw invalid_request(message.path("role"),
                            fmt::format("{} is {}; it must be system, developer, user or assistant",
                                        message.path("role"), show(json(role))));
    }
    const json* content = message.find("content");
    if (content == nullptr) {
      throw invalid_request(message.path("content"), message.path("content") + " is missing");
    }
    messages.push_back({std::move(role), read_content(*content, message.path("content"))});
    message.ignore({"name", "refusal", "annotations", "audio", "function_call", "tool_calls"});
    for (const char* name : {"audio", "function_call", "tool_calls"}) {
      if (message.has(name)) {
        throw invalid_request(message.path(name),
                              message.path(name) + " is not served; leave it out");
      }
    }
    message.refuse_others();
  }
  return messages;
}

void read_response_format(JsonObject& fields) {
  const json* format = fields.find("response_format");
  if (format == nullptr) return;
  JsonObject inner(*format, "response_format.");
  if (inner.text("type").value_or("") != "text") {
    throw invalid_request("response_format",
                          "response_format must have the type text; no other is served");
  }
}

}  // namespace

Request ApiCall::choice(size_t index, uint64_t call_seed) const {
  const size_t answer = index % static_cast<size_t>(n);
  Request one = request;
  one.prompt = prompts[index / static_cast<size_t>(n)];
  one.sampling.seed = answer == 0 ? call_seed : RandomStream(call_seed, "choice").bits64(answer);
  return one;
}

ApiCall parse_completion(std::string_view body, const ApiContext& context) {
  const json document = parse_json(body, context.limits.json_depth);
  JsonObject fields(document);
  ApiCall call;
  read_common(fields, context, call);
  call.request.max_tokens = fields.integer("max_tokens", 0, most_tokens(context)).value_or(16);
  call.request.max_tokens = std::min(call.request.max_tokens, most_tokens(context));
  call.request.echo = fields.boolean("echo").value_or(false);
  call.request.sampling.logprobs =
      static_cast<int>(fields.integer("logprobs", 0, context.limits.logprobs).value_or(-1));
  if (fields.integer("best_of", 1, kAnyInt).value_or(call.n) != call.n) {
    throw invalid_request("best_of", "best_of must equal n; candidates are not ranked here");
  }
  if (!fields.text("suffix").value_or("").empty()) {
    throw invalid_request("suffix", "suffix is not served; leave it out");
  }
  call.prompts = read_prompts(fields, context);
  fields.refuse_others();
  check_sizes(context, call, "prompt");
  return call;
}

ApiCall parse_chat(std::string_view body, const ApiContext& context) {
  const json document = parse_json(body, context.limits.json_depth);
  JsonObject fields(document);
  ApiCall call;
  call.chat = true;
  read_common(fields, context, call);
  const int64_t most = most_tokens(context);
  const auto newer = fields.integer("max_completion_tokens", 0, most);
  call.request.max_tokens = fields.integer("max_tokens", 0, most).value_or(newer.value_or(most));
  if (newer) call.request.max_tokens = std::min(call.request.max_tokens, *newer);
  const bool logprobs = fields.boolean("logprobs").value_or(false);
  const auto top = fields.integer("top_logprobs", 0, context.limits.logprobs);
  if (top && !logprobs) {
    throw invalid_request("top_logprobs", "top_logprobs goes with \"logprobs\": true");
  }
  if (logprobs) call.request.sampling.logprobs = static_cast<int>(top.value_or(0));
  read_response_format(fields);
  const ChatTemplate* chat = context.chat;
  if (const auto name = fields.text("chat_template")) {
    const std::vector<ChatTemplate>& known = chat_templates();
    const auto found = std::find_if(known.begin(), known.end(),
                                    [&](const ChatTemplate& t) { return *name == t.name; });
    if (found == known.end()) {
      throw invalid_request("chat_template",
                            fmt::format("there is no chat template {}", show(json(*name))));
    }
    chat = &*found;
  }
  const std::vector<ChatMessage> messages = read_messages(fields, context);
  fields.refuse_others();
  for (const std::string& stop : chat->stops) call.request.stop.push_back(stop);
  call.prompts = {encode_text("messages", chat->render(messages), context.bos, context)};
  check_sizes(context, call, "messages");
  return call;
}

std::vector<int32_t> parse_tokenize(std::string_view body, const ApiContext& context,
                                    bool& with_pieces) {
  const json document = parse_json(body, context.limits.json_depth);
  JsonObject fields(document);
  check_model(fields, context);
  const bool bos = fields.boolean("add_special_tokens").value_or(context.bos);
  with_pieces = fields.boolean("return_token_strs").value_or(false);
  const bool chat = fields.has("messages");
  const std::optional<std::string> text = fields.text("prompt");
  if (chat == text.has_value()) {
    throw invalid_request("prompt", "give either prompt, a text, or messages");
  }
  std::vector<ChatMessage> messages;
  if (chat) messages = read_messages(fields, context);
  fields.refuse_others();
  return chat ? encode_text("messages", context.chat->render(messages), bos, context)
              : encode_text("prompt", *text, bos, context);
}

std::vector<int32_t> parse_detokenize(std::string_view body, const ApiContext& context) {
  const json document = parse_json(body, context.limits.json_depth);
  JsonObject fields(document);
  check_model(fields, context);
  const json* tokens = fields.find("tokens");
  fields.refuse_others();
  if (tokens == nullptr || !tokens->is_array()) {
    throw invalid_request("tokens", "tokens must be a list of tokens");
  }
  return read_tokens("tokens", *tokens, context);
}

}  // namespace degu
