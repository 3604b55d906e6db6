// What the groups of a sweep are doing, for whoever watches.
//
// Each group's first rank leaves a line in <folder>/live/<group> while it trains; the first rank of
// all reads them and shows the table: redrawn in place on a terminal, else logged every half
// minute. Files, because a message to a rank that trains would wait for the end of its step.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/timer.h"

namespace degu::scaling {

// Of one run, after a step.
struct RunProgress {
  int64_t step = 0, steps = 0;
  double loss = 0;
  double tokens_per_second = 0;
};

struct GroupStatus {
  std::string run;  // empty: between runs
  RunProgress progress;
  double cost = 0;        // of the run it is in
  int64_t runs_done = 0;  // by this start
  double cost_done = 0;
};

std::string to_line(const GroupStatus& status);
// False when the line is torn or of another version.
bool from_line(const std::string& line, GroupStatus& status);

// One line per group and a head with counts and the time left. `elapsed` in seconds.
std::vector<std::string> board_lines(const std::vector<GroupStatus>& groups, int64_t runs,
                                     int64_t done_before, double cost_to_do, double elapsed);

class Board {
 public:
  struct Totals {
    int64_t runs = 0, done_before = 0;
    double cost_to_do = 0;  // of the runs that this start will train
  };
  // `shows`: this rank shows the table.
  Board(const std::string& folder, int group, int groups, const Totals& totals, bool shows);
  ~Board();  // takes the table off the terminal
  Board(const Board&) = delete;
  Board& operator=(const Board&) = delete;

  void begin(const std::string& run, double cost);
  void step(const RunProgress& progress);  // cheap; call it after every step
  void end();                              // of the run
  // Takes the table off the terminal, so that a line can be logged.
  void clear();

 private:
  void write();
  void show();
  std::string file(int group) const;

  std::string folder_;
  int group_, groups_;
  Totals totals_;
  bool shows_, terminal_;
  GroupStatus own_;
  Timer timer_;
  double next_write_ = 0, next_show_ = 0;
  size_t drawn_ = 0;  // lines on the terminal
};

}  // namespace degu::scaling
