// Memory for activations and scratch, laid out before the loop and never grown in it.
//
// An arena reserves address space for its worst case at once and hands out 64-byte aligned pieces
// from a bump pointer; pages that no step touches are never backed by memory. `mark`/`release` give
// stack discipline to scratch. On an accelerator the worst case is allocated at once, zeroed, and
// pieces are 256-byte aligned; what one operator released the next may take, for both run in the
// order of one stream.
#pragma once

#include <cstddef>
#include <cstdint>

#include "tensor/view.h"

namespace degu {

class Arena {
 public:
  Arena() = default;
  // DeviceError when `device` has not that much memory left.
  explicit Arena(size_t reserve_bytes, DeviceType device = DeviceType::kCpu);
  // An arena without memory that only counts: run a layout on it, then reserve `used()` bytes.
  static Arena measuring(DeviceType device = DeviceType::kCpu);
  Arena(Arena&&) noexcept;
  Arena& operator=(Arena&&) noexcept;
  Arena(const Arena&) = delete;
  ~Arena();

  // Uninitialised memory. Throws ShapeError with both sizes when the reservation is exhausted.
  void* take_bytes(size_t bytes);
  AnyView take(DType type, Shape shape) {
    const size_t bytes = static_cast<size_t>(shape.elements()) * size_of(type);
    return {take_bytes(bytes), type, shape, device_};
  }
  template <class T>
  View<T> take(Shape shape) {
    return take(dtype_of<T>, shape).template as<T>();
  }

  DeviceType device() const { return device_; }
  size_t mark() const { return used_; }
  void release(size_t mark) { used_ = mark; }
  size_t used() const { return used_; }
  size_t peak() const { return peak_; }
  size_t capacity() const { return capacity_; }

 private:
  std::byte* base_ = nullptr;
  size_t capacity_ = 0;
  size_t used_ = 0;
  size_t peak_ = 0;
  bool measuring_ = false;
  DeviceType device_ = DeviceType::kCpu;
};

// Gives back to the arena, at the end of the scope, what the scope took from it.
class ScratchScope {
 public:
  explicit ScratchScope(Arena& arena) : arena_(arena), mark_(arena.mark()) {}
  ~ScratchScope() { arena_.release(mark_); }
  ScratchScope(const ScratchScope&) = delete;
  ScratchScope& operator=(const ScratchScope&) = delete;

 private:
  Arena& arena_;
  size_t mark_;
};

}  // namespace degu
