// A training checkpoint to one that is served: codes and scales, tensor by tensor.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "compress/calibration.h"
#include "compress/method.h"
#include "compress/policy.h"
#include "model/load.h"

namespace degu {

struct QuantizeOptions {
  QuantizationPolicy policy;
  std::string method;  // "": the scheme's default
  MethodOptions method_options;
  CalibrationOptions calibration;  // read where the method is calibrated
  // Called as work proceeds; null: nobody wants to know.
  std::function<void(int64_t done, int64_t total, const std::string& note)> progress;
};

struct QuantizeReport {
  std::string method;
  int64_t calibration_tokens = 0;        // 0: the method needs none
  std::vector<ExpertCoverage> coverage;  // per MoE layer
  int layers_resumed = 0;                // taken from partial results of an earlier start
};

// One line of an audit. Bytes are what the checkpoint stores of the tensor, scales included.
struct TensorAudit {
  std::string name;
  Scheme planned = Scheme::kFp32;
  Scheme stored = Scheme::kFp32;
  int64_t elements = 0;
  int64_t bytes = 0;
  bool fixed = false;  // not quantizable: router, norm, state

  double bits() const { return 8.0 * static_cast<double>(bytes) / static_cast<double>(elements); }
};

struct Audit {
  std::vector<TensorAudit> tensors;
  int64_t file_bytes = 0;  // of the folder's data files

  int64_t elements() const;
  int64_t bytes() const;
  double mean_bits() const {
    return 8.0 * static_cast<double>(bytes()) / static_cast<double>(elements());
  }
  double mean_quantized_bits() const;  // over tensors stored as codes; 0 without any
};

// The shape of the model that a checkpoint holds, from its configuration.
ModelShape checkpoint_shape(const CheckpointReader& reader);

// Writes `out` from the fp32 values of `reader`; the folder stands whole or not at all.
// Configuration, tokenizer and metadata are carried over. Without calibration one tensor is in
// memory at a time; with it, one block, its experts spread over the ranks, and every finished block
// is kept in `<out>.layers`, from which the same command goes on after a stop. Tensors have the
// same bits on any number of ranks. ConfigError when the checkpoint is quantized already, or the
// ranks do not divide the experts. Collective.
QuantizeReport quantize_checkpoint(Context& context, Communicator& world, CheckpointReader& reader,
                                   const std::string& out, const QuantizeOptions& options);

// What every tensor of a quantized checkpoint takes. DataError for a tensor that is not held in the
// scheme `policy` meant for it.
Audit audit_checkpoint(const CheckpointReader& reader, const QuantizationPolicy& policy);

}  // namespace degu
