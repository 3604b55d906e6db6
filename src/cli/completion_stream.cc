#include "cli/completion_stream.h"

#include <nlohmann/json.hpp>
#include <utility>

namespace degu {
namespace {

using Json = nlohmann::json;

constexpr size_t kMostEvent = size_t{1} << 20;

// A member of an object; null for anything else.
const Json& member(const Json& json, const char* key) {
  static const Json nothing;
  if (!json.is_object()) return nothing;
  const auto found = json.find(key);
  return found == json.end() ? nothing : *found;
}

int64_t count_of(const Json& json, const char* key) {
  const Json& value = member(json, key);
  // Counts beyond any answer are as good as none.
  if (!value.is_number_integer()) return -1;
  if (value.is_number_unsigned() && value.get<uint64_t>() > (uint64_t{1} << 40)) return -1;
  return value.get<int64_t>();
}

}  // namespace

bool EventLines::feed(std::string_view bytes) {
  pending_.erase(0, read_);
  read_ = 0;
  pending_.append(bytes);
  return pending_.size() + data_.size() <= kMostEvent + bytes.size();
}

std::optional<std::string> EventLines::next() {
  while (true) {
    const size_t end = pending_.find('\n', read_);
    if (end == std::string::npos) return std::nullopt;
    std::string_view line = std::string_view(pending_).substr(read_, end - read_);
    read_ = end + 1;
    if (!line.empty() && line.back() == '\r') line.remove_suffix(1);
    if (line.empty()) {
      if (!has_data_) continue;
      has_data_ = false;
      return std::exchange(data_, {});
    }
    if (!line.starts_with("data:")) continue;
    line.remove_prefix(5);
    if (line.starts_with(' ')) line.remove_prefix(1);
    if (has_data_) data_ += '\n';
    has_data_ = true;
    data_ += line;
  }
}

CompletionPiece read_completion(const std::string& data) {
  CompletionPiece piece;
  if (data == "[DONE]") {
    piece.done = true;
    return piece;
  }
  const Json json = Json::parse(data, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object()) {
    piece.error = "an event that is no JSON object";
    return piece;
  }
  if (const Json& error = member(json, "error"); !error.is_null()) {
    const Json& message = member(error, "message");
    piece.error = message.is_string() ? message.get<std::string>() : "an error without a message";
    return piece;
  }
  const Json& usage = member(json, "usage");
  piece.prompt_tokens = count_of(usage, "prompt_tokens");
  piece.answer_tokens = count_of(usage, "completion_tokens");
  const Json& choices = member(json, "choices");
  if (!choices.is_array()) {
    if (usage.is_null()) piece.error = "an event without choices";
    return piece;
  }
  for (const Json& choice : choices) {
    const Json& text = member(choice, "text");
    const Json& content = member(member(choice, "delta"), "content");
    for (const Json* each : {&text, &content}) {
      piece.text =
          piece.text || (each->is_string() && !each->get_ref<const std::string&>().empty());
    }
    const Json& finish = member(choice, "finish_reason");
    if (finish.is_string()) piece.finish = finish.get<std::string>();
  }
  return piece;
}

}  // namespace degu
