#include "io/checkpoint_stream.h"

#include <algorithm>

#include "io/crc32.h"

namespace degu {
namespace {

constexpr size_t kSkip = size_t{256} << 10;

// Whether the parts can be read as the runs of elements that they are.
bool streams(const CheckpointManifest::TensorEntry& entry) {
  return std::all_of(entry.parts.begin(), entry.parts.end(), [](const auto& part) {
    return part.file_offset >= 0 && run_count(part.region) == 1;
  });
}

}  // namespace

void CheckpointStream::read(const std::string& name, int64_t begin, AnyView out) {
  const CheckpointReader::TensorInfo info = reader_.info(name);
  const int64_t end = begin + out.elements();
  if (info.dtype != out.dtype || begin < 0 || end > info.shape.elements()) {
    throw DataError("{}: tensor '{}' is {} {}; it has no {} [{}, {})", reader_.folder(), name,
                    dtype_name(info.dtype), info.shape.str(), dtype_name(out.dtype), begin, end);
  }
  const CheckpointManifest::TensorEntry& entry = reader_.manifest().tensors.at(name);
  if (!streams(entry)) return reader_.read_range(name, begin, out);
  const auto element = static_cast<int64_t>(size_of(info.dtype));
  auto* target = static_cast<std::byte*>(out.data);
  for (const Part& part : entry.parts) {
    const Run run = runs_of(part.region).front();
    const int64_t from = std::max(begin, run.whole_begin);
    const int64_t to = std::min(end, run.whole_begin + run.count);
    if (from >= to) continue;
    read_piece(part, run.count * element, (from - run.whole_begin) * element,
               {target + (from - begin) * element, static_cast<size_t>((to - from) * element)});
  }
}

void CheckpointStream::finish() {
  for (auto& [part, progress] : begun_) skip(*part, progress, progress.size);
  begun_.clear();
}

// Bytes from `first` on of a part that has `size`.
void CheckpointStream::read_piece(const Part& part, int64_t size, int64_t first,
                                  std::span<std::byte> to) {
  Progress& progress = begun_.try_emplace(&part, Progress{.size = size}).first->second;
  if (first < progress.done) progress = {.size = size};
  skip(part, progress, first);
  advance(part, progress, to);
  if (progress.done == size) begun_.erase(&part);
}

void CheckpointStream::skip(const Part& part, Progress& progress, int64_t until) {
  skipped_.resize(kSkip);
  while (progress.done < until) {
    const auto count = static_cast<size_t>(std::min<int64_t>(kSkip, until - progress.done));
    advance(part, progress, std::span(skipped_).first(count));
  }
}

void CheckpointStream::advance(const Part& part, Progress& progress, std::span<std::byte> to) {
  FileStream& stream =
      streams_.try_emplace(part.file, path_of(part), reader_.shared()).first->second;
  stream.read(part.file_offset + progress.done, to);
  progress.sum = crc32(to.data(), to.size(), progress.sum);
  progress.done += static_cast<int64_t>(to.size());
  if (progress.done == progress.size) part.compare(progress.sum, path_of(part));
}

std::string CheckpointStream::path_of(const Part& part) const {
  return reader_.folder() + "/" + reader_.manifest().files[part.file].name;
}

}  // namespace degu
