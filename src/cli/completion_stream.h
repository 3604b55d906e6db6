// A streamed /v1/completions answer, read as its bytes come, from a server that nobody vouches for.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace degu {

// Server-sent events out of bytes: the data of each event. Lines may end in \n or \r\n; comments
// and other fields are skipped.
class EventLines {
 public:
  // Takes more bytes. false when an event is longer than 1 MiB: such a server is not listened to.
  bool feed(std::string_view bytes);
  std::optional<std::string> next();  // the data of the next whole event

 private:
  std::string pending_;
  std::string data_;
  bool has_data_ = false;
  size_t read_ = 0;
};

// What one event of a completion says.
struct CompletionPiece {
  bool text = false;           // it carries some text: at least one token
  bool done = false;           // "[DONE]"
  std::string finish;          // finish_reason, when it is told
  int64_t prompt_tokens = -1;  // usage, when it is told
  int64_t answer_tokens = -1;
  std::string error;  // the server's message, or what is wrong with the event
};
CompletionPiece read_completion(const std::string& data);

}  // namespace degu
