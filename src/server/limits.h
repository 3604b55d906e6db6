// What one client may ask for, and how long anything may take.
#pragma once

#include <cstddef>
#include <cstdint>

namespace degu {

struct ServerLimits {
  // Of a request. Larger values let one request hold more memory and more of the queue.
  size_t body_bytes = size_t{1} << 20;
  int64_t prompts = 128;        // in a list
  int64_t n = 16;               // answers per prompt
  int64_t choices = 128;        // prompts * n
  int64_t max_tokens = 0;       // of an answer; 0: the context
  int64_t stop_strings = 16;    // …
  size_t stop_bytes = 256;      // … each
  int64_t logprobs = 20;        // alternatives per token
  int64_t logit_bias = 1024;    // entries
  int64_t messages = 256;       // of a conversation
  int64_t json_depth = 16;      // nesting
  size_t header_bytes = 65536;  // request line and headers

  // Of the server. Threads are one per connection, so `connections` must exceed `concurrent`: what
  // is left over answers /health and /metrics while all else is busy.
  int concurrent = 256;   // requests being answered; more get 429
  int connections = 512;  // open at once; more get 503

  // Seconds.
  double idle_seconds = 5;       // a kept-alive connection without a request
  double read_seconds = 10;      // between two bytes of a request …
  double receive_seconds = 60;   // … and for all of it
  double write_seconds = 30;     // to take one piece of an answer
  double request_seconds = 600;  // from arrival to the last token
};

}  // namespace degu
