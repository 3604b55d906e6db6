#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>

namespace degu {

// SHA-256 (FIPS 180-4), incrementally. Results are lower-case hexadecimal, as `sha256sum` prints
// them.
class Sha256 {
 public:
  Sha256();
  ~Sha256();
  void update(std::string_view bytes);
  std::string finish();  // once

 private:
  struct State;
  std::unique_ptr<State> state_;
};

std::string sha256_of(std::string_view bytes);
// `progress` is told the bytes of each block read. IoError if the file cannot be read.
std::string sha256_of_file(const std::string& path,
                           const std::function<void(int64_t)>& progress = nullptr);

}  // namespace degu
