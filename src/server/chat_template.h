// How a conversation becomes one text for the model to go on from.
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace degu {

struct ChatMessage {
  std::string role;  // system, user or assistant
  std::string content;
};

struct ChatTemplate {
  const char* name;
  const char* summary;
  // Ends where the assistant's answer begins. When the last message is the assistant's, the text
  // ends with it, so that the answer goes on from there.
  std::string (*render)(std::span<const ChatMessage> messages);
  std::vector<std::string> stops;  // where the model would begin the next turn
};

const std::vector<ChatTemplate>& chat_templates();
// ConfigError naming those that exist.
const ChatTemplate& find_chat_template(std::string_view name);

}  // namespace degu
