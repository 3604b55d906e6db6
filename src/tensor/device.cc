#include "tensor/device.h"

#include <algorithm>
#include <cstring>
#include <new>
#include <utility>

namespace degu {

std::unique_ptr<DeviceGraph> DeviceState::capture(const std::function<void()>&) {
  throw DeviceError("this device has no graphs");
}

const int64_t* DeviceState::one_group(int64_t) {
  return nullptr;
}

void DeviceState::count_sync(const char* who) {
  if (capturing_) {
    throw CaptureError("{}: {} makes the host wait for the device, which no graph can hold",
                       at_work(), who);
  }
  if (forbidden_) {
    throw DeviceError("{} made the host wait for the device where no wait is allowed", who);
  }
  ++host_syncs_;
}

void copy(Context& context, AnyView from, AnyView to) {
  if (from.dtype != to.dtype || from.elements() != to.elements()) {
    throw ShapeError("copy: from {} {} to {} {}; types and element counts must agree",
                     dtype_name(from.dtype), from.shape.str(), dtype_name(to.dtype),
                     to.shape.str());
  }
  const bool from_host = from.device == DeviceType::kCpu;
  const bool to_host = to.device == DeviceType::kCpu;
  if ((!from_host && from.device != context.device()) ||
      (!to_host && to.device != context.device())) {
    throw ShapeError("copy: a view is on another device than the context");
  }
  const size_t bytes = from.bytes();
  if (bytes == 0 || from.data == to.data) return;
  if (from_host && to_host) {
    std::memcpy(to.data, from.data, bytes);
  } else if (from_host) {
    context.device_state()->upload(to.data, from.data, bytes);
  } else if (to_host) {
    context.device_state()->download(to.data, from.data, bytes);
  } else {
    context.device_state()->move(to.data, from.data, bytes);
  }
}

void zero(Context& context, AnyView view) {
  if (view.bytes() == 0) return;
  if (view.device == DeviceType::kCpu) {
    std::memset(view.data, 0, view.bytes());
  } else {
    context.device_state()->zero(view.data, view.bytes());
  }
}

Downloads::Downloads(Context& context) : context_(context) {
  if (context.device_state() != nullptr) end_ = context.device_state()->make_mark();
}

Downloads::~Downloads() {
  for (const Piece& piece : pieces_) {
    if (context_.device_state() != nullptr) {
      context_.device_state()->free_host(piece.memory);
    } else {
      ::operator delete(piece.memory);
    }
  }
}

std::byte* Downloads::take(size_t bytes) {
  constexpr size_t kLeast = size_t{1} << 20;
  bytes = (bytes + 15) / 16 * 16;
  while (piece_ < pieces_.size() && used_ + bytes > pieces_[piece_].bytes) {
    ++piece_;
    used_ = 0;
  }
  if (piece_ == pieces_.size()) {
    const size_t all = std::max(bytes, kLeast);
    DeviceState* state = context_.device_state();
    void* memory = state != nullptr ? state->allocate_host(all) : ::operator new(all);
    pieces_.push_back({static_cast<std::byte*>(memory), all});
  }
  return pieces_[piece_].memory + std::exchange(used_, used_ + bytes);
}

AnyView Downloads::add(AnyView from) {
  DEGU_DCHECK(!closed_);
  const AnyView to{take(from.bytes()), from.dtype, from.shape};
  if (from.bytes() == 0) return to;
  if (from.device == DeviceType::kCpu) {
    std::memcpy(to.data, from.data, from.bytes());
  } else {
    context_.device_state()->download_later(to.data, from.data, from.bytes());
  }
  return to;
}

void Downloads::close() {
  if (end_ != nullptr) end_->set();
  closed_ = true;
}

void Downloads::wait() {
  if (!closed_) close();
  if (end_ != nullptr) end_->wait();
}

void Downloads::clear() {
  piece_ = used_ = 0;
  closed_ = false;
}

OnHost::OnHost(Context& context, AnyView view, Unfilled)
    : context_(context), there_(view), host_(view) {
  if (view.device == DeviceType::kCpu || !view) return;
  memory_ = std::make_unique_for_overwrite<std::byte[]>(view.bytes());
  host_ = {memory_.get(), view.dtype, view.shape};
}

OnHost::OnHost(Context& context, AnyView view) : OnHost(context, view, Unfilled{}) {
  if (memory_) copy(context_, there_, host_);
}

OnHost OnHost::unfilled(Context& context, AnyView view) {
  return OnHost(context, view, Unfilled{});
}

void OnHost::put_back() const {
  if (memory_) copy(context_, host_, there_);
}

}  // namespace degu
