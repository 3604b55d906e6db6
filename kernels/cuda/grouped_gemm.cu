#include "kernels/tables/grouped_gemm.h"

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/table.h"
#include "kernels/cuda/weight_layout.cuh"

namespace degu {
namespace {

using namespace degu::cuda;

// Groups that may have rows.
int64_t filled_groups(const RowGroups& groups) {
  if (groups.device_offsets != nullptr) return groups.groups();
  int64_t filled = 0;
  for (int64_t g = 0; g < groups.groups(); ++g) filled += groups.end(g) > groups.begin(g) ? 1 : 0;
  return filled;
}

template <class T>
bool rows_vectored(const AnyView& rows, const void* other) {
  return vectored<T>(rows.dim(0), rows.dim(1), {rows.data, other});
}

bool rows_vectored(const AnyView& rows, const void* other = nullptr) {
  switch (rows.dtype) {
    case DType::kF32:
      return rows_vectored<float>(rows, other);
    case DType::kBF16:
      return rows_vectored<bf16>(rows, other);
    default:
      return rows_vectored<int8_t>(rows, other);
  }
}

void forward(Context& context, const Activation& x, const PackedWeight& w, const RowGroups& groups,
             AnyView y, const Epilogue& epilogue) {
  if (groups.rows() == 0 || w.outputs == 0) return;
  constexpr int64_t kMost = int64_t{1} << 28;
  if (w.outputs > kMost) CudaState::refuse("grouped_gemm", "outputs", w.outputs, kMost);
  if (w.inner > kMost) CudaState::refuse("grouped_gemm", "inner dimension", w.inner, kMost);
  ScratchScope scope(context.scratch());
  const AnyView& add = epilogue.add_RF;
  const GemmArgs args{
      .x = static_cast<const std::byte*>(x.values.data),
      .x_scales = static_cast<const float*>(x.scales.data),
      .x_row_bytes = x.values.dim(1) * static_cast<int64_t>(size_of(x.values.dtype)),
      .w = static_cast<const std::byte*>(w.bytes),
      .offsets = on_device(context, groups.offsets, groups.device_offsets),
      .y = y.data,
      .add = add.data,
      .narrow = y.dtype == DType::kBF16,
      .x_vector = rows_vectored(x.values),
      .y_vector = rows_vectored(y, add.data),
      .groups = static_cast<int>(groups.groups()),
      .outputs = static_cast<int>(w.outputs),
      .inner = static_cast<int>(w.inner),
      .scale_groups = static_cast<int>(scale_groups(w.inner))};
  visit_format(w.scheme, [&]<class Format>() {
    run_gemm<Format>(context, args, groups.rows(), filled_groups(groups));
  });
}

}  // namespace

template <>
const GroupedGemmKernels cuda::Table<GroupedGemmKernels>::value = {&forward};

}  // namespace degu
