#include "scaling/sweep/state.h"

#include <filesystem>
#include <nlohmann/json.hpp>
#include <utility>

#include "base/error.h"
#include "config/yaml.h"
#include "io/atomic_file.h"

namespace degu::scaling {
namespace {

constexpr int64_t kMostAttempts = 2;

}  // namespace

RunState::RunState(std::string folder, RunRecord fresh)
    : folder_(std::move(folder)), record_(std::move(fresh)) {}

std::string RunState::path() const {
  return folder_ + "/state/" + record_.run + ".yaml";
}

void RunState::load() {
  if (!std::filesystem::exists(path())) return;
  const RunRecord stored =
      read_config<RunRecord>(YamlDocument::from_text(read_file(path()), path()));
  if (stored.config_hash != record_.config_hash) {
    throw DataError(
        "{}: the run was trained with another configuration; give the sweep another --out "
        "or remove {}",
        path(), folder_);
  }
  record_ = stored;
}

void RunState::notice_crash(bool retry_failed) {
  if (record_.status == "failed" && retry_failed) {
    record_.status = "waiting";
    record_.attempts = 0;
    store();
  }
  if (record_.status != "running") return;
  if (record_.attempts >= kMostAttempts) {
    record_.status = "failed";
    record_.reason = "the job died under it twice";
  } else {
    record_.status = "waiting";
  }
  store();
}

void RunState::store() const {
  write_file_atomic(path(), to_yaml(record_));
}

bool RunState::finished() const {
  return record_.status == "done" || record_.status == "diverged" || record_.status == "invalid" ||
         record_.status == "failed";
}

}  // namespace degu::scaling
