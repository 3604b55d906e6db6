#include "server/json_object.h"

#include <fmt/format.h>

#include <algorithm>
#include <limits>

#include "config/yaml_tree.h"
#include "data/utf8.h"

namespace degu {

using nlohmann::json;

json parse_json(std::string_view body, int64_t depth) {
  const auto watch = [depth](int at, json::parse_event_t, json&) {
    if (at > depth) {
      throw invalid_request({}, fmt::format("the body is nested deeper than {}", depth));
    }
    return true;
  };
  try {
    return json::parse(body.begin(), body.end(), watch);
  } catch (const json::exception& error) {
    // The library's text after its own error number, without what it quotes of the body.
    std::string what = error.what();
    if (const size_t at = what.find("] "); at != std::string::npos) what.erase(0, at + 2);
    if (const size_t at = what.find("; last read"); at != std::string::npos) what.resize(at);
    throw invalid_request({}, "the body is not JSON: " + what, "invalid_json");
  }
}

std::string show(const json& value) {
  constexpr size_t kMost = 60;
  if (value.is_structured()) {
    return fmt::format("{} of {}", value.is_array() ? "a list" : "an object", value.size());
  }
  std::string text = value.dump(-1, ' ', false, json::error_handler_t::replace);
  if (text.size() > kMost) text = text.substr(0, utf8_cut(text, kMost)) + "…";
  return text;
}

void require_text(const std::string& param, std::string_view text) {
  if (const size_t at = find_bad_utf8(text); at != std::string::npos) {
    throw invalid_request(
        param, fmt::format("{} has a byte at {} that no text has; send UTF-8 without NUL",
                           param.empty() ? "the text" : param, at));
  }
}

JsonObject::JsonObject(const json& object, std::string path)
    : object_(object), path_(std::move(path)) {
  if (!object.is_object()) {
    std::string name = path_;
    if (!name.empty()) name.pop_back();
    throw invalid_request(name, fmt::format("{} is {}; it must be an object",
                                            name.empty() ? "the body" : name, show(object)));
  }
}

const json* JsonObject::find(const std::string& name) {
  known_.push_back(name);
  const auto found = object_.find(name);
  return found == object_.end() || found->is_null() ? nullptr : &*found;
}

std::optional<int64_t> JsonObject::integer(const std::string& name, int64_t least, int64_t most) {
  const json* value = find(name);
  if (value == nullptr) return {};
  const bool fits =
      value->is_number_integer() &&
      !(value->is_number_unsigned() &&
        value->get<uint64_t>() > static_cast<uint64_t>(std::numeric_limits<int64_t>::max()));
  if (!fits || value->get<int64_t>() < least || value->get<int64_t>() > most) {
    throw invalid_request(path(name), fmt::format("{} is {}; it must be a whole number in [{}, {}]",
                                                  path(name), show(*value), least, most));
  }
  return value->get<int64_t>();
}

std::optional<double> JsonObject::number(const std::string& name, double least, double most) {
  const json* value = find(name);
  if (value == nullptr) return {};
  if (!value->is_number() || !(value->get<double>() >= least && value->get<double>() <= most)) {
    throw invalid_request(path(name), fmt::format("{} is {}; it must be a number in [{}, {}]",
                                                  path(name), show(*value), least, most));
  }
  return value->get<double>();
}

std::optional<bool> JsonObject::boolean(const std::string& name) {
  const json* value = find(name);
  if (value == nullptr) return {};
  if (!value->is_boolean()) {
    throw invalid_request(
        path(name), fmt::format("{} is {}; it must be true or false", path(name), show(*value)));
  }
  return value->get<bool>();
}

std::optional<std::string> JsonObject::text(const std::string& name) {
  const json* value = find(name);
  if (value == nullptr) return {};
  if (!value->is_string()) {
    throw invalid_request(path(name),
                          fmt::format("{} is {}; it must be a text", path(name), show(*value)));
  }
  require_text(path(name), value->get_ref<const std::string&>());
  return value->get<std::string>();
}

void JsonObject::ignore(std::initializer_list<const char*> names) {
  known_.insert(known_.end(), names.begin(), names.end());
}

void JsonObject::refuse_others() const {
  for (const auto& [name, value] : object_.items()) {
    if (std::find(known_.begin(), known_.end(), name) != known_.end()) continue;
    const std::string_view near = internal::nearest_name(name, known_);
    std::string shown = name.substr(0, utf8_cut(name, 60));
    throw invalid_request(
        path(shown),
        fmt::format("there is no field \"{}\"{}", path(shown),
                    near.empty() ? "; leave it out" : fmt::format("; did you mean \"{}\"?", near)),
        "unknown_field");
  }
}

}  // namespace degu
