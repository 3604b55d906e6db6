#include "base/log.h"

#include <spdlog/sinks/stdout_color_sinks.h>
#include <spdlog/spdlog.h>

#include <atomic>

namespace degu {
namespace {

std::atomic<int> log_rank{0};
std::atomic<int> log_world{1};

spdlog::logger& logger() {
  static const std::shared_ptr<spdlog::logger> instance = [] {
    auto made = spdlog::stderr_color_mt("degu");
    made->set_pattern("%H:%M:%S %^%l%$ %v");
    return made;
  }();
  return *instance;
}

spdlog::level::level_enum to_spdlog(LogLevel level) {
  switch (level) {
    case LogLevel::kDebug:
      return spdlog::level::debug;
    case LogLevel::kInfo:
      return spdlog::level::info;
    case LogLevel::kWarn:
      return spdlog::level::warn;
    case LogLevel::kError:
      break;
  }
  return spdlog::level::err;
}

}  // namespace

void set_log_level(LogLevel level) {
  logger().set_level(to_spdlog(level));
}

void set_log_rank(int rank, int world_size) {
  log_rank = rank;
  log_world = world_size;
}

void log_line(LogLevel level, std::string_view text) {
  const bool quiet = level == LogLevel::kDebug || level == LogLevel::kInfo;
  if (quiet && log_rank != 0) return;
  if (quiet || log_world == 1) {
    logger().log(to_spdlog(level), "{}", text);
  } else {
    logger().log(to_spdlog(level), "rank {}: {}", log_rank.load(), text);
  }
}

void log_line_any_rank(std::string_view text) {
  logger().log(spdlog::level::info, "{}", text);
}

}  // namespace degu
