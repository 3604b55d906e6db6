#include "base/progress.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <utility>

#include "base/log.h"

namespace degu {
namespace {

constexpr double kRedrawSeconds = 0.1;
constexpr double kLogSeconds = 10.0;
constexpr int kBarWidth = 24;

}  // namespace

std::string format_amount(int64_t amount, Progress::Unit unit) {
  if (unit == Progress::Unit::kCount) {
    std::string digits = std::to_string(amount);
    for (auto at = static_cast<int64_t>(digits.size()) - 3; at > (amount < 0 ? 1 : 0); at -= 3) {
      digits.insert(static_cast<size_t>(at), ",");
    }
    return digits;
  }
  const auto bytes = static_cast<double>(amount);
  if (bytes < 1e3) return fmt::format("{} B", amount);
  if (bytes < 1e6) return fmt::format("{:.1f} kB", bytes / 1e3);
  if (bytes < 1e9) return fmt::format("{:.1f} MB", bytes / 1e6);
  return fmt::format("{:.2f} GB", bytes / 1e9);
}

std::string format_duration(double seconds) {
  const auto whole = static_cast<int64_t>(std::llround(std::max(seconds, 0.0)));
  if (whole < 60) return fmt::format("{} s", whole);
  if (whole < 3600) return fmt::format("{} min {} s", whole / 60, whole % 60);
  return fmt::format("{} h {} min", whole / 3600, whole % 3600 / 60);
}

Progress::Progress(std::string title, int64_t total, Unit unit, int64_t done)
    : title_(std::move(title)),
      total_(total),
      unit_(unit),
      terminal_(::isatty(STDERR_FILENO) == 1),
      before_(done),
      done_(done) {
  next_draw_ = terminal_ ? 0.0 : kLogSeconds;
}

Progress::~Progress() {
  clear();
}

void Progress::clear() {
  if (!drawn_) return;
  std::fputs("\r\x1b[K", stderr);
  std::fflush(stderr);
  drawn_ = false;
}

std::string Progress::line(double seconds, std::string_view note) const {
  const double rate = seconds > 0 ? static_cast<double>(done_ - before_) / seconds : 0.0;
  std::string out = title_;
  if (total_ > 0) {
    const double share =
        std::clamp(static_cast<double>(done_) / static_cast<double>(total_), 0.0, 1.0);
    if (terminal_) {
      const int filled = static_cast<int>(share * kBarWidth);
      out += fmt::format(" [{:=<{}}{: <{}}]", "", filled, "", kBarWidth - filled);
    }
    out += fmt::format(" {:3.0f}%", 100.0 * share);
    if (rate > 0 && seconds > 1) {
      const double left = static_cast<double>(total_ - done_) / rate;
      out += fmt::format(", {} left", format_duration(left));
    }
  } else {
    out += " " + format_amount(done_, unit_);
  }
  out += fmt::format(", {}/s", format_amount(std::llround(rate), unit_));
  if (!note.empty()) out += fmt::format(", {}", note);
  return out;
}

void Progress::set(int64_t done, std::string_view note) {
  done_ = done;
  const double now = timer_.seconds();
  if (now < next_draw_) return;
  if (terminal_) {
    next_draw_ = now + kRedrawSeconds;
    fmt::print(stderr, "\r\x1b[K{}", line(now, note));
    std::fflush(stderr);
    drawn_ = true;
  } else {
    next_draw_ = now + kLogSeconds;
    log_info("{}", line(now, note));
  }
}

}  // namespace degu
