// The safetensors file format: a JSON header of names, types, shapes and byte ranges, then the
// bytes. https://github.com/huggingface/safetensors, format section; what we write:
// docs/formats/safetensors.md.
#pragma once

#include <cstdint>
#include <fstream>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "tensor/view.h"

namespace degu {

struct SafetensorsEntry {
  std::string name;
  DType dtype = DType::kF32;
  Shape shape;
};

// Writes tensor by tensor, in the order of `entries`, so that a model need not be in memory whole.
// The file appears under its name when finish() returns (io/atomic_file.h). Errors are IoErrors.
class SafetensorsWriter {
 public:
  SafetensorsWriter(const std::string& path, std::vector<SafetensorsEntry> entries,
                    const std::map<std::string, std::string>& metadata = {});
  ~SafetensorsWriter();        // without finish: nothing remains
  void write(AnyView tensor);  // the next entry; ShapeError when type or shape are not its own
  void finish();               // ShapeError when entries are missing

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// DataError for anything but a whole and consistent file: the header's length and JSON, known
// types, byte ranges that fit their shapes, follow each other without gap or overlap and end with
// the file.
class SafetensorsReader {
 public:
  explicit SafetensorsReader(const std::string& path);

  const std::vector<SafetensorsEntry>& entries() const { return entries_; }  // in the file's order
  const std::map<std::string, std::string>& metadata() const { return metadata_; }
  // DataError unless `name` is there with this type and shape.
  void read(const std::string& name, AnyView out);

  // The header alone, from `text` for a file with `data_bytes` bytes after it. For the reader and
  // its tests.
  struct Header {
    std::vector<SafetensorsEntry> entries;
    std::vector<int64_t> begins;  // of each entry, from the start of the data
    std::map<std::string, std::string> metadata;
  };
  static Header parse_header(std::string_view text, int64_t data_bytes, const std::string& place);

 private:
  std::string path_;
  std::ifstream file_;
  int64_t data_start_ = 0;
  std::vector<SafetensorsEntry> entries_;
  std::vector<int64_t> begins_;
  std::map<std::string, std::string> metadata_;
};

}  // namespace degu
