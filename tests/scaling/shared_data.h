// Where the public data files are, for tests that compare with published results.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <optional>
#include <string>

namespace degu::scaling {

// $DEGU_SHARED_DATA/name, or shared/data/name beside the checkout; none when the file is absent,
// after saying so.
inline std::optional<std::string> shared_data(const std::string& name) {
  const char* folder = std::getenv("DEGU_SHARED_DATA");
  const std::filesystem::path path =
      std::filesystem::path(folder ? folder : DEGU_SOURCE_DIR "/../shared/data") / name;
  if (std::filesystem::exists(path)) return path.string();
  std::printf("skipped: %s is absent; set DEGU_SHARED_DATA to the folder of public data\n",
              path.c_str());
  return {};
}

}  // namespace degu::scaling
