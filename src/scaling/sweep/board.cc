#include "scaling/sweep/board.h"

#include <fmt/format.h>
#include <unistd.h>

#include <cstdio>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "base/log.h"
#include "base/progress.h"

namespace degu::scaling {
namespace {

constexpr double kWriteSeconds = 1.0;
constexpr double kRedrawSeconds = 1.0;
constexpr double kLogSeconds = 30.0;
constexpr int kBarWidth = 16;

double share(const RunProgress& p) {
  return p.steps > 0 ? static_cast<double>(p.step) / static_cast<double>(p.steps) : 0.0;
}

}  // namespace

std::string to_line(const GroupStatus& s) {
  return fmt::format("degu-live-1 {} {:.17g} {:.17g} {} {} {:.6g} {:.6g} {} .\n", s.runs_done,
                     s.cost_done, s.cost, s.progress.step, s.progress.steps, s.progress.loss,
                     s.progress.tokens_per_second, s.run.empty() ? "-" : s.run);
}

bool from_line(const std::string& line, GroupStatus& status) {
  std::istringstream in(line);
  std::string tag, end;
  GroupStatus s;
  in >> tag >> s.runs_done >> s.cost_done >> s.cost >> s.progress.step >> s.progress.steps >>
      s.progress.loss >> s.progress.tokens_per_second >> s.run >> end;
  if (!in || tag != "degu-live-1" || end != ".") return false;
  if (s.run == "-") s.run.clear();
  status = s;
  return true;
}

std::vector<std::string> board_lines(const std::vector<GroupStatus>& groups, int64_t runs,
                                     int64_t done_before, double cost_to_do, double elapsed) {
  int64_t done = done_before, running = 0;
  double spent = 0;
  for (const GroupStatus& g : groups) {
    done += g.runs_done;
    running += !g.run.empty();
    spent += g.cost_done + (g.run.empty() ? 0 : g.cost * share(g.progress));
  }
  std::string head = fmt::format("sweep: {} of {} runs done, {} running, {} waiting", done, runs,
                                 running, std::max<int64_t>(0, runs - done - running));
  // A tenth of a minute of work says little about the rest.
  if (spent > 0 && elapsed > 6) {
    const double left = elapsed * std::max(0.0, cost_to_do - spent) / spent;
    head += fmt::format(", about {} left", format_duration(left));
  }
  std::vector<std::string> lines = {head};
  for (const GroupStatus& g : groups) {
    if (g.run.empty()) continue;
    const double part = share(g.progress);
    const int filled = static_cast<int>(part * kBarWidth);
    lines.push_back(fmt::format(
        "  {:<36} [{:=<{}}{: <{}}] {:3.0f} %  loss {:.4f}  {} tokens/s", g.run, "", filled, "",
        kBarWidth - filled, 100 * part, g.progress.loss,
        format_amount(static_cast<int64_t>(g.progress.tokens_per_second), Progress::Unit::kCount)));
  }
  return lines;
}

Board::Board(const std::string& folder, int group, int groups, const Totals& totals, bool shows)
    : folder_(folder + "/live"),
      group_(group),
      groups_(groups),
      totals_(totals),
      shows_(shows),
      terminal_(::isatty(STDERR_FILENO) == 1) {
  if (!terminal_) next_show_ = kLogSeconds;
}

Board::~Board() {
  clear();
}

std::string Board::file(int group) const {
  return folder_ + "/" + std::to_string(group);
}

void Board::begin(const std::string& run, double cost) {
  own_.run = run;
  own_.cost = cost;
  own_.progress = {};
  write();
}

void Board::step(const RunProgress& progress) {
  own_.progress = progress;
  const double now = timer_.seconds();
  if (now >= next_write_) write();
  if (shows_ && now >= next_show_) show();
}

void Board::end() {
  own_.runs_done += 1;
  own_.cost_done += own_.cost;
  own_.run.clear();
  write();
}

// Not synced and its failure ignored: the table is a comfort, and a reader skips a torn line.
void Board::write() {
  next_write_ = timer_.seconds() + kWriteSeconds;
  std::error_code ignored;
  std::filesystem::create_directories(folder_, ignored);
  std::ofstream(file(group_), std::ios::trunc) << to_line(own_);
}

void Board::show() {
  next_show_ = timer_.seconds() + (terminal_ ? kRedrawSeconds : kLogSeconds);
  std::vector<GroupStatus> groups(static_cast<size_t>(groups_));
  for (int g = 0; g < groups_; ++g) {
    GroupStatus& status = groups[static_cast<size_t>(g)];
    if (g == group_) {
      status = own_;
      continue;
    }
    std::string line;
    std::ifstream in(file(g));
    if (std::getline(in, line)) from_line(line, status);
  }
  const std::vector<std::string> lines =
      board_lines(groups, totals_.runs, totals_.done_before, totals_.cost_to_do, timer_.seconds());
  if (!terminal_) {
    for (const std::string& line : lines) log_info("{}", line);
    return;
  }
  clear();
  for (const std::string& line : lines) fmt::print(stderr, "{}\n", line);
  std::fflush(stderr);
  drawn_ = lines.size();
}

void Board::clear() {
  if (drawn_ == 0) return;
  fmt::print(stderr, "\x1b[{}F\x1b[J", drawn_);
  std::fflush(stderr);
  drawn_ = 0;
}

}  // namespace degu::scaling
