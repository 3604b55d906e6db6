#include <atomic>
#include <cmath>

#include "compress/method.h"

namespace degu {

void check_finite(Context& context, const MatrixTask& task) {
  const int64_t inner = task.out.inner();
  const auto* values = static_cast<const float*>(task.value_FD.data);
  std::atomic<bool> finite = true;
  context.parallel_for(task.out.rows(), [&](int64_t row, int) {
    for (int64_t i = 0; i < inner; ++i) {
      if (!std::isfinite(values[row * inner + i])) finite = false;
    }
  });
  if (!finite) {
    throw DataError("{} holds an infinity or NaN; it cannot be quantized", task.name);
  }
}

void choose_rtn(Context& context, const InputStatistics&, const MethodOptions&,
                std::span<const MatrixTask> tasks) {
  for (const MatrixTask& task : tasks) {
    check_finite(context, task);
    quantize_weight(context, task.value_FD, task.out);
  }
}

}  // namespace degu
