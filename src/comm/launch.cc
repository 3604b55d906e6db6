#include "comm/launch.h"

#include <algorithm>
#include <charconv>
#include <cstdlib>
#include <filesystem>
#include <string_view>

#include "comm/mpi_comm.h"

namespace degu {
namespace {

// Empty values count as unset: `DEGU_RENDEZVOUS= degu …` takes one away.
std::string text_of(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

bool any_set(std::initializer_list<const char*> names) {
  return std::any_of(names.begin(), names.end(),
                     [](const char* name) { return !text_of(name).empty(); });
}

bool parse(std::string_view text, int& value) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  return error == std::errc() && end == text.data() + text.size();
}

int number_of(const char* name, int least) {
  int value = 0;
  if (!parse(text_of(name), value) || value < least) {
    throw ConfigError("{}={}: must be a whole number, {} or more", name, text_of(name), least);
  }
  return value;
}

std::string job_name() {
  std::string name = text_of("DEGU_JOB");
  if (name.empty() && any_set({"SLURM_JOB_ID"}) && any_set({"SLURM_STEP_ID"})) {
    name = text_of("SLURM_JOB_ID") + "." + text_of("SLURM_STEP_ID");
  }
  if (name.empty()) return "job";
  const bool plain = std::all_of(name.begin(), name.end(), [](unsigned char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '.' ||
           c == '-' || c == '_';
  });
  if (!plain || name.size() > 100) {
    throw ConfigError(
        "DEGU_JOB={}: becomes part of a file's name; use up to 100 letters, digits, '.', '-' and "
        "'_'",
        name);
  }
  return name;
}

std::chrono::milliseconds timeout() {
  const std::string text = text_of("DEGU_RENDEZVOUS_TIMEOUT");
  if (text.empty()) return SocketJob{}.timeout;
  double seconds = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), seconds);
  constexpr double kWeek = 7 * 24 * 3600.0;
  if (error != std::errc() || end != text.data() + text.size() || !(seconds >= 0.001) ||
      seconds > kWeek) {
    throw ConfigError("DEGU_RENDEZVOUS_TIMEOUT={}: must be a number of seconds, up to a week",
                      text);
  }
  return std::chrono::milliseconds(static_cast<int64_t>(seconds * 1000));
}

// Rank and size from the first pair of names that is there; false when neither is.
bool read_ranks(SocketJob& job) {
  const char* rank = "DEGU_RANK";
  const char* size = "DEGU_RANKS";
  if (!any_set({rank, size})) {
    // A batch script has the job's SLURM_NTASKS and is no task: srun's tasks know their step.
    if (!any_set({"SLURM_PROCID"}) || !any_set({"SLURM_STEP_NUM_TASKS", "SLURM_STEP_ID"})) {
      return false;
    }
    rank = "SLURM_PROCID";
    size = any_set({"SLURM_STEP_NUM_TASKS"}) ? "SLURM_STEP_NUM_TASKS" : "SLURM_NTASKS";
  }
  for (const char* name : {rank, size}) {
    if (any_set({name})) continue;
    throw ConfigError("{} is set and {} is not: DEGU_RENDEZVOUS needs both",
                      name == rank ? size : rank, name);
  }
  job.size = number_of(size, 1);
  job.rank = number_of(rank, 0);
  if (job.rank >= job.size) {
    throw ConfigError("{}={} of {}={}: ranks are numbered from 0", rank, job.rank, size, job.size);
  }
  return true;
}

Launch socket_launch(const std::string& folder) {
  Launch launch{.kind = Launch::Kind::kSockets};
  SocketJob& job = launch.job;
  if (!read_ranks(job)) {
    launch.kind = Launch::Kind::kUnclear;
    launch.problem = fmt::format(
        "DEGU_RENDEZVOUS={} says that there are other ranks, but nothing says which this is: set "
        "DEGU_RANK and DEGU_RANKS, start it with srun, or unset DEGU_RENDEZVOUS",
        folder);
    return launch;
  }
  launch.ranks = job.size;
  job.folder = folder;
  job.name = job_name();
  job.timeout = timeout();
  std::error_code ignored;
  if (!std::filesystem::is_directory(folder, ignored)) {
    throw ConfigError(
        "DEGU_RENDEZVOUS={}: rank {} of {} sees no such folder; make one that all ranks see",
        folder, job.rank, job.size);
  }
  if (job.size == 1) launch.kind = Launch::Kind::kAlone;
  return launch;
}

// Tasks in the step of Slurm that started this process; 0 when none did.
int slurm_tasks() {
  int tasks = 0;
  return parse(text_of("SLURM_STEP_NUM_TASKS"), tasks) ? tasks : 0;
}

Launch mpi_launch(int ranks) {
  if (!mpi_built()) {  // what was started as a single process needs none
    for (const char* name : {"OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS"}) {
      if (!any_set({name})) continue;
      if (text_of(name) == "1") return {};
      break;
    }
  }
  return {.kind = Launch::Kind::kMpi, .ranks = ranks};
}

}  // namespace

std::string unconnected_tasks(int tasks) {
  return fmt::format(
      "Slurm has started {} tasks and nothing connects them: start them with srun --mpi=pmix, or "
      "set DEGU_RENDEZVOUS to a folder that all of them see (DEGU_RANKS=1: each is a job of its "
      "own)",
      tasks);
}

Launch find_launch() {
  if (any_set({"OMPI_COMM_WORLD_SIZE", "MPI_LOCALNRANKS"})) return mpi_launch(0);
  const std::string folder = text_of("DEGU_RENDEZVOUS");
  if (!folder.empty()) return socket_launch(folder);
  if (any_set({"DEGU_RANK", "DEGU_RANKS"})) {
    if (text_of("DEGU_RANKS") == "1") return {};
    throw ConfigError("{} is set, but not DEGU_RENDEZVOUS, the folder where the ranks meet",
                      any_set({"DEGU_RANKS"}) ? "DEGU_RANKS" : "DEGU_RANK");
  }
  if (any_set({"PMIX_RANK", "PMI_RANK", "PMI_SIZE"})) return mpi_launch(slurm_tasks());
  if (slurm_tasks() > 1) {
    return {.kind = Launch::Kind::kUnclear,
            .ranks = slurm_tasks(),
            .problem = unconnected_tasks(slurm_tasks())};
  }
  return {};
}

}  // namespace degu
