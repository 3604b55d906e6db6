// metrics.jsonl: one JSON object per line, written by rank 0. docs/formats/metrics.md lists the
// keys.
#pragma once

#include <cstdint>
#include <cstdio>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <string>

#include "train/evaluate.h"
#include "train/trainer.h"

namespace degu {

class MetricsLog {
 public:
  // Appends to `path` after dropping lines of steps at or after `resume_step`, which will be
  // written again. With resume_step 0 the file starts empty.
  MetricsLog(const std::string& path, int64_t resume_step);
  void write(const nlohmann::json& line);

 private:
  struct Close {
    void operator()(std::FILE* file) const { std::fclose(file); }
  };
  std::string path_;
  std::unique_ptr<std::FILE, Close> file_;
};

nlohmann::json to_json(const StepResult& result);
nlohmann::json to_json(const ValidationResult& result);

}  // namespace degu
