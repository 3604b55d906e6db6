// How a matrix's codes are chosen. One source per method; the table is in registry.cc.
#pragma once

#include <span>
#include <string>
#include <string_view>

#include "kernels/api/quantize.h"

namespace degu {

struct BlockProblem;  // compress/block_problem.h

// What calibration measured of the input x that one or more matrices read.
struct InputStatistics {
  AnyView hessian_DD;  // fp32: the sum over rows of x^T x; null: not measured
  int64_t rows = 0;    // how many rows that is
};

struct MethodOptions {
  double damping = 0.01;         // GPTQ: share of the Hessian's mean diagonal added to the diagonal
  bool activation_order = true;  // GPTQ: columns with the largest inputs first
};

// One matrix: what it is and where its codes go.
struct MatrixTask {
  std::string name;     // for messages
  AnyView value_FD;     // fp32
  QuantizedWeight out;  // of the same shape
};

struct QuantizationMethod {
  std::string_view name;
  std::string_view summary;
  bool calibrated;  // needs input statistics
  // Codes of matrices that read the same input. DataError for a value that is not finite.
  void (*choose)(Context& context, const InputStatistics& input, const MethodOptions& options,
                 std::span<const MatrixTask> tasks);
  // Before that, for a whole block: changes values in a way that leaves the model the same function
  // and its codes closer to it. Null: nothing. Collective.
  void (*prepare)(Context& context, BlockProblem& block);
};

std::span<const QuantizationMethod> quantization_methods();
// ConfigError naming the methods there are.
const QuantizationMethod& quantization_method(std::string_view name);
// What is taken when none is named: awq for 4-bit codes, rtn for all others.
const QuantizationMethod& default_method(Scheme scheme);

// Round to nearest (rtn.cc).
void choose_rtn(Context& context, const InputStatistics& input, const MethodOptions& options,
                std::span<const MatrixTask> tasks);

// Round to nearest with the scale of least squared error in each group (mse.cc).
void choose_mse(Context& context, const InputStatistics& input, const MethodOptions& options,
                std::span<const MatrixTask> tasks);

// Activation-aware weight quantization (Lin et al. 2023, arXiv 2306.00978; awq.cc). `prepare` folds
// scales of input channels into what produces them; `choose` searches each group's scale for the
// least error of the product on the calibration rows, and takes it for a row of the matrix where it
// is better than round to nearest.
void choose_awq(Context& context, const InputStatistics& input, const MethodOptions& options,
                std::span<const MatrixTask> tasks);
void prepare_awq(Context& context, BlockProblem& block);

// Columns one by one, each rounding's error made up for by the columns still to come (GPTQ, Frantar
// et al. 2022, arXiv 2210.17323; gptq.cc).
void choose_gptq(Context& context, const InputStatistics& input, const MethodOptions& options,
                 std::span<const MatrixTask> tasks);

// DataError naming the matrix if one of its values is not finite.
void check_finite(Context& context, const MatrixTask& task);

}  // namespace degu
