#include "kernels/cuda/gemm.cuh"

namespace degu::cuda {

template void run_gemm<W8A16Format>(Context&, const GemmArgs&, int64_t, int64_t);

}  // namespace degu::cuda
