// Files of text to documents: plain text and JSON lines, each also gzip-compressed, read as a
// stream.
//
// Plain text (any name but those below): lines end in LF or CR LF; a byte-order mark at the start
// is dropped. What a document is follows from `SplitRule`. Blank lines around a document are not
// part of it. JSON lines (*.jsonl, *.ndjson): one object per line with the text under a key, and
// optionally the domain.
//
// Bad input never ends the stream by itself: it is reported with file and line, and what cannot be
// used is left out: a document with a NUL byte or malformed UTF-8, a record that is not JSON or has
// no text, all of a file that starts like a binary one, and the rest of a gzip stream that breaks
// off.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"

namespace degu {

// Documents of plain text.
enum class SplitRule {
  kPages,       // paragraphs (set apart by blank lines) gathered while they fit into document_bytes
  kParagraphs,  // each paragraph
  kLines,       // each line
  kFile         // the whole file, up to kMaxDocumentBytes
};
constexpr auto enum_names(SplitRule) {
  return std::array<std::string_view, 4>{"pages", "paragraphs", "lines", "file"};
}

// A longer text is cut: after a line if one ends in its second half, else after a space, else
// between characters. Bounds the memory of the reader; a longer JSON record is bad input.
inline constexpr int64_t kMaxDocumentBytes = int64_t{64} << 20;

struct DocumentRules {
  SplitRule split = SplitRule::kPages;
  int64_t document_bytes = 16384;  // longest page or paragraph, at least 64
  std::string text_key = "text";
  std::string domain_key = "domain";
};

struct Document {
  std::string text;    // well-formed UTF-8 without NUL, not empty
  std::string domain;  // as the record says; empty: the source's
  int64_t line = 0;    // its first, from 1
};

struct BadInput {
  std::string file;
  int64_t line;  // 0: the file as a whole
  std::string reason;
};

class DocumentReader {
 public:
  // IoError when the file cannot be opened.
  DocumentReader(const std::string& path, const DocumentRules& rules,
                 std::function<void(const BadInput&)> on_bad);
  ~DocumentReader();
  DocumentReader(const DocumentReader&) = delete;
  DocumentReader& operator=(const DocumentReader&) = delete;

  bool next(Document& out);       // false at the end
  int64_t file_position() const;  // bytes of the file (compressed, if it is) consumed so far

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// Letters, digits, '_', '-' and '.', not first; at most 64 characters: domains become file names.
bool valid_domain_name(std::string_view name);

}  // namespace degu
