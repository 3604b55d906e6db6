#pragma once

#include <cstdlib>
#include <string>

namespace degu::test {

// An environment variable set for a scope that starts no thread before and leaves none behind;
// afterwards it is as it was.
class ScopedEnvironment {
 public:
  ScopedEnvironment(const char* name, const std::string& value) : name_(name) {
    if (const char* before = std::getenv(name)) {
      had_ = true;
      before_ = before;
    }
    ::setenv(name, value.c_str(), 1);
  }
  ~ScopedEnvironment() { had_ ? ::setenv(name_, before_.c_str(), 1) : ::unsetenv(name_); }
  ScopedEnvironment(const ScopedEnvironment&) = delete;
  ScopedEnvironment& operator=(const ScopedEnvironment&) = delete;

 private:
  const char* name_;
  bool had_ = false;
  std::string before_;
};

}  // namespace degu::test
