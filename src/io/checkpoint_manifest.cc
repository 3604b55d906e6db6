#include "io/checkpoint_manifest.h"

#include <algorithm>
#include <array>
#include <charconv>

#include "io/crc32.h"

namespace degu {
namespace {

using Json = nlohmann::json;

constexpr std::string_view kFormat = "degu checkpoint";
// The text ends with the checksum of all that stands before it: tail = prefix, 8 hexadecimal
// digits, suffix.
constexpr std::string_view kTailPrefix = ",\n \"crc32\": \"";
constexpr std::string_view kTailSuffix = "\"\n}\n";

// Pieces of a part that are contiguous in the tensor; a bound on what reading a damaged manifest
// may cost.
constexpr int64_t kMaxRuns = int64_t{1} << 24;

std::string hex(uint32_t value) {
  return fmt::format("{:08x}", value);
}

uint32_t from_hex(const std::string& text) {
  uint32_t value = 0;
  const char* end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, value, 16);
  if (text.size() != 8 || error != std::errc() || stop != end)
    throw DataError("'{}' is no checksum", text);
  return value;
}

int64_t natural(const Json& json, const char* what) {
  if (json.is_number_unsigned() && json.get<uint64_t>() <= INT64_MAX) return json.get<int64_t>();
  if (json.is_number_integer() && json.get<int64_t>() >= 0) return json.get<int64_t>();
  throw DataError("{}: not a whole number from 0 to 2^63 - 1", what);
}

constexpr std::array kTypes = {DType::kF32, DType::kBF16, DType::kI8, DType::kU8,
                               DType::kI32, DType::kI64,  DType::kF64};

CheckpointManifest::File file_from_json(const Json& json) {
  CheckpointManifest::File file{json.at("name").get<std::string>(),
                                natural(json.at("bytes"), "bytes")};
  if (!valid_checkpoint_name(file.name) || file.name.find('/') != std::string::npos) {
    throw DataError("'{}' is no file name", file.name);
  }
  return file;
}

CheckpointManifest::TensorEntry tensor_from_json(
    const Json& json, const std::vector<CheckpointManifest::File>& files) {
  CheckpointManifest::TensorEntry tensor;
  tensor.dtype = dtype_from_name(json.at("dtype").get<std::string>());
  tensor.shape = shape_from_json(json.at("shape"));
  for (const Json& entry : json.at("parts")) {
    CheckpointManifest::Part part = part_from_json(entry, tensor.shape);
    if (part.file >= files.size()) throw DataError("file {} of {}", part.file, files.size());
    const int64_t room = files[part.file].bytes -
                         static_cast<int64_t>(size_of(tensor.dtype)) * part.region.elements();
    if (part.file_offset >= 0 && part.file_offset > room) {
      throw DataError("a part at byte {} lies outside its file", part.file_offset);
    }
    tensor.parts.push_back(std::move(part));
  }
  return tensor;
}

CheckpointManifest from_json(const Json& json) {
  if (json.at("format").get<std::string>() != kFormat)
    throw DataError("not a checkpoint's manifest");
  const int64_t version = natural(json.at("version"), "version");
  if (version != CheckpointManifest::kVersion) {
    throw DataError("format version {}, this program reads version {}: use the degu that wrote it",
                    version, CheckpointManifest::kVersion);
  }
  CheckpointManifest manifest;
  manifest.metadata = json.at("metadata");
  for (const Json& entry : json.at("files")) manifest.files.push_back(file_from_json(entry));
  for (const auto& [name, entry] : json.at("tensors").items()) {
    if (!valid_checkpoint_name(name)) throw DataError("'{}' is no tensor name", name);
    try {
      manifest.tensors[name] = tensor_from_json(entry, manifest.files);
    } catch (const DataError& error) {
      throw DataError("tensor '{}': {}", name, error.what());
    }
  }
  for (const Json& entry : json.at("attachments")) {
    CheckpointManifest::Attachment attachment{entry.at("name").get<std::string>(),
                                              natural(entry.at("bytes"), "bytes"),
                                              from_hex(entry.at("crc32").get<std::string>())};
    if (!valid_checkpoint_name(attachment.name))
      throw DataError("'{}' is no attachment", attachment.name);
    manifest.attachments.push_back(std::move(attachment));
  }
  manifest.check_coverage();
  return manifest;
}

}  // namespace

