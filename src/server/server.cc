#include "server/server.h"

#include <fmt/format.h>

#include <algorithm>
#include <condition_variable>
#include <ctime>
#include <map>
#include <mutex>
#include <nlohmann/json.hpp>
#include <random>
#include <thread>

#include "base/log.h"
#include "base/random.h"
#include "server/access.h"
#include "server/answer.h"
#include "server/api_request.h"
#include "server/api_response.h"
#include "server/http_connection.h"
#include "server/metrics.h"
#include "server/page.h"

namespace degu {
namespace {

using HttpRequest = httplib::Request;
using HttpResponse = httplib::Response;
using nlohmann::json;

// What a refused client is told to wait: about the time of one answer.
constexpr int kRetrySeconds = 1;
constexpr const char* kEnding = "the server is ending";

struct Endpoint {
  const char* path;
  const char* methods;  // as the Allow header says
  bool open;            // answers without an API key
};
constexpr Endpoint kEndpoints[] = {
    {"/", "GET, HEAD", true},
    {"/health", "GET, HEAD", true},
    {"/ready", "GET, HEAD", true},
    {"/metrics", "GET, HEAD", false},
    {"/v1/models", "GET, HEAD", false},
    {"/v1/completions", "POST", false},
    {"/v1/chat/completions", "POST", false},
    {"/tokenize", "POST", false},
    {"/detokenize", "POST", false},
};

const Endpoint* find_endpoint(const std::string& path) {
  for (const Endpoint& each : kEndpoints) {
    if (path == each.path) return &each;
  }
  return path.starts_with("/v1/models/") ? find_endpoint("/v1/models") : nullptr;
}

bool allows(const Endpoint& endpoint, const std::string& method) {
  return std::string_view(endpoint.methods).find(method) != std::string_view::npos;
}

void answer(HttpResponse& response, int status, const json& body) {
  response.status = status;
  response.set_content(dump_json(body), "application/json");
}

void answer(HttpResponse& response, const ApiError& error) {
  if (error.retry_after > 0) {
    response.set_header("Retry-After", std::to_string(error.retry_after));
  }
  if (error.status == 401) response.set_header("WWW-Authenticate", "Bearer");
  answer(response, error.status, to_json(error));
}

// A refusal before the body was read: what is left of it must not be taken for a request.
void refuse_unread(HttpResponse& response, const ApiError& error) {
  response.set_header("Connection", "close");
  if (HttpConnection* connection = HttpConnection::current()) connection->close_after_answer();
  answer(response, error);
}

// Counts the requests that are being answered.
class Admission {
 public:
  explicit Admission(int most) : most_(most) {}

  // Released when the last copy is gone; null when there are `most` already.
  std::shared_ptr<void> enter() {
    const std::lock_guard lock(mutex_);
    if (inside_ >= most_) return nullptr;
    ++inside_;
    return {this, [](Admission* self) { self->leave(); }};
  }
  int inside() const {
    const std::lock_guard lock(mutex_);
    return inside_;
  }
  bool wait_empty(double seconds) {
    std::unique_lock lock(mutex_);
    return empty_.wait_for(lock, std::chrono::duration<double>(seconds),
                           [&] { return inside_ == 0; });
  }

 private:
  void leave() {
    const std::lock_guard lock(mutex_);
    if (--inside_ == 0) empty_.notify_all();
  }
  int most_;
  mutable std::mutex mutex_;
  std::condition_variable empty_;
  int inside_ = 0;
};

}  // namespace

struct Server::Impl {
  Impl(Engine& e, const Tokenizer& tokenizer, int64_t vocab, int experts_per_token,
       const ServerOptions& o);

  void add_routes();
  httplib::Server::HandlerResponse before_routing(const HttpRequest& request,
                                                  HttpResponse& response);
  void after_routing(const HttpRequest& request, HttpResponse& response);
  void check_access(const HttpRequest& request, const Endpoint* endpoint) const;
  void check_body(const HttpRequest& request) const;
  std::string read_body(const httplib::ContentReader& reader) const;
  void post(const char* path,
            const std::function<void(const std::string& body, HttpResponse&)>& handle);
  void complete(const std::string& body, bool chat, HttpResponse& response);
  void ready(HttpResponse& response) const;
  void models(const HttpRequest& request, HttpResponse& response) const;
  void tokenize(const std::string& body, HttpResponse& response) const;
  void detokenize(const std::string& body, HttpResponse& response) const;
  std::string not_ready() const;  // why; empty when requests are taken

