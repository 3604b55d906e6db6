#pragma once

#include <functional>
#include <string>

#include "base/error.h"

namespace degu::test {

// What the Error that `body` throws says; "" when it throws none.
inline std::string message(const std::function<void()>& body) {
  try {
    body();
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

}  // namespace degu::test
