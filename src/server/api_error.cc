#include "server/api_error.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>

namespace degu {

ApiError invalid_request(const std::string& param, const std::string& message,
                         const std::string& code) {
  return {400, "invalid_request_error", code, message, param};
}

ApiError too_many_requests(const std::string& message, int retry_after) {
  return {429, "rate_limit_error", "rate_limit_exceeded", message, {}, retry_after};
}

ApiError unavailable(const std::string& message, int retry_after) {
  return {503, "service_unavailable_error", "unavailable", message, {}, retry_after};
}

nlohmann::json to_json(const ApiError& error) {
  const auto or_null = [](const std::string& text) {
    return text.empty() ? nlohmann::json() : nlohmann::json(text);
  };
  return {{"error",
           {{"message", error.what()},
            {"type", error.type},
            {"param", or_null(error.param)},
            {"code", or_null(error.code)}}}};
}

ApiError error_of_status(int status) {
  const char* kind = "invalid_request_error";
  switch (status) {
    case 400:
      return {status, kind, "bad_request", "this is not an HTTP request that can be understood"};
    case 404:
      return {
          status, kind, "not_found",
          "there is nothing at this address; the endpoints are /v1/completions, "
          "/v1/chat/completions, /v1/models, /tokenize, /detokenize, /health, /ready, /metrics"};
    case 413:
      return {status, kind, "body_too_large", "the body is too large"};
    case 414:
      return {status, kind, "uri_too_long", "the address is too long"};
    case 416:
      return {status, kind, "range_not_satisfiable", "ranges are not served"};
    case 417:
      return {status, kind, "expectation_failed", "the expectation cannot be met"};
    default:
      return {status, status >= 500 ? "server_error" : kind, status >= 500 ? "internal_error" : "",
              fmt::format("the request failed with status {}", status)};
  }
}

}  // namespace degu
