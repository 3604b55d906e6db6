#include "server/chat_template.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/error.h"

namespace degu {
namespace {

using Messages = std::span<const ChatMessage>;

// The marks of a turn: what stands before and behind each role's content.
struct Marks {
  std::string_view before;
  std::string_view after;
};

std::string join(Messages messages, const Marks& system, const Marks& user,
                 const Marks& assistant) {
  std::string text;
  for (size_t i = 0; i < messages.size(); ++i) {
    const ChatMessage& m = messages[i];
    const Marks& marks = m.role == "system" ? system : m.role == "user" ? user : assistant;
    text += marks.before;
    text += m.content;
    const bool open = i + 1 == messages.size() && m.role == "assistant";
    if (!open) text += marks.after;
  }
  if (messages.empty() || messages.back().role != "assistant") text += assistant.before;
  return text;
}

// The space after "Assistant:" belongs to the answer's first token, so it is not in the prompt.
std::string plain(Messages m) {
  std::vector<ChatMessage> spaced(m.begin(), m.end());
  for (ChatMessage& each : spaced) {
    if (each.role == "assistant" && !each.content.starts_with(' ')) each.content.insert(0, 1, ' ');
  }
  return join(spaced, {"", "\n\n"}, {"User: ", "\n"}, {"Assistant:", "\n"});
}

std::string concat(Messages m) {
  return join(m, {"", "\n"}, {"", "\n"}, {"", "\n"});
}

std::string chatml(Messages m) {
  return join(m, {"<|im_start|>system\n", "<|im_end|>\n"}, {"<|im_start|>user\n", "<|im_end|>\n"},
              {"<|im_start|>assistant\n", "<|im_end|>\n"});
}

std::string alpaca(Messages m) {
  return join(m, {"", "\n\n"}, {"### Instruction:\n", "\n\n"}, {"### Response:\n", "\n\n"});
}

std::string zephyr(Messages m) {
  return join(m, {"<|system|>\n", "</s>\n"}, {"<|user|>\n", "</s>\n"},
              {"<|assistant|>\n", "</s>\n"});
}

}  // namespace

const std::vector<ChatTemplate>& chat_templates() {
  static const std::vector<ChatTemplate> table = {
      {"plain",
       "\"User: …\" and \"Assistant: …\" on lines of their own; for base models",
       plain,
       {"\nUser:"}},
      {"concat", "the contents alone, a line each; the model goes on", concat, {}},
      {"chatml", "<|im_start|>role … <|im_end|>", chatml, {"<|im_end|>"}},
      {"alpaca", "### Instruction: and ### Response:", alpaca, {"### Instruction:"}},
      {"zephyr", "<|user|> … </s>", zephyr, {"</s>", "<|user|>"}},
  };
  return table;
}

const ChatTemplate& find_chat_template(std::string_view name) {
  std::string names;
  for (const ChatTemplate& each : chat_templates()) {
    if (each.name == name) return each;
    names += names.empty() ? each.name : fmt::format(", {}", each.name);
  }
  throw ConfigError("there is no chat template \"{}\"; there are {}", name, names);
}

}  // namespace degu
