// Progress of a long task on standard error: a bar that redraws itself on a terminal, a log line
// every ten seconds elsewhere. Nothing is printed for a task that ends before its first line is
// due.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "base/timer.h"

namespace degu {

class Progress {
 public:
  // How amounts are written: plain counts, or bytes as MB and GB.
  enum class Unit { kCount, kBytes };

  // `total` 0: unknown; then amount and rate are shown without a share. `done` of it was done
  // before (a task that goes on where it was stopped), so it took none of this task's time.
  Progress(std::string title, int64_t total, Unit unit = Unit::kCount, int64_t done = 0);
  ~Progress();  // removes the bar
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  // One thread at a time. Cheap: draws at most ten times a second.
  void set(int64_t done, std::string_view note = {});
  void add(int64_t amount, std::string_view note = {}) { set(done_ + amount, note); }
  // Removes the bar from the line, so that a log line can be written; the next `set` redraws it.
  void clear();
  // What is shown, were `seconds` gone since the beginning.
  std::string line(double seconds, std::string_view note = {}) const;

 private:
  std::string title_;
  int64_t total_;
  Unit unit_;
  bool terminal_;
  int64_t before_;
  int64_t done_;
  double next_draw_ = 0;
  bool drawn_ = false;
  Timer timer_;
};

// "1.5 GB", "12,345": amounts for people.
std::string format_amount(int64_t amount, Progress::Unit unit);
// "42 s", "3 min 10 s", "2 h 5 min".
std::string format_duration(double seconds);

}  // namespace degu
