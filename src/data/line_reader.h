// Lines of a file that may be gzip-compressed, in pieces when they are long.
#pragma once

#include <zlib.h>

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace degu {

class LineReader {
 public:
  static constexpr size_t kBufferBytes = size_t{1} << 18;

  explicit LineReader(const std::string& path);  // IoError

  struct Piece {
    std::string_view text;  // without the LF; valid until the next call
    int64_t line;           // from 1
    bool ends_line;         // false: the line goes on in the next piece
  };
  // False at the end of what can be read; then `failure` tells whether that was the end of the
  // file. A line that a failure broke off is not ended.
  bool next(Piece& out);
  const std::string& failure() const { return failure_; }  // empty: none
  int64_t line() const { return line_; }                   // of the next piece

  // What comes next, up to a buffer's worth, without consuming it. Ends the life of the last piece.
  std::string_view peek();
  int64_t file_position() const;

 private:
  void fill();

  std::unique_ptr<gzFile_s, int (*)(gzFile)> file_;
  std::vector<char> buffer_;
  size_t begin_ = 0;
  size_t end_ = 0;
  int64_t line_ = 1;
  bool at_end_ = false;
  bool open_line_ = false;  // the last piece did not end its line
  std::string failure_;
};

}  // namespace degu
