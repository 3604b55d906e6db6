// Has the system read a file's next bytes while the program works on those before them.
#pragma once

#include <cstdint>
#include <string>

namespace degu {

class ReadAhead {
 public:
  // Keeps up to `window` bytes on their way. Without effect where the system does not take advice;
  // a file that cannot be opened is for whoever reads it to report.
  ReadAhead(const std::string& path, int64_t window);
  ~ReadAhead();
  ReadAhead(ReadAhead&& other) noexcept;
  ReadAhead& operator=(ReadAhead&&) = delete;

  // The reader is about to take [begin, end), and what follows soon.
  void reach(int64_t begin, int64_t end);

 private:
  int fd_ = -1;
  int64_t window_;
  int64_t asked_ = 0;  // all before it is read or asked for
};

}  // namespace degu
