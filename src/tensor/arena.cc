#include "tensor/arena.h"

#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <utility>

#include "tensor/device.h"

namespace degu {
namespace {

constexpr size_t kAlignment = 64;              // one cache line, one AVX-512 register
constexpr size_t kDeviceAlignment = 256;       // what cudaMalloc promises; two of a GPU's lines
constexpr size_t kHugePage = size_t{2} << 20;  // transparent huge pages bring 5-10 % on streams

size_t round_up(size_t value, size_t unit) {
  return (value + unit - 1) / unit * unit;
}

// Addresses that no process has, for memory that is not there: different ones each time.
std::byte* nowhere(size_t bytes) {
  static std::atomic<uintptr_t> next{uintptr_t{1} << 56};
  return reinterpret_cast<std::byte*>(next.fetch_add(bytes));  // NOLINT: nobody follows it
}

}  // namespace

Arena::Arena(size_t reserve_bytes, DeviceType device)
    : capacity_(round_up(std::max<size_t>(reserve_bytes, 1),
                         device == DeviceType::kCpu ? kHugePage : kDeviceAlignment)),
      device_(device) {
  if (device == DeviceType::kCuda) {
    base_ = static_cast<std::byte*>(allocate_device(device, capacity_));
    return;
  }
  if (device == DeviceType::kPlan) {
    base_ = nowhere(capacity_);
    return;
  }
  void* memory = mmap(nullptr, capacity_, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) {
    throw ShapeError("cannot reserve {} MiB of address space for activations; use a smaller batch",
                     capacity_ >> 20);
  }
  madvise(memory, capacity_, MADV_HUGEPAGE);
  base_ = static_cast<std::byte*>(memory);
}

Arena Arena::measuring(DeviceType device) {
  Arena counter;
  counter.device_ = device;
  counter.measuring_ = true;
  return counter;
}

Arena::Arena(Arena&& other) noexcept {
  *this = std::move(other);
}

Arena& Arena::operator=(Arena&& other) noexcept {
  std::swap(base_, other.base_);
  std::swap(capacity_, other.capacity_);
  std::swap(used_, other.used_);
  std::swap(peak_, other.peak_);
  std::swap(measuring_, other.measuring_);
  std::swap(device_, other.device_);
  return *this;
}

Arena::~Arena() {
  if (base_ == nullptr || device_ == DeviceType::kPlan) return;
  device_ == DeviceType::kCuda ? free_device(device_, base_)
                               : static_cast<void>(munmap(base_, capacity_));
}

void* Arena::take_bytes(size_t bytes) {
  const size_t size = round_up(bytes, device_ == DeviceType::kCpu ? kAlignment : kDeviceAlignment);
  // The request itself, for its rounded size could have wrapped around; capacity and use are whole
  // units.
  if (!measuring_ && bytes > capacity_ - used_) {
    throw ShapeError("arena of {} bytes holds {} and cannot give {} more", capacity_, used_, bytes);
  }
  void* piece = measuring_ ? nullptr : base_ + used_;
  used_ += size;
  peak_ = std::max(peak_, used_);
  return piece;
}

}  // namespace degu
