#include "comm/handshake.h"

#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <cstring>

#include "base/error.h"

namespace degu {
namespace {

using std::chrono::steady_clock;

constexpr std::array<char, 4> kMagic = {'D', 'E', 'G', 'U'};
// A visitor has so long to say who it is.
constexpr std::chrono::seconds kPatience(5);
// More visitors than this at once: the one that came first goes.
constexpr size_t kMostGuests = 256;
// Those who come are heard before more are let in, so that a crowd of ranks turns none of them out.
constexpr size_t kMostAtOnce = 32;
constexpr size_t kMostAddresses = 32;
constexpr size_t kMostAddress = 64;  // characters; IPv6's longest text has 45

struct Header {
  std::array<char, 4> magic = kMagic;
  uint32_t kind = 0;
  uint32_t bytes = 0;
};
static_assert(sizeof(Header) == 12);

std::optional<Header> read_header(std::string_view bytes, size_t most) {
  Header header;
  std::memcpy(&header, bytes.data(), sizeof(header));
  if (header.magic != kMagic || header.kind > static_cast<uint32_t>(Greeting::kReady) ||
      header.bytes > most) {
    return std::nullopt;
  }
  return header;
}

bool parse_number(std::string_view text, int least, int& value) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  return error == std::errc() && end == text.data() + text.size() && value >= least;
}

bool set_field(Card& card, std::string_view key, std::string_view value) {
  if (key == "token") {
    card.token = value;
  } else if (key == "node") {
    card.node = value;
  } else if (key == "rank") {
    return parse_number(value, 0, card.rank);
  } else if (key == "size") {
    return parse_number(value, 1, card.size);
  } else if (key == "port") {
    return parse_number(value, 1, card.port) && card.port < 65536;
  } else if (key == "address") {
    card.addresses.emplace_back(value);
    return card.addresses.size() <= kMostAddresses && value.size() <= kMostAddress;
  } else {
    return false;
  }
  return true;
}

// Takes one card off the front.
std::optional<Card> take_card(std::string_view& text) {
  Card card;
  while (true) {
    const size_t end = text.find('\n');
    if (end == std::string_view::npos) return std::nullopt;
    const std::string_view line = text.substr(0, end);
    text.remove_prefix(end + 1);
    if (line == "end") break;
    const size_t space = line.find(' ');
    if (space == std::string_view::npos) return std::nullopt;
    if (!set_field(card, line.substr(0, space), line.substr(space + 1))) return std::nullopt;
  }
  if (card.token.empty() || card.port == 0 || card.size == 0 || card.rank >= card.size) {
    return std::nullopt;
  }
  return card;
}

}  // namespace

std::string to_text(const Card& card) {
  std::string text = fmt::format("token {}\nnode {}\nrank {}\nsize {}\nport {}\n", card.token,
                                 card.node, card.rank, card.size, card.port);
  const size_t count = std::min(card.addresses.size(), kMostAddresses);
  for (size_t i = 0; i < count; ++i) text += "address " + card.addresses[i] + "\n";
  return text + "end\n";
}

std::optional<Card> parse_card(std::string_view text) {
  std::optional<Card> card = take_card(text);
  return text.empty() ? card : std::nullopt;
}

std::optional<std::vector<Card>> parse_cards(std::string_view text, size_t count) {
  std::vector<Card> cards;
  while (cards.size() < count) {
    std::optional<Card> card = take_card(text);
    if (!card) return std::nullopt;
    cards.push_back(std::move(*card));
  }
  if (!text.empty()) return std::nullopt;
  return cards;
}

bool send_message(const Socket& socket, Greeting kind, std::string_view text, Deadline until) {
  const Header header{.kind = static_cast<uint32_t>(kind),
                      .bytes = static_cast<uint32_t>(text.size())};
  return send_all(socket, std::as_bytes(std::span(&header, 1)), until) &&
         send_all(socket, std::as_bytes(std::span(text)), until);
}

std::optional<Message> receive_message(const Socket& socket, size_t most, Deadline until) {
  std::array<char, sizeof(Header)> bytes{};
  if (!receive_all(socket, std::as_writable_bytes(std::span(bytes)), until)) return std::nullopt;
  const std::optional<Header> header = read_header({bytes.data(), bytes.size()}, most);
  if (!header) return std::nullopt;
  Message message{static_cast<Greeting>(header->kind), std::string(header->bytes, '\0')};
  if (!receive_all(socket, std::as_writable_bytes(std::span(message.text)), until)) {
    return std::nullopt;
  }
  return message;
}

Door::Door() : listener_(listen_on_free_port(port_)) {}

// False when nobody was waiting.
bool Door::let_in() {
  size_t came = 0;
  for (; came < kMostAtOnce; ++came) {
    Socket socket = accept_one(listener_);
    if (!socket) break;
    if (guests_.size() == kMostGuests) guests_.pop_front();
    guests_.push_back({std::move(socket), steady_clock::now() + kPatience, {}});
  }
  return came > 0;
}

// Reads what has come, and never more than the one message: what follows belongs to the connection.
Door::Heard Door::hear(Guest& guest) {
  while (true) {
    size_t wanted = sizeof(Header);
    if (guest.heard.size() >= wanted) {
      const std::optional<Header> header = read_header(guest.heard, kMaxGreeting);
      if (!header) return Heard::kNonsense;
      wanted += header->bytes;
      if (guest.heard.size() == wanted) return Heard::kWhole;
    }
    std::array<char, kMaxGreeting> chunk{};
    const size_t most = std::min(chunk.size(), wanted - guest.heard.size());
    const ssize_t got = ::recv(guest.socket.fd(), chunk.data(), most, 0);
    if (got == 0) return Heard::kNonsense;
    if (got < 0) {
      if (errno == EINTR) continue;
      return errno == EAGAIN || errno == EWOULDBLOCK ? Heard::kMore : Heard::kNonsense;
    }
    guest.heard.append(chunk.data(), static_cast<size_t>(got));
  }
}

std::optional<Door::Visitor> Door::next(const std::string& token, Deadline until) {
  while (true) {
    const Deadline now = steady_clock::now();
    Deadline wake = until;
    std::vector<pollfd> entries = {{listener_.fd(), POLLIN, 0}};
    for (auto guest = guests_.begin(); guest != guests_.end();) {
      const Heard heard = hear(*guest);
      if (heard == Heard::kMore && now < guest->until) {
        wake = std::min(wake, guest->until);
        entries.push_back({guest->socket.fd(), POLLIN, 0});
        ++guest;
        continue;
      }
      Guest done = std::move(*guest);
      guest = guests_.erase(guest);
      if (heard != Heard::kWhole) continue;
      const std::string_view bytes = done.heard;
      const Header header = *read_header(bytes, kMaxGreeting);
      const auto kind = static_cast<Greeting>(header.kind);
      std::optional<Card> card = parse_card(bytes.substr(sizeof(Header)));
      if (!card || (kind != Greeting::kJoin && kind != Greeting::kLink)) continue;
      if (card->token != token) {
        send_message(done.socket, Greeting::kUnknown, "", now);  // few bytes: taken at once
        continue;
      }
      return Visitor{std::move(done.socket), kind, std::move(*card)};
    }
    if (let_in()) continue;
    if (now >= until) return std::nullopt;
    const auto left = std::chrono::ceil<std::chrono::milliseconds>(wake - now).count();
    ::poll(entries.data(), entries.size(), static_cast<int>(std::clamp<int64_t>(left, 0, 1000)));
  }
}

}  // namespace degu
