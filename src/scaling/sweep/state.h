// The state file of one run of a sweep.
#pragma once

#include <string>

#include "scaling/run_table.h"

namespace degu::scaling {

class RunState {
 public:
  RunState(std::string folder, RunRecord fresh);

  // Reads the file if there is one of the same configuration. DataError when it is of another: the
  // folder holds a different sweep.
  void load();
  // Counts the death of the job under this run, if that is what the file says; the second one fails
  // it.
  void notice_crash(bool retry_failed);
  void store() const;

  bool finished() const;  // nothing is left to do for it
  RunRecord& record() { return record_; }
  const RunRecord& record() const { return record_; }

 private:
  std::string path() const;
  std::string folder_;
  RunRecord record_;
};

}  // namespace degu::scaling