bool valid_checkpoint_name(std::string_view name) {
  if (name.empty() || name.size() > 200) return false;
  size_t begin = 0;
  for (size_t i = 0; i <= name.size(); ++i) {
    if (i < name.size() && name[i] != '/') {
      const char c = name[i];
      const bool letter =
          (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9');
      if (!letter && c != '.' && c != '_' && c != '-') return false;
      continue;
    }
    const std::string_view component = name.substr(begin, i - begin);
    if (component.empty() || component == "." || component == "..") return false;
    begin = i + 1;
  }
  return true;
}

DType dtype_from_name(std::string_view name) {
  for (DType type : kTypes) {
    if (dtype_name(type) == name) return type;
  }
  throw DataError("element type '{}' is unknown", name);
}

Json shape_to_json(const Shape& shape) {
  Json out = Json::array();
  for (int i = 0; i < shape.rank(); ++i) out.push_back(shape[i]);
  return out;
}

Shape shape_from_json(const Json& json) {
  if (!json.is_array() || json.size() > Shape::kMaxRank)
    throw DataError("not a shape of at most {} dimensions", Shape::kMaxRank);
  std::array<int64_t, Shape::kMaxRank> d{};
  int64_t elements = 1;
  for (size_t i = 0; i < json.size(); ++i) {
    d[i] = natural(json[i], "dimension");
    // 2^56 elements of 8 bytes and their sums stay within 63 bits.
    if (d[i] > 0 && elements > (int64_t{1} << 56) / d[i])
      throw DataError("shape of more than 2^56 elements");
    if (d[i] > 0) elements *= d[i];
  }
  switch (json.size()) {
    case 0:
      return {};
    case 1:
      return {d[0]};
    case 2:
      return {d[0], d[1]};
    case 3:
      return {d[0], d[1], d[2]};
    default:
      return {d[0], d[1], d[2], d[3]};
  }
}

Json part_to_json(const CheckpointManifest::Part& part) {
  Json out;
  out["file"] = part.file;
  out["dataset"] = part.dataset;
  if (part.region.flat) {
    out["range"] = {part.region.offset[0], part.region.offset[0] + part.region.extent[0]};
  } else {
    out["offset"] = shape_to_json(part.region.offset);
    out["shape"] = shape_to_json(part.region.extent);
  }
  out["crc32"] = hex(part.crc32);
  if (part.file_offset >= 0) out["file_offset"] = part.file_offset;
  return out;
}

CheckpointManifest::Part part_from_json(const Json& json, const Shape& whole) {
  CheckpointManifest::Part part;
  part.file = static_cast<size_t>(natural(json.at("file"), "file"));
  part.dataset = json.at("dataset").get<std::string>();
  if (json.contains("range")) {
    const Json& range = json.at("range");
    if (!range.is_array() || range.size() != 2) throw DataError("not a range of two numbers");
    const int64_t begin = natural(range[0], "range");
    part.region = Region::range(whole, begin, natural(range[1], "range") - begin);
  } else {
    part.region =
        Region::box(whole, shape_from_json(json.at("offset")), shape_from_json(json.at("shape")));
  }
  if (!part.region.inside())
    throw DataError("a part lies outside the tensor: {}", part.region.str());
  if (run_count(part.region) > kMaxRuns) {
    throw DataError("a part falls into {} pieces: {}", run_count(part.region), part.region.str());
  }
  part.crc32 = from_hex(json.at("crc32").get<std::string>());
  if (json.contains("file_offset")) {
    part.file_offset = natural(json.at("file_offset"), "file_offset");
  }
  return part;
}

void CheckpointManifest::Part::compare(uint32_t sum, const std::string& path) const {
  if (sum == crc32) return;
  throw DataError("{}: '{}' is altered: checksum {} where the manifest says {}", path, dataset,
                  hex(sum), hex(crc32));
}

void CheckpointManifest::check_coverage() const {
  for (const auto& [name, tensor] : tensors) {
    std::vector<Run> runs;
    for (const Part& part : tensor.parts) {
      const std::vector<Run> more = runs_of(part.region);
      runs.insert(runs.end(), more.begin(), more.end());
    }
    std::sort(runs.begin(), runs.end(),
              [](const Run& a, const Run& b) { return a.whole_begin < b.whole_begin; });
    int64_t next = 0;
    for (const Run& run : runs) {
      if (run.whole_begin < next) {
        throw DataError("tensor '{}': element {} is stored twice", name, run.whole_begin);
      }
      if (run.whole_begin > next) break;
      next += run.count;
    }
    if (next != tensor.shape.elements()) {
      throw DataError("tensor '{}' of shape {}: element {} is stored nowhere", name,
                      tensor.shape.str(), next);
    }
  }
}

std::string CheckpointManifest::text() const {
  Json json;
  json["format"] = kFormat;
  json["version"] = kVersion;
  json["metadata"] = metadata;
  json["files"] = Json::array();
  for (const File& file : files)
    json["files"].push_back({{"name", file.name}, {"bytes", file.bytes}});
  json["tensors"] = Json::object();
  for (const auto& [name, tensor] : tensors) {
    Json& entry = json["tensors"][name];
    entry["dtype"] = dtype_name(tensor.dtype);
    entry["shape"] = shape_to_json(tensor.shape);
    entry["parts"] = Json::array();
    for (const Part& part : tensor.parts) entry["parts"].push_back(part_to_json(part));
  }
  json["attachments"] = Json::array();
  for (const Attachment& a : attachments) {
    json["attachments"].push_back({{"name", a.name}, {"bytes", a.bytes}, {"crc32", hex(a.crc32)}});
  }
  std::string body = json.dump(1);
  body.resize(body.size() - 2);  // without the closing "\n}"
  return fmt::format("{}{}{}{}", body, kTailPrefix, hex(crc32(body)), kTailSuffix);
}

CheckpointManifest CheckpointManifest::parse(std::string_view text, const std::string& place) {
  const size_t tail = kTailPrefix.size() + 8 + kTailSuffix.size();
  try {
    if (text.size() <= tail || !text.ends_with(kTailSuffix) ||
        text.substr(text.size() - tail, kTailPrefix.size()) != kTailPrefix) {
      throw DataError("truncated or altered");
    }
    const std::string_view body = text.substr(0, text.size() - tail);
    const std::string stored(text.substr(text.size() - tail + kTailPrefix.size(), 8));
    if (crc32(body) != from_hex(stored)) {
      throw DataError("altered: checksum {} where {} is stored", hex(crc32(body)), stored);
    }
    return from_json(Json::parse(text));
  } catch (const Json::exception& error) {
    throw DataError("{}: not a checkpoint's manifest: {}", place, error.what());
  } catch (const DataError& error) {
    throw DataError("{}: {}", place, error.what());
  }
}

}  // namespace degu
