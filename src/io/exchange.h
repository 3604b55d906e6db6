// Checkpoints to and from safetensors files.
#pragma once

#include <cstdint>
#include <string>

#include "tensor/dtype.h"

namespace degu {

struct ExchangeSummary {
  int64_t tensors = 0;
  int64_t elements = 0;
  int64_t bytes = 0;  // of the tensors in the safetensors file
};

struct ExportOptions {
  bool everything = false;     // with the optimizer's state; names then keep their prefix
  bool convert = false;        // floating weights become `dtype`; otherwise as stored
  DType dtype = DType::kBF16;  // fp32 or bf16, rounded to nearest even
};

// Writes the checkpoint's weights (names without "model/") to `path`, one tensor in memory at a
// time. The attachment config.yaml, if there is one, travels in the file's metadata. Errors:
// IoError, DataError; ConfigError when there is nothing to write.
ExchangeSummary export_safetensors(const std::string& checkpoint, const std::string& path,
                                   const ExportOptions& options);

struct ImportOptions {
  std::string like;       // a checkpoint whose weights the new one must match in name and shape
  std::string config;     // file attached as config.yaml; "": from the metadata, else from `like`
  std::string tokenizer;  // file attached as tokenizer.model; "": from `like`
};

// Writes a checkpoint of the weights of a safetensors file. bf16 becomes fp32, which is exact;
// other types than these two are a DataError. It holds no optimizer state: train with --init-from,
// not --resume.
ExchangeSummary import_safetensors(const std::string& path, const std::string& checkpoint,
                                   const ImportOptions& options);

}  // namespace degu
