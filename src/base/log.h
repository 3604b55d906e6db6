// One line per event on standard error; standard output belongs to results (`--json`, tables).
// Under MPI only rank 0 speaks at `info`; warnings and errors carry the rank that met them.
#pragma once

#include <fmt/format.h>

#include <string_view>
#include <utility>

namespace degu {

enum class LogLevel { kDebug, kInfo, kWarn, kError };

void set_log_level(LogLevel level);
// Called once when the communicator is known. Ranks other than 0 drop debug and info lines.
void set_log_rank(int rank, int world_size);
void log_line(LogLevel level, std::string_view text);
// An info line that any rank may write: events that happen on one rank only.
void log_line_any_rank(std::string_view text);

template <class... Args>
void log_debug(fmt::format_string<Args...> format, Args&&... args) {
  log_line(LogLevel::kDebug, fmt::format(format, std::forward<Args>(args)...));
}
template <class... Args>
void log_info(fmt::format_string<Args...> format, Args&&... args) {
  log_line(LogLevel::kInfo, fmt::format(format, std::forward<Args>(args)...));
}
template <class... Args>
void log_any_rank(fmt::format_string<Args...> format, Args&&... args) {
  log_line_any_rank(fmt::format(format, std::forward<Args>(args)...));
}
template <class... Args>
void log_warn(fmt::format_string<Args...> format, Args&&... args) {
  log_line(LogLevel::kWarn, fmt::format(format, std::forward<Args>(args)...));
}
template <class... Args>
void log_error(fmt::format_string<Args...> format, Args&&... args) {
  log_line(LogLevel::kError, fmt::format(format, std::forward<Args>(args)...));
}

}  // namespace degu
