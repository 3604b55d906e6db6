// What processes say to each other before they trust each other, and the door at which they say it.
//
// A message is "DEGU", its kind, its length and so many bytes of text. All of it is outside data:
// lengths are bounded before anything is read, and text that is not a card ends the connection.
#pragma once

#include <cstdint>
#include <list>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "comm/socket.h"

namespace degu {

enum class Greeting : uint32_t {
  kJoin,      // card of a rank; the connection becomes its control connection
  kLink,      // card of a rank; the connection becomes the pair's
  kAccepted,  // to both; text: the rank that accepts
  kRefused,   // text: why the job cannot be; final
  kUnknown,   // another token: look for the job elsewhere
  kTable,     // the cards of all ranks, one after the other
  kReady      // this rank has all its connections; from rank 0: all have
};

// Who a process says it is. As text: one "key value" per line, as in the address file.
struct Card {
  std::string token;
  std::string node;  // equal on processes of one machine
  int rank = 0;
  int size = 0;
  int port = 0;
  std::vector<std::string> addresses;
};

std::string to_text(const Card& card);
// Nothing when the text is not exactly one card.
std::optional<Card> parse_card(std::string_view text);
// Nothing unless the text is `count` cards.
std::optional<std::vector<Card>> parse_cards(std::string_view text, size_t count);

struct Message {
  Greeting kind = Greeting::kUnknown;
  std::string text;
};

inline constexpr size_t kMaxGreeting = 4096;  // of one card, or a reason

bool send_message(const Socket& socket, Greeting kind, std::string_view text, Deadline until);
// Nothing when the connection ends, says what is no message or one of more than `most` bytes, or is
// not done by `until`.
std::optional<Message> receive_message(const Socket& socket, size_t most, Deadline until);

// The door: takes connections, hears each visitor out without waiting for any one of them, and
// turns away those without the token.
class Door {
 public:
  struct Visitor {
    Socket socket;
    Greeting kind = Greeting::kJoin;
    Card card;
  };

  Door();  // CommError
  int port() const { return port_; }
  // The next visitor who presents `token`; nothing when none has come by `until`.
  std::optional<Visitor> next(const std::string& token, Deadline until);

 private:
  struct Guest {
    Socket socket;
    Deadline until;
    std::string heard;
  };
  enum class Heard : uint8_t { kMore, kNonsense, kWhole };

  bool let_in();
  static Heard hear(Guest& guest);

  int port_ = 0;
  Socket listener_;
  std::list<Guest> guests_;
};

}  // namespace degu
