#include "io/safetensors.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <numeric>
#include <set>
#include <utility>

#include "io/atomic_file.h"

namespace degu {
namespace {

using Json = nlohmann::json;
using OrderedJson = nlohmann::ordered_json;

// The reference implementation refuses longer headers.
constexpr int64_t kMaxHeader = 100'000'000;
constexpr const char* kMetadataKey = "__metadata__";

constexpr std::array kTypes = {std::pair{DType::kF32, "F32"}, std::pair{DType::kBF16, "BF16"},
                               std::pair{DType::kF64, "F64"}, std::pair{DType::kI64, "I64"},
                               std::pair{DType::kI32, "I32"}, std::pair{DType::kI8, "I8"},
                               std::pair{DType::kU8, "U8"}};

const char* type_word(DType type) {
  return std::find_if(kTypes.begin(), kTypes.end(), [&](const auto& t) { return t.first == type; })
      ->second;
}

DType type_of_word(const std::string& word) {
  for (const auto& [type, name] : kTypes) {
    if (word == name) return type;
  }
  throw DataError("element type '{}' is not one of F32, BF16, F64, I64, I32, I8, U8", word);
}

int64_t natural(const Json& json) {
  if (!json.is_number_unsigned() || json.get<uint64_t>() > INT64_MAX) {
    throw DataError("not a whole number from 0 to 2^63 - 1");
  }
  return json.get<int64_t>();
}

Shape shape_of(const Json& json) {
  if (!json.is_array() || json.size() > Shape::kMaxRank) {
    throw DataError("not a shape of at most {} dimensions", Shape::kMaxRank);
  }
  std::array<int64_t, Shape::kMaxRank> d{};
  int64_t elements = 1;
  for (size_t i = 0; i < json.size(); ++i) {
    d[i] = natural(json[i]);
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

int64_t bytes_of(const SafetensorsEntry& entry) {
  return entry.shape.elements() * static_cast<int64_t>(size_of(entry.dtype));
}

struct Placed {
  SafetensorsEntry entry;
  int64_t begin = 0;
};

Placed parse_entry(const std::string& name, const Json& json) {
  try {
    Placed placed{
        {name, type_of_word(json.at("dtype").get<std::string>()), shape_of(json.at("shape"))}};
    const Json& range = json.at("data_offsets");
    if (!range.is_array() || range.size() != 2) throw DataError("data_offsets: not two numbers");
    placed.begin = natural(range[0]);
    const int64_t end = natural(range[1]);
    if (end < placed.begin || end - placed.begin != bytes_of(placed.entry)) {
      throw DataError("bytes {} to {} for {} of shape {}", placed.begin, end,
                      dtype_name(placed.entry.dtype), placed.entry.shape.str());
    }
    return placed;
  } catch (const Json::exception& error) {
    throw DataError("tensor '{}': {}", name, error.what());
  } catch (const DataError& error) {
    throw DataError("tensor '{}': {}", name, error.what());
  }
}

}  // namespace

// ---- writing ----

struct SafetensorsWriter::Impl {
  AtomicFile file;
  int fd = -1;
  std::vector<SafetensorsEntry> entries;
  size_t next = 0;

  explicit Impl(const std::string& path) : file(path) {
    fd = ::open(file.temporary().c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (fd < 0) throw IoError("{}: cannot create: {}", path, std::strerror(errno));
  }
  ~Impl() {
    if (fd >= 0) ::close(fd);
  }
  void put(const void* data, size_t bytes) {
    const char* from = static_cast<const char*>(data);
    while (bytes > 0) {
      const ssize_t written = ::write(fd, from, bytes);
      if (written < 0 && errno == EINTR) continue;
      if (written < 0) throw IoError("{}: cannot write: {}", file.path(), std::strerror(errno));
      from += written;
      bytes -= static_cast<size_t>(written);
    }
  }
};

SafetensorsWriter::SafetensorsWriter(const std::string& path, std::vector<SafetensorsEntry> entries,
                                     const std::map<std::string, std::string>& metadata)
    : impl_(new Impl(path)) {
  OrderedJson header;
  if (!metadata.empty()) header[kMetadataKey] = metadata;
  int64_t begin = 0;
  for (const SafetensorsEntry& entry : entries) {
    if (entry.name == kMetadataKey || header.contains(entry.name)) {
      throw ShapeError("{}: the name '{}' is used twice or reserved", path, entry.name);
    }
    OrderedJson shape = OrderedJson::array();
    for (int i = 0; i < entry.shape.rank(); ++i) shape.push_back(entry.shape[i]);
    const int64_t end = begin + bytes_of(entry);
    header[entry.name] = {
        {"dtype", type_word(entry.dtype)}, {"shape", shape}, {"data_offsets", {begin, end}}};
    begin = end;
  }
  std::string text = header.empty() ? "{}" : header.dump();
  text.resize((text.size() + 7) / 8 * 8, ' ');  // data starts at a multiple of 8
  const uint64_t length = text.size();          // little-endian, as are the tensors
  impl_->put(&length, sizeof(length));
  impl_->put(text.data(), text.size());
  impl_->entries = std::move(entries);
}

SafetensorsWriter::~SafetensorsWriter() = default;

void SafetensorsWriter::write(AnyView tensor) {
  if (impl_->next == impl_->entries.size())
    throw ShapeError("{}: one tensor too many", impl_->file.path());
  const SafetensorsEntry& entry = impl_->entries[impl_->next++];
  if (tensor.dtype != entry.dtype || tensor.shape != entry.shape) {
    throw ShapeError("{}: '{}' is {} {}, not {} {}", impl_->file.path(), entry.name,
                     dtype_name(entry.dtype), entry.shape.str(), dtype_name(tensor.dtype),
                     tensor.shape.str());
  }
  impl_->put(tensor.data, tensor.bytes());
}

void SafetensorsWriter::finish() {
  if (impl_->next != impl_->entries.size()) {
    throw ShapeError("{}: '{}' was not written", impl_->file.path(),
                     impl_->entries[impl_->next].name);
  }
  if (::close(std::exchange(impl_->fd, -1)) != 0) {
    throw IoError("{}: cannot write: {}", impl_->file.path(), std::strerror(errno));
  }
  impl_->file.commit();
}

// ---- reading ----

SafetensorsReader::Header SafetensorsReader::parse_header(std::string_view text, int64_t data_bytes,
                                                          const std::string& place) {
  try {
    // Repeated keys, which the parser would merge, are refused.
    std::set<std::string> seen;
    const auto keys = [&](int depth, Json::parse_event_t event, Json& parsed) {
      if (depth == 1 && event == Json::parse_event_t::key &&
          !seen.insert(parsed.get<std::string>()).second) {
        throw DataError("the name '{}' appears twice", parsed.get<std::string>());
      }
      return true;
    };
    const Json json = Json::parse(text, keys);
    if (!json.is_object()) throw DataError("the header is no JSON object");
    Header header;
    std::vector<Placed> placed;
    for (const auto& [name, value] : json.items()) {
      if (name == kMetadataKey) {
        header.metadata = value.get<std::map<std::string, std::string>>();
      } else {
        placed.push_back(parse_entry(name, value));
      }
    }
    std::sort(placed.begin(), placed.end(), [](const Placed& a, const Placed& b) {
      return std::pair(a.begin, bytes_of(a.entry)) < std::pair(b.begin, bytes_of(b.entry));
    });
    int64_t next = 0;
    for (Placed& tensor : placed) {
      if (tensor.begin != next) {
        throw DataError("tensor '{}' starts at byte {}, the one before it ends at {}",
                        tensor.entry.name, tensor.begin, next);
      }
      next += bytes_of(tensor.entry);
      header.begins.push_back(tensor.begin);
      header.entries.push_back(std::move(tensor.entry));
    }
    if (next != data_bytes) {
      throw DataError("{} bytes of data where the header says {}: truncated or altered", data_bytes,
                      next);
    }
    return header;
  } catch (const Json::exception& error) {
    throw DataError("{}: not a safetensors header: {}", place, error.what());
  } catch (const DataError& error) {
    throw DataError("{}: {}", place, error.what());
  }
}

SafetensorsReader::SafetensorsReader(const std::string& path)
    : path_(path), file_(path, std::ios::binary) {
  if (!file_) throw IoError("{}: cannot open: {}", path, std::strerror(errno));
  std::error_code error;
  const auto size = static_cast<int64_t>(std::filesystem::file_size(path, error));
  if (error) throw IoError("{}: cannot read: {}", path, error.message());
  uint64_t length = 0;
  file_.read(reinterpret_cast<char*>(&length), sizeof(length));
  if (!file_ || length > kMaxHeader || static_cast<int64_t>(length) > size - 8) {
    throw DataError("{}: not a whole safetensors file ({} bytes)", path, size);
  }
  std::string text(length, '\0');
  file_.read(text.data(), static_cast<std::streamsize>(length));
  if (!file_) throw IoError("{}: cannot read the header: {}", path, std::strerror(errno));
  data_start_ = 8 + static_cast<int64_t>(length);
  Header header = parse_header(text, size - data_start_, path);
  entries_ = std::move(header.entries);
  begins_ = std::move(header.begins);
  metadata_ = std::move(header.metadata);
}

void SafetensorsReader::read(const std::string& name, AnyView out) {
  const auto at = std::find_if(entries_.begin(), entries_.end(),
                               [&](const SafetensorsEntry& entry) { return entry.name == name; });
  if (at == entries_.end()) throw DataError("{}: holds no tensor '{}'", path_, name);
  if (at->dtype != out.dtype || at->shape != out.shape) {
    throw DataError("{}: tensor '{}' is {} {}, not {} {}", path_, name, dtype_name(at->dtype),
                    at->shape.str(), dtype_name(out.dtype), out.shape.str());
  }
  if (out.bytes() == 0) return;
  file_.clear();
  file_.seekg(data_start_ + begins_[static_cast<size_t>(at - entries_.begin())]);
  file_.read(static_cast<char*>(out.data), static_cast<std::streamsize>(out.bytes()));
  if (!file_) throw IoError("{}: cannot read tensor '{}': {}", path_, name, std::strerror(errno));
}

}  // namespace degu
