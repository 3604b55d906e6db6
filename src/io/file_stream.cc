#include "io/file_stream.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <condition_variable>
#include <cstring>
#include <mutex>
#include <thread>
#include <vector>

#include "base/error.h"

namespace degu {
namespace {

constexpr int64_t kPage = 4096;  // what reading past the cache is aligned to
constexpr int64_t kHugePage = int64_t{2} << 20;
constexpr int64_t kSlots = 8;
constexpr int kThreads = 4;
constexpr int64_t kStray = int64_t{64} << 10;  // not worth leaving one's place in the file for
constexpr int64_t kLeastBlock = int64_t{256} << 10;
constexpr int64_t kMostBlock = int64_t{4} << 20;

// Ring and threads cost memory and time of their own; a small file is not worth much of either.
int64_t block_for(int64_t file_bytes) {
  const int64_t wanted = file_bytes / 128 / kLeastBlock * kLeastBlock;
  return std::clamp(wanted, kLeastBlock, kMostBlock);
}

// Private pages, or a shared view of a file; unmapped at the end.
class Mapping {
 public:
  Mapping(int64_t bytes, int protection, int flags, int fd)
      : bytes_(static_cast<size_t>(bytes)),
        memory_(bytes == 0 ? MAP_FAILED : ::mmap(nullptr, bytes_, protection, flags, fd, 0)) {}
  ~Mapping() {
    if (memory_ != MAP_FAILED) ::munmap(memory_, bytes_);
  }
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;

  std::byte* data() const {
    return memory_ == MAP_FAILED ? nullptr : static_cast<std::byte*>(memory_);
  }

 private:
  size_t bytes_;
  void* memory_;
};

class Descriptor {
 public:
  Descriptor(const std::string& path, int flags) : fd_(::open(path.c_str(), flags | O_CLOEXEC)) {}
  ~Descriptor() {
    if (fd_ >= 0) ::close(fd_);
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  int get() const { return fd_; }

 private:
  int fd_;
};

int64_t size_of_file(int fd) {
  struct stat status {};
  return fd >= 0 && ::fstat(fd, &status) == 0 ? status.st_size : 0;
}

}  // namespace

class FileStream::Impl {
 public:
  Impl(const std::string& path, bool shared)
      : path_(path),
        cached_(path, O_RDONLY),
        open_error_(errno),
        direct_(path, O_RDONLY | O_DIRECT),
        shared_(shared),
        bytes_(size_of_file(cached_.get())),
        block_(block_for(bytes_)),
        ring_(kSlots * block_ + kHugePage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1),
        file_(bytes_, PROT_READ, MAP_SHARED, cached_.get()) {
    if (cached_.get() < 0) throw IoError("{}: cannot open: {}", path, std::strerror(open_error_));
    if (ring_.data() == nullptr) throw IoError("{}: no memory to read it through", path);
    // A request into scattered pages goes to the disk in many pieces: measured at a third of the
    // rate that large pages have.
    blocks_ = ring_.data() + (-reinterpret_cast<uintptr_t>(ring_.data()) & (kHugePage - 1));
    ::madvise(blocks_, static_cast<size_t>(kSlots * block_), MADV_HUGEPAGE);
    try {
      for (int i = 0; i < kThreads; ++i) threads_.emplace_back([this] { fetch_blocks(); });
    } catch (...) {
      stop();
      throw;
    }
  }
  ~Impl() { stop(); }

  void read(int64_t begin, std::span<std::byte> to) {
    const auto size = static_cast<int64_t>(to.size());
    if (begin < 0 || size > bytes_ - begin) {
      throw DataError("{}: ends after {} bytes, before byte {}", path_, bytes_, begin + size);
    }
    if (size <= kStray && !fetched(begin, size)) return read_plainly(begin, to);
    for (int64_t done = 0; done < size;) {
      const int64_t at = begin + done;
      const int64_t in_block = at % block_;
      const int64_t count = std::min(size - done, block_ - in_block);
      std::memcpy(to.data() + done, wait_for(at / block_, in_block + count) + in_block,
                  static_cast<size_t>(count));
      done += count;
    }
  }

 private:
  struct Slot {
    int64_t block = -1;  // what is in it, once it is ready
    int64_t bytes = 0;
    int error = 0;
  };

  // Whether the ring holds these bytes or will.
  bool fetched(int64_t begin, int64_t size) {
    const std::scoped_lock lock(mutex_);
    return begin / block_ >= first_ && (begin + size) / block_ < first_ + kSlots;
  }

  void read_plainly(int64_t begin, std::span<std::byte> to) const {
    while (!to.empty()) {
      const ssize_t got = ::pread(cached_.get(), to.data(), to.size(), begin);
      if (got < 0 && errno == EINTR) continue;
      if (got < 0) throw IoError("{}: cannot read: {}", path_, std::strerror(errno));
      if (got == 0) throw DataError("{}: ends before byte {}", path_, begin + to.size());
      to = to.subspan(static_cast<size_t>(got));
      begin += got;
    }
  }

  std::byte* memory_of(int64_t block) const { return blocks_ + block % kSlots * block_; }

