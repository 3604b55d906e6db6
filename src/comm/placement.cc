#include "comm/placement.h"

#include <sched.h>

#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <fstream>
#include <set>
#include <sstream>
#include <tuple>

#include "base/log.h"
#include "comm/nodes.h"

namespace degu {
namespace {

// "0-3,8" → 0 1 2 3 8; empty when the text is not such a list.
std::vector<int> parse_cpu_list(const std::string& text) {
  std::vector<int> cpus;
  std::istringstream parts(text);
  for (std::string part; std::getline(parts, part, ',');) {
    int first = 0;
    int last = 0;
    char dash = 0;
    std::istringstream words(part);
    if (!(words >> first)) return {};
    if (!(words >> dash >> last)) last = first;
    for (int cpu = first; cpu <= last; ++cpu) cpus.push_back(cpu);
  }
  return cpus;
}

std::string status_field(const std::string& pid, const std::string& field) {
  std::ifstream status("/proc/" + pid + "/status");
  for (std::string line; std::getline(status, line);) {
    if (line.rfind(field + ":\t", 0) == 0) return line.substr(field.size() + 2);
  }
  return {};
}

std::vector<int> present_binding() {
  cpu_set_t set;
  CPU_ZERO(&set);
  std::vector<int> cpus;
  if (sched_getaffinity(0, sizeof(set), &set) != 0) return {0};
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (CPU_ISSET(cpu, &set)) cpus.push_back(cpu);
  }
  return cpus;
}

// The cores of the nearest ancestor that is an MPI launcher's process on this node. It binds its
// children and not itself. Empty when there is none (threads, srun).
std::vector<int> launcher_cpus() {
  constexpr std::array kLaunchers = {"mpirun",  "mpiexec", "orterun",         "orted",
                                     "prterun", "prted",   "hydra_pmi_proxy", "mpiexec.hydra"};
  std::string pid = "self";
  for (int generation = 0; generation < 32; ++generation) {
    pid = status_field(pid, "PPid");
    if (pid.empty() || pid == "0") return {};
    // The kernel keeps 15 characters of a name.
    const std::string name = status_field(pid, "Name");
    const bool found = std::any_of(kLaunchers.begin(), kLaunchers.end(), [&](const char* launcher) {
      return name == std::string(launcher).substr(0, 15);
    });
    if (found) return parse_cpu_list(status_field(pid, "Cpus_allowed_list"));
  }
  return {};
}

bool binding_was_chosen() {
  for (const char* name :
       {"OMPI_MCA_hwloc_base_binding_policy", "PRTE_MCA_hwloc_default_binding_policy"}) {
    const char* policy = std::getenv(name);
    if (policy != nullptr && std::string_view(policy).rfind("none", 0) != 0) return true;
  }
  return false;
}

int topology(int cpu, const char* what) {
  int value = -1;
  std::ifstream(fmt::format("/sys/devices/system/cpu/cpu{}/topology/{}", cpu, what)) >> value;
  return value;
}

// (package, core, cpu): neighbours in this order share most.
using CpuPlace = std::tuple<int, int, int>;

CpuPlace place_of(int cpu) {
  const int core = topology(cpu, "core_id");
  return {topology(cpu, "physical_package_id"), core < 0 ? cpu : core, cpu};
}

// A rank's place among others.
struct Place {
  int rank = 0;
  int size = 1;
};

// Among the ranks of this node that may run on exactly the same cores: those that nobody bound.
Place place_among_equals(Communicator& comm, const RankHomes& homes,
                         const std::vector<int>& present) {
  const std::vector<std::string> all = comm.gather_text(fmt::format("{}", fmt::join(present, ",")));
  const auto me = static_cast<size_t>(comm.rank());
  Place place{.size = 0};
  for (size_t r = 0; r < all.size(); ++r) {
    if (homes.node[r] != homes.node[me] || all[r] != all[me]) continue;
    if (r < me) ++place.rank;
    ++place.size;
  }
  return place;
}

int count_cores(const std::vector<int>& cpus) {
  std::set<std::pair<int, int>> cores;
  for (int cpu : cpus) {
    const auto [package, core, unused] = place_of(cpu);
    cores.insert({package, core});
  }
  return std::max<int>(1, static_cast<int>(cores.size()));
}

}  // namespace

Placement place_rank(Communicator& comm) {
  const RankHomes homes = find_homes(comm);
  const auto me = static_cast<size_t>(comm.rank());
  Placement placement;
  placement.local_size = 0;
  bool shares_process = false;
  for (size_t r = 0; r < homes.node.size(); ++r) {
    if (homes.node[r] != homes.node[me]) continue;
    if (r < me) ++placement.local_rank;
    if (r != me && homes.process[r] == homes.process[me]) shares_process = true;
    ++placement.local_size;
  }
  const std::vector<int> present = present_binding();
  const Place among = place_among_equals(comm, homes, present);
  const char* wish = std::getenv("DEGU_BIND");
  const bool keep = binding_was_chosen() || (wish != nullptr && std::string_view(wish) == "none");
  std::vector<int> granted = keep || shares_process ? std::vector<int>{} : launcher_cpus();
  Place place{placement.local_rank, placement.local_size};
  if (granted.empty() && !keep && !shares_process && among.size > 1) {
    granted = present;
    place = among;
  }
  if (granted.empty()) {  // nothing to undo
    placement.cpus = present;
    // A rank bound to cores of its own has them all; ranks that share a binding divide it.
    const int sharers = shares_process || comm.size() == 1 ? placement.local_size : 1;
    placement.cores = std::max(1, count_cores(present) / std::max(1, sharers));
    return placement;
  }
  std::sort(granted.begin(), granted.end(), [](int a, int b) { return place_of(a) < place_of(b); });
  const auto n = static_cast<int64_t>(granted.size());
  if (place.size <= n) {
    const int64_t begin = n * place.rank / place.size;
    const int64_t end = n * (place.rank + 1) / place.size;
    placement.cpus.assign(granted.begin() + begin, granted.begin() + end);
    placement.cores = count_cores(placement.cpus);
  } else {  // more ranks than cores: let the system move them
    placement.cpus = granted;
    placement.cores = 1;
  }
  std::sort(placement.cpus.begin(), placement.cpus.end());
  placement.rebind = placement.cpus != present;
  return placement;
}

void bind_rank(const Placement& placement) {
  if (!placement.rebind) return;
  cpu_set_t set;
  CPU_ZERO(&set);
  for (int cpu : placement.cpus) CPU_SET(cpu, &set);
  if (sched_setaffinity(0, sizeof(set), &set) != 0) {
    log_warn("cannot bind to this rank's {} cores; threads may share cores", placement.cores);
  }
}

int default_threads(Communicator& comm) {
  return place_rank(comm).cores;
}

}  // namespace degu
