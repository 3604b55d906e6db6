// What a checkpoint's manifest.json says, as a plain struct. Format: docs/formats/checkpoint.md.
#pragma once

#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "io/region.h"

namespace degu {

struct CheckpointManifest {
  static constexpr int kVersion = 1;

  struct File {
    std::string name;
    int64_t bytes = 0;
    friend bool operator==(const File&, const File&) = default;
  };
  struct Part {
    size_t file = 0;  // index into `files`
    std::string dataset;
    Region region;
    uint32_t crc32 = 0;        // of the elements as they lie in memory (little-endian)
    int64_t file_offset = -1;  // of its first byte, where they lie so in the file; -1: not known
    friend bool operator==(const Part&, const Part&) = default;

    // DataError, naming `path` and the part, unless `sum` is its checksum.
    void compare(uint32_t sum, const std::string& path) const;
  };
  struct TensorEntry {
    DType dtype = DType::kF32;
    Shape shape;
    std::vector<Part> parts;
    friend bool operator==(const TensorEntry&, const TensorEntry&) = default;
  };
  struct Attachment {
    std::string name;
    int64_t bytes = 0;
    uint32_t crc32 = 0;
    friend bool operator==(const Attachment&, const Attachment&) = default;
  };

  nlohmann::json metadata;
  std::vector<File> files;
  std::map<std::string, TensorEntry> tensors;
  std::vector<Attachment> attachments;

  // DataError naming the tensor unless its parts cover it once: nothing missing, nothing twice.
  void check_coverage() const;

  std::string text() const;
  // DataError with `place` on anything but a whole manifest of a version this program reads.
  static CheckpointManifest parse(std::string_view text, const std::string& place);
};

// Names of tensors and attachments: 1 to 200 characters of [A-Za-z0-9._-] in components joined by
// '/'; no component is empty, "." or "..".
bool valid_checkpoint_name(std::string_view name);

// A rank's share of the manifest while it travels: its file, if it wrote one, and its parts.
nlohmann::json part_to_json(const CheckpointManifest::Part& part);
CheckpointManifest::Part part_from_json(const nlohmann::json& json, const Shape& whole);
nlohmann::json shape_to_json(const Shape& shape);
Shape shape_from_json(const nlohmann::json& json);
DType dtype_from_name(std::string_view name);  // DataError if there is none

}  // namespace degu
