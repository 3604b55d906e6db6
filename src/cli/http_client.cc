#include "cli/http_client.h"

#include <httplib.h>

#include <cmath>

#include "base/error.h"

namespace degu {
namespace {

constexpr size_t kMostBody = size_t{16} << 20;

void set_up(httplib::Client& client, const HttpOptions& options) {
  const auto seconds = [](double s) { return static_cast<time_t>(std::floor(s)); };
  const auto micros = [](double s) {
    return static_cast<time_t>(std::lround((s - std::floor(s)) * 1e6));
  };
  client.set_connection_timeout(seconds(options.connect_seconds), micros(options.connect_seconds));
  client.set_read_timeout(seconds(options.silence_seconds), micros(options.silence_seconds));
  client.set_write_timeout(seconds(options.connect_seconds), micros(options.connect_seconds));
  client.set_tcp_nodelay(true);
  client.set_keep_alive(false);
  client.set_follow_location(false);
}

httplib::Headers headers_of(const HttpOptions& options) {
  httplib::Headers headers;
  if (!options.api_key.empty()) headers.emplace("Authorization", "Bearer " + options.api_key);
  return headers;
}

// One request; what the library throws for odd answers is a failed one.
HttpReply exchange(const HttpAddress& address, httplib::Request request, const HttpOptions& options,
                   const std::function<bool(std::string_view)>& on_data) {
  HttpReply reply;
  try {
    httplib::Client client(address.server);
    if (!client.is_valid()) {
      reply.error = "not an address that can be connected to";
      return reply;
    }
    set_up(client, options);
    request.response_handler = [&](const httplib::Response& response) {
      reply.status = response.status;
      return true;
    };
    bool stopped = false;
    request.content_receiver = [&](const char* data, size_t size, uint64_t, uint64_t) {
      if (reply.status == 200 && on_data) {
        stopped = !on_data({data, size});
        return !stopped;
      }
      if (reply.body.size() + size > kMostBody) return false;
      reply.body.append(data, size);
      return true;
    };
    const httplib::Result result = client.send(request);
    if (!result && !stopped) reply.error = httplib::to_string(result.error());
  } catch (const std::exception& error) {
    reply.error = error.what();
  }
  return reply;
}

}  // namespace

HttpAddress parse_http_address(const std::string& url) {
  const size_t scheme_end = url.find("://");
  const std::string scheme = scheme_end == std::string::npos ? "" : url.substr(0, scheme_end);
  if (scheme != "http" && scheme != "https") {
    throw ConfigError("{}: not an address; write http://HOST:PORT", url);
  }
  const size_t host = scheme_end + 3;
  const size_t path = std::min(url.find('/', host), url.size());
  if (path == host) throw ConfigError("{}: there is no host in it; write http://HOST:PORT", url);
  HttpAddress address{.server = url.substr(0, path), .base = url.substr(path)};
  while (!address.base.empty() && address.base.back() == '/') address.base.pop_back();
  return address;
}

HttpReply http_get(const HttpAddress& address, const std::string& path,
                   const HttpOptions& options) {
  httplib::Request request;
  request.method = "GET";
  request.path = address.base + path;
  request.headers = headers_of(options);
  return exchange(address, std::move(request), options, nullptr);
}

HttpReply http_post_stream(const HttpAddress& address, const std::string& path,
                           const std::string& json, const HttpOptions& options,
                           const std::function<bool(std::string_view)>& on_data) {
  httplib::Request request;
  request.method = "POST";
  request.path = address.base + path;
  request.headers = headers_of(options);
  request.headers.emplace("Content-Type", "application/json");
  request.headers.emplace("Accept", "text/event-stream");
  request.body = json;
  return exchange(address, std::move(request), options, on_data);
}

}  // namespace degu
