#include "data/line_reader.h"

#include <sys/stat.h>

#include <cerrno>
#include <cstring>

#include "base/error.h"

namespace degu {

LineReader::LineReader(const std::string& path) : file_(nullptr, gzclose), buffer_(kBufferBytes) {
  struct stat info;
  if (::stat(path.c_str(), &info) == 0 && S_ISDIR(info.st_mode)) {
    throw IoError("{}: cannot open: is a folder", path);
  }
  errno = 0;
  file_.reset(gzopen(path.c_str(), "rb"));  // passes plain files through
  if (!file_) {
    throw IoError("{}: cannot open: {}", path, errno != 0 ? std::strerror(errno) : "out of memory");
  }
  gzbuffer(file_.get(), 1u << 17);
}

void LineReader::fill() {
  if (begin_ > 0) {
    std::memmove(buffer_.data(), buffer_.data() + begin_, end_ - begin_);
    end_ -= begin_;
    begin_ = 0;
  }
  while (!at_end_ && end_ < buffer_.size()) {
    const int got =
        gzread(file_.get(), buffer_.data() + end_, static_cast<unsigned>(buffer_.size() - end_));
    if (got > 0) end_ += static_cast<size_t>(got);
    int code = Z_OK;
    const char* message = gzerror(file_.get(), &code);
    if (code == Z_BUF_ERROR) {
      failure_ = "gzip stream breaks off";
    } else if (code == Z_ERRNO) {
      failure_ = std::string("cannot read: ") + std::strerror(errno);
    } else if (code < 0) {
      // zlib writes "path: what"; the path is in the caller's message already.
      const char* what = std::strrchr(message, ':');
      failure_ = std::string("damaged gzip stream:") + (what ? what + 1 : message);
    }
    at_end_ = got <= 0 || !failure_.empty();
  }
}

std::string_view LineReader::peek() {
  fill();
  return {buffer_.data() + begin_, end_ - begin_};
}

bool LineReader::next(Piece& out) {
  const auto find_end = [&] {
    return static_cast<const char*>(std::memchr(buffer_.data() + begin_, '\n', end_ - begin_));
  };
  const char* line_end = find_end();
  if (!line_end) {
    fill();
    line_end = find_end();
  }
  out.line = line_;
  if (line_end) {
    const size_t size = static_cast<size_t>(line_end - buffer_.data()) - begin_;
    out.text = {buffer_.data() + begin_, size};
    out.ends_line = true;
    begin_ += size + 1;
    ++line_;
    open_line_ = false;
    return true;
  }
  if (!failure_.empty()) return false;  // what is left is a line without its end
  if (begin_ == end_) {
    // A last line without LF still has to be ended for the reader of pieces.
    if (!open_line_) return false;
    out.text = {};
    out.ends_line = true;
    open_line_ = false;
    return true;
  }
  out.text = {buffer_.data() + begin_, end_ - begin_};
  begin_ = end_;
  out.ends_line = at_end_;
  open_line_ = !at_end_;
  return true;
}

int64_t LineReader::file_position() const {
  return static_cast<int64_t>(gzoffset(file_.get()));
}

}  // namespace degu
