// From the engine's events to the JSON that a client reads: pure, without HTTP.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "data/tokenizer.h"
#include "infer/request.h"
#include "server/api_request.h"

namespace degu {

// A token in a log-probability record: its text, the piece's name for control tokens, and
// "bytes:\xe2…" when its bytes alone are no characters. Distinct for distinct bytes.
std::string token_string(const Tokenizer& tokenizer, int32_t token);

// Puts the choices of one call together. Belongs to one thread.
class ResponseWriter {
 public:
  // `top_k`: experts per token and layer, to split routes by. References outlive the writer.
  ResponseWriter(const ApiCall& call, const Tokenizer& tokenizer, std::string model, std::string id,
                 int64_t created, int top_k);

  // Streaming: the pieces of the stream ("data: …\n\n") that an event makes.
  std::string begin();
  std::string piece(size_t choice, const Event& event);
  std::string end();  // the usage if it is wanted, and the end mark
  static std::string failure(const nlohmann::json& error);

  // At once: all events, then the whole.
  void add(size_t choice, Event&& event);
  std::string whole() const;

  size_t open() const { return open_; }  // choices without a last event

 private:
  struct Choice {
    std::string text;
    std::vector<TokenRecord> tokens;
    int64_t characters = 0;  // told in pieces
    std::optional<FinishReason> finish;
    Usage usage;
  };
  void note(size_t choice, const Event& event);
  nlohmann::json head(bool piece) const;
  nlohmann::json usage() const;
  nlohmann::json choice_json(size_t choice, const std::string& text,
                             std::span<const TokenRecord> tokens, int64_t first_character,
                             bool piece) const;
  nlohmann::json completion_logprobs(std::span<const TokenRecord> tokens,
                                     int64_t first_character) const;
  nlohmann::json chat_logprobs(std::span<const TokenRecord> tokens) const;
  nlohmann::json routes(std::span<const TokenRecord> tokens) const;

  const ApiCall& call_;
  const Tokenizer& tokenizer_;
  std::string model_;
  std::string id_;
  int64_t created_;
  int top_k_;
  std::vector<Choice> choices_;
  size_t open_;
};

// JSON text in which bytes that are no characters became U+FFFD.
std::string dump_json(const nlohmann::json& value);

}  // namespace degu
