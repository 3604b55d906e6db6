// The little HTTP that `degu bench serve` speaks; the only file behind it that knows the library.
#pragma once

#include <functional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace degu {

// "http://host:8000/base" in parts. ConfigError when it is not such an address, or when it is https
// and the library cannot.
struct HttpAddress {
  std::string server;  // "http://host:8000"
  std::string base;    // "/base", without a slash at the end; ""
};
HttpAddress parse_http_address(const std::string& url);

struct HttpOptions {
  double connect_seconds = 10;
  double silence_seconds = 120;  // longest wait for the next byte
  std::string api_key;           // sent as a bearer token; "": none
};

struct HttpReply {
  int status = 0;     // 0: no answer
  std::string body;   // of `get`, at most 16 MiB; of `post_stream`, when the status is not 200
  std::string error;  // why there is no whole answer; "" when there is
};

// Threads: free functions; each call has a connection of its own.
HttpReply http_get(const HttpAddress& address, const std::string& path, const HttpOptions& options);
// `on_data` gets the pieces of a 200 answer as they come; false ends the connection.
HttpReply http_post_stream(const HttpAddress& address, const std::string& path,
                           const std::string& json, const HttpOptions& options,
                           const std::function<bool(std::string_view)>& on_data);

}  // namespace degu
