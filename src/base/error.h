// Errors that a user or a machine can cause. Each message is one line that names the place, the
// value and the remedy. Commands catch `Error` at the top, print the line with the rank and return
// `exit_code()`; our own mistakes are DEGU_DCHECKs, which stop a debug build and cost nothing in a
// release.
#pragma once

#include <fmt/format.h>

#include <stdexcept>
#include <string>
#include <utility>

namespace degu {

// What the process returns. Documented in docs/cli.md; scripts rely on these values.
enum class ExitCode : int {
  kDone = 0,
  kFailure = 1,      // anything without a code of its own
  kUsage = 2,        // bad command line or configuration
  kIo = 3,           // a file cannot be read or written
  kData = 4,         // input text, tokens, tables or checkpoints are not what they should be
  kNumeric = 5,      // training diverged, or a fit cannot be identified
  kComm = 6,         // another rank failed or disagrees
  kInterrupted = 75  // stopped on request (signal or --max-minutes) after a checkpoint: run again
                     // with --resume
};

class Error : public std::runtime_error {
 public:
  Error(ExitCode code, const std::string& message) : std::runtime_error(message), code_(code) {}
  ExitCode exit_code() const { return code_; }

 private:
  ExitCode code_;
};

// NOLINTBEGIN(bugprone-macro-parentheses): a class name takes none
#define DEGU_DEFINE_ERROR(Name, code)                                      \
  class Name : public Error {                                              \
   public:                                                                 \
    template <class... Args>                                               \
    explicit Name(fmt::format_string<Args...> format, Args&&... args)      \
        : Error(code, fmt::format(format, std::forward<Args>(args)...)) {} \
  };

// NOLINTEND(bugprone-macro-parentheses)

DEGU_DEFINE_ERROR(ConfigError, ExitCode::kUsage)     // YAML, --set, command line
DEGU_DEFINE_ERROR(ShapeError, ExitCode::kUsage)      // sizes that do not fit together
DEGU_DEFINE_ERROR(IoError, ExitCode::kIo)            // open, read, write, rename, full disk
DEGU_DEFINE_ERROR(DataError, ExitCode::kData)        // content of a file is wrong
DEGU_DEFINE_ERROR(NumericError, ExitCode::kNumeric)  // diverged, singular, not identified
DEGU_DEFINE_ERROR(CommError, ExitCode::kComm)        // a rank failed or ranks disagree
DEGU_DEFINE_ERROR(DeviceError, ExitCode::kFailure)   // device, driver, missing instruction set
#undef DEGU_DEFINE_ERROR

namespace internal {
[[noreturn]] void dcheck_failed(const char* file, int line, const char* condition);
}

#ifdef NDEBUG
#define DEGU_DCHECK(condition) static_cast<void>(0)
#else
#define DEGU_DCHECK(condition)        \
  ((condition) ? static_cast<void>(0) \
               : ::degu::internal::dcheck_failed(__FILE__, __LINE__, #condition))
#endif

}  // namespace degu