  // Of the reader: the memory of `block`, with at least `needed` bytes of it. It stays until a
  // later block is asked for.
  const std::byte* wait_for(int64_t block, int64_t needed) {
    std::unique_lock lock(mutex_);
    if (block < first_ || block >= first_ + kSlots) turn_to(lock, block);
    wanted_.notify_all();
    // Blocks are given up in their order, each once it has come: nobody may still write to a slot
    // that is filled anew.
    const auto here = [&] { return slots_[static_cast<size_t>(first_ % kSlots)].block == first_; };
    for (ready_.wait(lock, here); first_ < block; ready_.wait(lock, here)) {
      ++first_;
      wanted_.notify_all();
    }
    const Slot& slot = slots_[static_cast<size_t>(block % kSlots)];
    if (slot.bytes >= needed) return memory_of(block);
    const int error = slot.error;
    turn_to(lock, block);  // whoever asks again has it fetched again
    if (error != 0) throw IoError("{}: cannot read: {}", path_, std::strerror(error));
    throw DataError("{}: ends before byte {}", path_, block * block_ + needed);
  }

  // Goes on fetching from `block`, when nothing is on its way any more.
  void turn_to(std::unique_lock<std::mutex>& lock, int64_t block) {
    turning_ = true;
    settled_.wait(lock, [&] { return fetching_ == 0; });
    turning_ = false;
    first_ = next_ = block;
    for (Slot& slot : slots_) slot.block = -1;
  }

  void fetch_blocks() {
    std::unique_lock lock(mutex_);
    for (;;) {
      wanted_.wait(lock, [&] {
        return stopping_ || (!turning_ && next_ < first_ + kSlots && next_ * block_ < bytes_);
      });
      if (stopping_) return;
      const int64_t block = next_++;
      Slot& slot = slots_[static_cast<size_t>(block % kSlots)];
      ++fetching_;
      lock.unlock();
      const Slot filled = fetch(block);
      lock.lock();
      --fetching_;
      slot = filled;
      ready_.notify_all();
      if (fetching_ == 0) settled_.notify_all();
    }
  }

  Slot fetch(int64_t block) {
    const int64_t begin = block * block_;
    Slot slot{.block = block, .bytes = 0, .error = 0};
    const int64_t wanted = std::min(block_, bytes_ - begin);
    bool direct = !shared_ && direct_.get() >= 0 && !is_cached(begin, wanted);
    while (slot.bytes < wanted) {
      // Past the cache whole pages are asked for; the last of a file gives what there is.
      const int64_t rest = direct ? block_ - slot.bytes : wanted - slot.bytes;
      const ssize_t got =
          ::pread(direct ? direct_.get() : cached_.get(), memory_of(block) + slot.bytes,
                  static_cast<size_t>(rest), begin + slot.bytes);
      if (got < 0 && errno == EINTR) continue;
      if (direct && (got < 0 || (slot.bytes + got < wanted && got % kPage != 0))) {
        direct = false;  // not as this file system wants it: the plain way tells what is wrong
        continue;
      }
      if (got < 0) slot.error = errno;
      if (got <= 0) break;
      slot.bytes += got;
    }
    return slot;
  }

  // Whether the system holds most of these bytes in memory. Of files that the user may not write it
  // does not tell, and says yes.
  bool is_cached(int64_t begin, int64_t bytes) const {
    if (file_.data() == nullptr) return true;
    const auto pages = static_cast<size_t>((bytes + kPage - 1) / kPage);
    std::array<unsigned char, kMostBlock / kPage> resident{};
    if (::mincore(file_.data() + begin, static_cast<size_t>(bytes), resident.data()) != 0) {
      return true;
    }
    const auto held = std::count_if(resident.begin(), resident.begin() + static_cast<long>(pages),
                                    [](unsigned char page) { return (page & 1) != 0; });
    return static_cast<size_t>(held) > pages / 2;
  }

  void stop() {
    {
      const std::scoped_lock lock(mutex_);
      stopping_ = true;
    }
    wanted_.notify_all();
    for (std::thread& thread : threads_) thread.join();
  }

  const std::string path_;
  const Descriptor cached_;
  const int open_error_;
  const Descriptor direct_;
  const bool shared_;
  const int64_t bytes_;
  const int64_t block_;
  const Mapping ring_;
  std::byte* blocks_ = nullptr;  // in it
  const Mapping file_;           // looked at by is_cached, never read

  std::mutex mutex_;
  std::condition_variable wanted_;   // there are blocks to fetch
  std::condition_variable ready_;    // one has come
  std::condition_variable settled_;  // none is on its way
  std::array<Slot, kSlots> slots_;
  int64_t first_ = 0;     // the reader's block; those before it may be overwritten
  int64_t next_ = 0;      // the first that nobody fetches yet
  int64_t fetching_ = 0;  // blocks on their way
  bool turning_ = false;  // the reader waits until none is
  bool stopping_ = false;
  std::vector<std::thread> threads_;
};

FileStream::FileStream(const std::string& path, bool shared) : impl_(new Impl(path, shared)) {}
FileStream::~FileStream() = default;

void FileStream::read(int64_t begin, std::span<std::byte> to) {
  impl_->read(begin, to);
}

}  // namespace degu
