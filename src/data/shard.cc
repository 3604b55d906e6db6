#include "data/shard.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <functional>
#include <numeric>
#include <utility>

#include "base/error.h"
#include "io/atomic_file.h"
#include "io/hdf5.h"
#include "io/reserve.h"

namespace degu {
namespace {

constexpr const char* kFormat = "degu-shard";
constexpr int kSmallVocab = 1 << 16;        // up to here a token takes two bytes
constexpr size_t kFileOverhead = 64 << 10;  // attributes and object headers, generously

template <class T>
int32_t copy_tokens(const char* from, std::span<int32_t> out) {
  uint32_t largest = 0;
  for (size_t i = 0; i < out.size(); ++i) {
    T token;
    std::memcpy(&token, from + i * sizeof(T), sizeof(T));
    largest = std::max<uint32_t>(largest, token);
    out[i] = static_cast<int32_t>(token);
  }
  return static_cast<int32_t>(std::min<uint32_t>(largest, INT32_MAX));
}

}  // namespace

void ShardContent::clear() {
  tokens.clear();
  offsets.assign(1, 0);
  bytes.clear();
  hashes.clear();
  sources.clear();
  lines.clear();
}

void write_shard(const std::string& path, const ShardLabel& label, const ShardContent& content) {
  AtomicFile target(path);
  const size_t table_bytes =
      content.offsets.size() * (3 * sizeof(int64_t) + sizeof(uint64_t) + sizeof(int32_t));
  h5::File file = h5::File::create(
      target.temporary(),
      static_cast<int64_t>(content.tokens.size() * sizeof(uint32_t) + table_bytes + kFileOverhead));
  file.set_attribute("format", kFormat);
  file.set_attribute("version", kShardVersion);
  file.set_attribute("domain", label.domain);
  file.set_attribute("split", label.split);
  file.set_attribute("index", label.index);
  file.set_attribute("vocab", label.vocab);
  file.set_attribute("tokenizer_sha256", label.tokenizer_sha256);
  file.set_attribute("preparation", label.preparation);
  if (label.vocab <= kSmallVocab) {
    file.write<uint16_t>("tokens",
                         std::vector<uint16_t>(content.tokens.begin(), content.tokens.end()));
  } else {
    file.write<uint32_t>("tokens",
                         std::vector<uint32_t>(content.tokens.begin(), content.tokens.end()));
  }
  file.write<int64_t>("document_offsets", content.offsets);
  file.write<int64_t>("document_bytes", content.bytes);
  file.write<uint64_t>("document_hash", content.hashes);
  file.write<int32_t>("document_source", content.sources);
  file.write<int64_t>("document_line", content.lines);
  file.close();
  release_reserve(target.temporary());
  target.commit();
}

// ---- reading ----

// A read-only mapping of a whole file.
class Shard::Mapping {
 public:
  explicit Mapping(const std::string& path) {
    const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
    if (fd < 0) throw IoError("{}: cannot open: {}", path, std::strerror(errno));
    size_ = static_cast<size_t>(::lseek(fd, 0, SEEK_END));
    void* address = ::mmap(nullptr, size_, PROT_READ, MAP_SHARED, fd, 0);
    const int error = errno;
    ::close(fd);
    if (address == MAP_FAILED) throw IoError("{}: cannot map: {}", path, std::strerror(error));
    address_ = static_cast<const char*>(address);
  }
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;
  ~Mapping() { ::munmap(const_cast<char*>(address_), size_); }
  const char* data() const { return address_; }
  size_t size() const { return size_; }

 private:
  const char* address_;
  size_t size_;
};

Shard::Shard(Shard&&) noexcept = default;
Shard& Shard::operator=(Shard&&) noexcept = default;
Shard::~Shard() = default;

Shard::Shard(const std::string& path) : path_(path) {
  const h5::File file = h5::File::open(path);
  if (!file.has_attribute("format") || file.attribute_text("format") != kFormat) {
    throw DataError("{}: not a degu token shard", path);
  }
  if (const int version = file.attribute<int>("version"); version != kShardVersion) {
    throw DataError("{}: shard version {}, this program reads {}", path, version, kShardVersion);
  }
  label_ = {.domain = file.attribute_text("domain"),
            .split = file.attribute_text("split"),
            .index = file.attribute<int64_t>("index"),
            .vocab = file.attribute<int>("vocab"),
            .tokenizer_sha256 = file.attribute_text("tokenizer_sha256"),
            .preparation = file.attribute_text("preparation")};
  const h5::Dataset tokens = file.dataset("tokens");
  const h5::ElementType type = tokens.element_type();
  if (type != h5::ElementType::kU16 && type != h5::ElementType::kU32) {
    throw DataError("{}: tokens are {}, expected uint16 or uint32", path, h5::element_name(type));
  }
  tokens_ = tokens.rows();
  token_size_ = static_cast<int>(h5::size_of(type));
  offsets_ = file.read<int64_t>("document_offsets");
  const bool ordered = !offsets_.empty() && offsets_.front() == 0 && offsets_.back() == tokens_ &&
                       std::adjacent_find(offsets_.begin(), offsets_.end(),
                                          std::greater_equal<>()) == offsets_.end();
  if (!ordered) {
    throw DataError("{}: document_offsets do not cut {} tokens into documents", path, tokens_);
  }
  const auto bytes = file.read<int64_t>("document_bytes");
  if (static_cast<int64_t>(bytes.size()) != documents()) {
    throw DataError("{}: {} entries in document_bytes for {} documents", path, bytes.size(),
                    documents());
  }
  bytes_ = std::accumulate(bytes.begin(), bytes.end(), int64_t{0});
  if (tokens_ == 0) return;
  if (const auto offset = tokens.file_offset()) {
    mapping_ = std::make_unique<Mapping>(path);
    if (static_cast<size_t>(*offset + tokens_ * token_size_) > mapping_->size()) {
      throw DataError("{}: file is shorter than its tokens", path);
    }
    data_ = mapping_->data() + *offset;
    return;
  }
  // Compressed by another tool, say.
  copy_.resize(static_cast<size_t>(tokens_ * token_size_));
  tokens.read_box({}, {}, type, copy_.data(), tokens_);
  data_ = copy_.data();
}

void Shard::read(int64_t first, std::span<int32_t> out) const {
  if (first < 0 || first + static_cast<int64_t>(out.size()) > tokens_) {
    throw DataError("{}: tokens {} to {} of {} asked for", path_, first,
                    first + static_cast<int64_t>(out.size()), tokens_);
  }
  const char* from = data_ + first * token_size_;
  const int32_t largest =
      token_size_ == 2 ? copy_tokens<uint16_t>(from, out) : copy_tokens<uint32_t>(from, out);
  if (largest >= label_.vocab) {
    throw DataError(
        "{}: token {} near position {} is outside the vocabulary of {}; the file is damaged", path_,
        largest, first, label_.vocab);
  }
}

std::vector<int64_t> Shard::document_bytes() const {
  return h5::File::open(path_).read<int64_t>("document_bytes");
}
std::vector<int32_t> Shard::document_sources() const {
  return h5::File::open(path_).read<int32_t>("document_source");
}
std::vector<int64_t> Shard::document_lines() const {
  return h5::File::open(path_).read<int64_t>("document_line");
}
std::vector<uint64_t> Shard::document_hashes() const {
  return h5::File::open(path_).read<uint64_t>("document_hash");
}

}  // namespace degu
