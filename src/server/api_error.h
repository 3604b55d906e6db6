// What a client is told when its request is refused, in OpenAI's JSON form:
//   {"error": {"message", "type", "param", "code"}}
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <stdexcept>
#include <string>

namespace degu {

struct ApiError : std::runtime_error {
  ApiError(int http_status, std::string error_type, std::string error_code,
           const std::string& message, std::string field = {}, int retry_seconds = 0)
      : std::runtime_error(message),
        status(http_status),
        type(std::move(error_type)),
        code(std::move(error_code)),
        param(std::move(field)),
        retry_after(retry_seconds) {}

  int status;
  std::string type;
  std::string code;   // null in the JSON when empty
  std::string param;  // the field at fault; null when empty
  int retry_after;    // seconds for the Retry-After header; 0: none
};

// 400: a field has a value that cannot be served.
ApiError invalid_request(const std::string& param, const std::string& message,
                         const std::string& code = {});
// 429 with Retry-After.
ApiError too_many_requests(const std::string& message, int retry_after);
// 503 with Retry-After.
ApiError unavailable(const std::string& message, int retry_after);

nlohmann::json to_json(const ApiError& error);
// The error that stands for an HTTP status which the transport found (404, 405, 413, …).
ApiError error_of_status(int status);

}  // namespace degu
