// The HTTP server over an engine (docs/server.md).
//
// Threads: one accepts, one per connection serves; the engine's own thread computes and hands over
// events. `start`, `drain`, `fail` and `stop` may be called from any thread.
//
// Order of an orderly end: `drain` (new requests get 503, /ready fails, what was accepted is
// answered), then the engine's request_stop (what did not end in time ends as cancelled), `finish`
// (waits for the last bytes to be written), `stop`.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "data/tokenizer.h"
#include "infer/engine.h"
#include "server/limits.h"

namespace degu {

struct ServerOptions {
  // Where to listen.
  std::string host = "127.0.0.1";
  int port = 8000;  // 0: any free one

  // What clients see.
  std::string model = "degu";
  std::string chat_template = "plain";
  bool bos = true;
  double price_per_hour = 0;

  // Who may ask.
  std::vector<std::string> api_keys;       // any of them as "Authorization: Bearer …"; none: open
  std::vector<std::string> allowed_hosts;  // further names in the Host header (loopback only)
  std::string cors_origin;                 // "*", one origin, or empty: no other page may ask

  ServerLimits limits;
};

class Server {
 public:
  // References outlive the server. `top_k`: experts per token. ConfigError for options that do not
  // fit together.
  Server(Engine& engine, const Tokenizer& tokenizer, int64_t vocab, int top_k,
         const ServerOptions& options);
  ~Server();
  Server(const Server&) = delete;
  Server& operator=(const Server&) = delete;

  // Binds and listens; returns the port. IoError when it cannot.
  int start();
  // Takes no more requests; true when all accepted ones were answered within `seconds`.
  bool drain(double seconds);
  // Waits for answers that are being written, as long as their clients take them.
  void finish(double seconds);
  void stop();
  // /ready fails with this from now on.
  void fail(const std::string& reason);
  std::string failure() const;  // empty while all is well
  int in_flight() const;        // requests accepted and not answered completely

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace degu
