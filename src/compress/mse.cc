#include "compress/group_scale.h"
#include "compress/method.h"

namespace degu {
namespace {

void choose_one(Context& context, const MatrixTask& task) {
  check_quantized("choose_mse", task.out);
  check_finite(context, task);
  const Codes codes = scheme_info(task.out.scheme).codes;
  const int64_t inner = task.out.inner();
  const int64_t groups = scale_groups(inner);
  const auto* values = static_cast<const float*>(task.value_FD.data);
  auto* stored = static_cast<uint8_t*>(task.out.codes.data);
  auto* scales = static_cast<bf16*>(task.out.scales.data);
  context.parallel_for(task.out.rows(), [&](int64_t row, int) {
    const float* w = values + row * inner;
    uint8_t* to = stored + row * code_bytes(codes, inner);
    for (int64_t g = 0; g < groups; ++g) {
      const int64_t begin = g * kScaleGroup;
      const int64_t end = std::min(inner, begin + kScaleGroup);
      const float scale = least_error_scale(codes, {w + begin, w + end});
      scales[row * groups + g] = bf16(scale);
      for (int64_t i = begin; i < end; ++i) store_code(codes, to, i, code_of(codes, w[i], scale));
    }
  });
}

}  // namespace

void choose_mse(Context& context, const InputStatistics&, const MethodOptions&,
                std::span<const MatrixTask> tasks) {
  for (const MatrixTask& task : tasks) choose_one(context, task);
}

}  // namespace degu
