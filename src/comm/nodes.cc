#include "comm/nodes.h"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cstdlib>
#include <fstream>

#include "comm/agree.h"

namespace degu {
namespace {

// Equal names become equal numbers, from 0 in the order of their first places.
std::vector<int> numbered(const std::vector<std::string>& names) {
  std::vector<std::string> known;
  std::vector<int> numbers;
  for (const std::string& name : names) {
    const auto place = std::find(known.begin(), known.end(), name);
    numbers.push_back(static_cast<int>(place - known.begin()));
    if (place == known.end()) known.push_back(name);
  }
  return numbers;
}

}  // namespace

// Containers may share host names, not the kernel's boot.
std::string node_name() {
  std::string boot;
  std::ifstream("/proc/sys/kernel/random/boot_id") >> boot;
  std::array<char, 256> host{};
  gethostname(host.data(), host.size() - 1);
  return fmt::format("{}/{}", host.data(), boot);
}

RankHomes find_homes(Communicator& comm) {
  const std::vector<std::string> processes =
      comm.gather_text(fmt::format("{} {}", node_name(), getpid()));
  std::vector<std::string> nodes;
  nodes.reserve(processes.size());
  for (const std::string& name : processes) nodes.push_back(name.substr(0, name.find(' ')));
  return {.node = numbered(nodes), .process = numbered(processes)};
}

std::vector<int> exchange_nodes(Communicator& comm) {
  const char* said = std::getenv("DEGU_RANKS_PER_NODE");
  const std::string text = said == nullptr ? "" : said;
  require_equal(comm, "DEGU_RANKS_PER_NODE", text);
  if (text.empty()) return find_homes(comm).node;
  int per_node = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), per_node);
  if (error != std::errc() || end != text.data() + text.size() || per_node < 1) {
    throw ConfigError("DEGU_RANKS_PER_NODE={}: must be a number of ranks above 0", text);
  }
  std::vector<int> nodes(static_cast<size_t>(comm.size()));
  for (size_t r = 0; r < nodes.size(); ++r) nodes[r] = static_cast<int>(r) / per_node;
  return nodes;
}

int count_nodes(const std::vector<int>& node_of_rank) {
  return 1 + *std::max_element(node_of_rank.begin(), node_of_rank.end());
}

}  // namespace degu