  Engine& engine;
  ServerOptions options;
  ApiContext context;
  int top_k;
  ApiKeys keys;
  std::shared_ptr<ServerMetrics> metrics;
  Admission admission;
  int64_t created = std::time(nullptr);
  RandomStream entropy;
  std::atomic<uint64_t> drawn{0};
  std::atomic<bool> draining{false};
  mutable std::mutex mutex;
  std::string failure;  // guarded by mutex
  HttpServer http;
  std::thread listener;
};

// ---- set-up ----

Server::Impl::Impl(Engine& e, const Tokenizer& tokenizer, int64_t vocab, int experts_per_token,
                   const ServerOptions& o)
    : engine(e),
      options(o),
      top_k(experts_per_token),
      keys(o.api_keys),
      metrics(std::make_shared<ServerMetrics>(
          ServerMetrics::Options{.model = o.model, .price_per_hour = o.price_per_hour})),
      admission(o.limits.concurrent),
      entropy((uint64_t{std::random_device()()} << 32) ^ std::random_device()(), "unseeded"),
      http(options.limits, [](HttpRequest& request) {
        // Answers are sent whole and as they are.
        request.ranges.clear();
        request.headers.erase("Range");
        request.headers.erase("Accept-Encoding");
      }) {
  if (options.limits.connections <= options.limits.concurrent) {
    throw ConfigError(
        "the limit of {} connections must exceed that of {} requests at once, so "
        "that /health is always answered",
        options.limits.connections, options.limits.concurrent);
  }
  context = {.tokenizer = &tokenizer,
             .model = options.model,
             .vocab = std::min<int64_t>(vocab, tokenizer.vocab_size()),
             .context = engine.context(),
             .bos = options.bos,
             .chat = &find_chat_template(options.chat_template),
             .limits = options.limits};
  add_routes();
}

void Server::Impl::add_routes() {
  http.set_pre_routing_handler(
      [this](const HttpRequest& request, HttpResponse& r) { return before_routing(request, r); });
  http.set_post_routing_handler(
      [this](const HttpRequest& request, HttpResponse& r) { after_routing(request, r); });
  http.set_exception_handler([](const HttpRequest&, HttpResponse& r, std::exception_ptr thrown) {
    try {
      std::rethrow_exception(std::move(thrown));
    } catch (const ApiError& error) {
      answer(r, error);
    } catch (const QueueFull& error) {
      answer(r, too_many_requests(error.what(), kRetrySeconds));
    } catch (const EngineClosed&) {  // since the request was let in
      answer(r, unavailable(kEnding, kRetrySeconds));
    } catch (const ConfigError& error) {  // what the engine refuses
      answer(r, invalid_request({}, error.what()));
    } catch (const std::exception& error) {
      log_error("a request failed: {}", error.what());
      answer(r, ApiError(500, "server_error", "internal_error", "the server failed; see its log"));
    }
  });
  // Statuses that the library found on its own.
  http.set_error_handler([](const HttpRequest&, HttpResponse& r) {
    if (!r.body.empty()) return;
    if (HttpConnection* connection = HttpConnection::current()) connection->close_after_answer();
    answer(r, error_of_status(r.status));
  });
  http.Get("/", [](const HttpRequest&, HttpResponse& r) {
    r.set_header("Content-Security-Policy",
                 "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
                 "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
                 "frame-ancestors 'none'");
    const std::string_view page = page_html();
    r.set_content(page.data(), page.size(), "text/html; charset=utf-8");
  });
  http.Get("/health", [](const HttpRequest&, HttpResponse& r) {
    answer(r, 200, {{"status", "ok"}});
  });
  http.Get("/ready", [this](const HttpRequest&, HttpResponse& r) { ready(r); });
  http.Get("/metrics", [this](const HttpRequest&, HttpResponse& r) {
    const ServerMetrics::Gauges gauges{.in_flight = admission.inside(),
                                       .connections = http.connections(),
                                       .ready = not_ready().empty()};
    r.set_content(metrics->text(engine.stats(), gauges),
                  "text/plain; version=0.0.4; charset=utf-8");
  });
  http.Get("/v1/models", [this](const HttpRequest& q, HttpResponse& r) { models(q, r); });
  http.Get("/v1/models/.*", [this](const HttpRequest& q, HttpResponse& r) { models(q, r); });
  post("/v1/completions",
       [this](const std::string& body, HttpResponse& r) { complete(body, false, r); });
  post("/v1/chat/completions",
       [this](const std::string& body, HttpResponse& r) { complete(body, true, r); });
  post("/tokenize", [this](const std::string& body, HttpResponse& r) { tokenize(body, r); });
  post("/detokenize", [this](const std::string& body, HttpResponse& r) { detokenize(body, r); });
}

void Server::Impl::post(const char* path,
                        const std::function<void(const std::string& body, HttpResponse&)>& handle) {
  http.Post(path, [this, handle](const HttpRequest&, HttpResponse& response,
                                 const httplib::ContentReader& reader) {
    std::string body;
    try {
      body = read_body(reader);
    } catch (const ApiError& error) {
      refuse_unread(response, error);
      return;
    }
    handle(body, response);
  });
}

// ---- before and after ----

void Server::Impl::check_access(const HttpRequest& request, const Endpoint* endpoint) const {
  if (is_loopback(options.host) &&
      !host_allowed(request.get_header_value("Host"), options.allowed_hosts)) {
    throw ApiError(403, "permission_error", "host_not_allowed",
                   "this server listens on this machine alone and is asked for by another name; "
                   "start it with --allow-host NAME if that is meant");
  }
  if (endpoint == nullptr) throw error_of_status(404);
  if (!endpoint->open && keys.required() &&
      !keys.accept(request.get_header_value("Authorization"))) {
    throw ApiError(401, "authentication_error", "invalid_api_key",
                   "the API key is missing or wrong; send \"Authorization: Bearer KEY\"");
  }
  if (!allows(*endpoint, request.method)) {
    throw ApiError(405, "invalid_request_error", "method_not_allowed",
                   fmt::format("{} takes {}", endpoint->path, endpoint->methods));
  }
}

void Server::Impl::check_body(const HttpRequest& request) const {
  const std::string length = request.get_header_value("Content-Length");
  const bool chunked = request.has_header("Transfer-Encoding");
  if (length.empty() && !chunked) {
    throw ApiError(411, "invalid_request_error", "length_required",
                   "a body needs Content-Length or Transfer-Encoding: chunked");
  }
  if (!length.empty()) {
    const bool digits = length.find_first_not_of("0123456789") == std::string::npos;
    if (!digits || chunked || request.get_header_value_count("Content-Length") > 1) {
      throw ApiError(400, "invalid_request_error", "bad_length",
                     "the length of the body is not clear; send one Content-Length");
    }
    if (length.size() > 15 || std::stoull(length) > options.limits.body_bytes) {
      throw ApiError(413, "invalid_request_error", "body_too_large",
                     fmt::format("the body has {} bytes; at most {} are read", length.substr(0, 20),
                                 options.limits.body_bytes));
    }
  }
  const std::string type = request.get_header_value("Content-Type");
  if (!type.starts_with("application/json")) {
    throw ApiError(415, "invalid_request_error", "unsupported_media_type",
                   "send the body as Content-Type: application/json");
  }
}

httplib::Server::HandlerResponse Server::Impl::before_routing(const HttpRequest& request,
                                                              HttpResponse& response) {
  using Done = httplib::Server::HandlerResponse;
  response.set_header("X-Content-Type-Options", "nosniff");
  if (!options.cors_origin.empty()) {
    response.set_header("Access-Control-Allow-Origin", options.cors_origin);
    response.set_header("Vary", "Origin");
  }
  const Endpoint* endpoint = find_endpoint(request.path);
  if (request.method == "OPTIONS" && endpoint != nullptr && !options.cors_origin.empty()) {
    response.set_header("Access-Control-Allow-Methods", endpoint->methods);
    response.set_header("Access-Control-Allow-Headers", "Authorization, Content-Type");
    response.set_header("Access-Control-Max-Age", "600");
    response.status = 204;
    return Done::Handled;
  }
  try {
    check_access(request, endpoint);
    if (request.method == "POST") check_body(request);
  } catch (const ApiError& error) {
    if (error.status == 405) response.set_header("Allow", endpoint->methods);
    refuse_unread(response, error);
    return Done::Handled;
  }
  return Done::Unhandled;
}

void Server::Impl::after_routing(const HttpRequest& request, HttpResponse& response) {
  const Endpoint* endpoint = find_endpoint(request.path);
  metrics->count_http(endpoint == nullptr ? "other" : endpoint->path, response.status);
}

std::string Server::Impl::read_body(const httplib::ContentReader& reader) const {
  std::string body;
  bool too_large = false;
  // Counted after decompression.
  const bool whole = reader([&](const char* data, size_t size) {
    too_large = body.size() + size > options.limits.body_bytes;
    if (!too_large) body.append(data, size);
    return !too_large;
  });
  if (too_large) {
    throw ApiError(413, "invalid_request_error", "body_too_large",
                   fmt::format("the body has more than {} bytes", options.limits.body_bytes));
  }
  if (!whole) {
    throw ApiError(400, "invalid_request_error", "bad_body",
                   "the body did not arrive whole, or in time");
  }
  return body;
}

// ---- endpoints ----

std::string Server::Impl::not_ready() const {
  {
    const std::lock_guard lock(mutex);
    if (!failure.empty()) return failure;
  }
  if (draining) return kEnding;
  return engine.stats().failure;
}

void Server::Impl::ready(HttpResponse& response) const {
  const std::string reason = not_ready();
  if (reason.empty()) {
    answer(response, 200, {{"status", "ready"}});
  } else {
    answer(response, unavailable(reason, kRetrySeconds));
  }
}

void Server::Impl::models(const HttpRequest& request, HttpResponse& response) const {
  const json model = {{"id", options.model},
                      {"object", "model"},
                      {"created", created},
                      {"owned_by", "degu"},
                      {"max_model_len", context.context}};
  if (request.path == "/v1/models") {
    answer(response, 200, {{"object", "list"}, {"data", json::array({model})}});
    return;
  }
  const std::string asked = request.path.substr(std::string_view("/v1/models/").size());
  if (asked != options.model) {
    throw ApiError(
        404, "invalid_request_error", "model_not_found",
        fmt::format("there is no such model here; this server has \"{}\"", options.model), "model");
  }
  answer(response, 200, model);
}

void Server::Impl::complete(const std::string& body, bool chat, HttpResponse& response) {
  const std::shared_ptr<void> place = admission.enter();
  if (const std::string reason = not_ready(); !reason.empty()) {
    throw unavailable(reason, kRetrySeconds);
  }
  if (!place) {
    throw too_many_requests(fmt::format("{} requests are being answered already; try again later",
                                        options.limits.concurrent),
                            kRetrySeconds);
  }
  HttpConnection* client = HttpConnection::current();
  client->hold(place);
  const std::string id =
      fmt::format("{}-{:016x}", chat ? "chatcmpl" : "cmpl", entropy.bits64(~drawn.fetch_add(1)));
  ApiCall call = chat ? parse_chat(body, context) : parse_completion(body, context);
  const uint64_t seed = call.seed.value_or(entropy.bits64(drawn++));
  const bool stream = call.stream;
  auto said = std::make_shared<Answer>(engine, metrics, context, top_k, std::move(call), seed, id);
  if (!stream) {
    response.status = 200;
    response.set_content(said->whole(*client), "application/json");
    return;
  }
  response.set_header("Cache-Control", "no-cache");
  response.set_header("X-Accel-Buffering", "no");  // proxies pass pieces on at once
  response.set_chunked_content_provider("text/event-stream",
                                        [said, client](size_t, httplib::DataSink& sink) {
                                          const auto send = [&sink](std::string_view text) {
                                            return sink.write(text.data(), text.size());
                                          };
                                          if (!said->stream(*client, send)) return false;
                                          sink.done();
                                          return true;
                                        });
}

void Server::Impl::tokenize(const std::string& body, HttpResponse& response) const {
  bool with_pieces = false;
  const std::vector<int32_t> tokens = parse_tokenize(body, context, with_pieces);
  json out = {{"count", tokens.size()}, {"max_model_len", context.context}, {"tokens", tokens}};
  if (with_pieces) {
    out["token_strs"] = json::array();
    for (int32_t token : tokens) {
      out["token_strs"].push_back(token_string(*context.tokenizer, token));
    }
  }
  answer(response, 200, out);
}

void Server::Impl::detokenize(const std::string& body, HttpResponse& response) const {
  const std::vector<int32_t> tokens = parse_detokenize(body, context);
  answer(response, 200, {{"prompt", context.tokenizer->decode(tokens)}});
}

// ---- the outside ----

Server::Server(Engine& engine, const Tokenizer& tokenizer, int64_t vocab, int top_k,
               const ServerOptions& options)
    : impl_(std::make_unique<Impl>(engine, tokenizer, vocab, top_k, options)) {}

Server::~Server() {
  stop();
}

int Server::start() {
  const int port = impl_->http.bind(impl_->options.host, impl_->options.port);
  impl_->listener = std::thread([impl = impl_.get()] {
    impl->http.listen_after_bind();
    if (impl->draining) return;
    {
      const std::lock_guard lock(impl->mutex);
      impl->failure = "connections can no longer be accepted";
    }
    impl->engine.request_stop();
  });
  // Until then `stop` would find nothing to stop.
  while (!impl_->http.is_running() && failure().empty()) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  return port;
}

bool Server::drain(double seconds) {
  impl_->draining = true;
  return impl_->admission.wait_empty(seconds);
}

void Server::finish(double seconds) {
  impl_->admission.wait_empty(seconds);
}

void Server::stop() {
  if (!impl_->listener.joinable()) return;
  impl_->draining = true;
  impl_->http.close_connections();
  impl_->http.stop();
  impl_->listener.join();
}

void Server::fail(const std::string& reason) {
  const std::lock_guard lock(impl_->mutex);
  impl_->failure = reason;
}

std::string Server::failure() const {
  const std::lock_guard lock(impl_->mutex);
  return impl_->failure;
}

int Server::in_flight() const {
  return impl_->admission.inside();
}

}  // namespace degu
