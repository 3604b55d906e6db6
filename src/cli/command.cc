#include "cli/command.h"

#include <vector>

#include "cli/job.h"

namespace degu {

Action attach_commands(CommandLine& line, std::span<const Command> commands) {
  struct Attached {
    CommandLine line;
    Ranks ranks;
    Action action;
  };
  std::vector<Attached> attached;
  for (const Command& command : commands) {
    CommandLine own = line.command(command.name, command.summary);
    Action action = command.attach(own);
    attached.push_back({std::move(own), command.ranks, std::move(action)});
  }
  return [attached = std::move(attached)] {
    for (const Attached& each : attached) {
      if (!each.line.given()) continue;
      if (each.ranks == Ranks::kOne) require_one_rank(each.line.name());
      return each.action();
    }
    return ExitCode::kUsage;
  };
}

}  // namespace degu
