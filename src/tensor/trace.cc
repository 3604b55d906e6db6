#include "tensor/trace.h"

#include <fmt/format.h>

#include <iterator>

namespace degu {

Trace::Trace(size_t most) : start_(std::chrono::steady_clock::now()), most_(most) {
  spans_.reserve(most);  // nothing is allocated while a step is timed
}

double Trace::now_us() const {
  return std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - start_)
      .count();
}

void Trace::record(const char* name, double begin_us, double end_us) {
  if (spans_.size() == most_) {
    ++left_out_;
    return;
  }
  spans_.push_back({name, begin_us, end_us});
}

std::string Trace::json(int rank) const {
  std::string text = "{\"traceEvents\":[\n";
  for (const Span& span : spans_) {
    fmt::format_to(
        std::back_inserter(text),
        "{{\"name\":\"{}\",\"ph\":\"X\",\"pid\":{},\"tid\":0,\"ts\":{:.3f},\"dur\":{:.3f}}}{}\n",
        span.name, rank, span.begin_us, span.end_us - span.begin_us,
        &span == &spans_.back() ? "" : ",");
  }
  return text + "]}\n";
}

}  // namespace degu
