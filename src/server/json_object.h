// Reads the fields of a JSON object, checking types and ranges; what nobody asked for is an error.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "server/api_error.h"

namespace degu {

// `body` as JSON. ApiError 400 when it is not JSON, not UTF-8, or nested deeper than `depth`.
nlohmann::json parse_json(std::string_view body, int64_t depth);

// Every getter throws ApiError 400 with the field, its value and what it may be. A field that is
// null counts as absent.
class JsonObject {
 public:
  // `path` stands before field names in messages ("messages[2]."). `object` must outlive this.
  explicit JsonObject(const nlohmann::json& object, std::string path = {});

  const nlohmann::json* find(const std::string& name);
  bool has(const std::string& name) { return find(name) != nullptr; }
  std::optional<int64_t> integer(const std::string& name, int64_t least, int64_t most);
  std::optional<double> number(const std::string& name, double least, double most);
  std::optional<bool> boolean(const std::string& name);
  std::optional<std::string> text(const std::string& name);

  // These may stand here and change nothing.
  void ignore(std::initializer_list<const char*> names);
  // ApiError when there are fields that no call above has named.
  void refuse_others() const;

  std::string path(const std::string& name) const { return path_ + name; }

 private:
  const nlohmann::json& object_;
  std::string path_;
  std::vector<std::string> known_;
};

// A JSON value in a message: cut when it is long.
std::string show(const nlohmann::json& value);
// ApiError 400 naming `param` when `text` has bytes that no text has.
void require_text(const std::string& param, std::string_view text);

}  // namespace degu
