#include "model/load.h"

#include <algorithm>
#include <array>
#include <deque>
#include <future>
#include <nlohmann/json.hpp>

#include "io/checkpoint_stream.h"
#include "tensor/device.h"

namespace degu {
namespace {

using Json = nlohmann::json;

constexpr const char* kKey = "quantization";

Scheme scheme_or_throw(const std::string& folder, const std::string& name) {
  if (const std::optional<Scheme> scheme = scheme_named(name)) return *scheme;
  throw DataError("{}: scheme '{}' is unknown to this program", folder, name);
}

// Bytes that are read at once, and packed while the next are read: what stays in the caches between
// the two.
constexpr size_t kBatchBytes = size_t{4} << 20;

// A tensor and where its values, or codes, stand in the checkpoint.
struct Source {
  Parameter* parameter;
  std::string name;
  Scheme scheme;  // of what is stored
  DType type;
  Shape shape;  // of the whole
  Shape local;  // of this rank's part, as numbers
  bool quantized() const { return scheme_info(scheme).quantized(); }
};

// Rows of the first dimension: from `stored` on in the checkpoint, from `first` on in this rank's
// part.
struct Rows {
  int64_t stored = 0;
  int64_t first = 0;
  int64_t count = 0;
};

struct Piece {
  const Source* source = nullptr;
  Rows rows;

  Shape shape() const { return source->shape.with_rows(rows.count); }
  size_t bytes() const { return static_cast<size_t>(shape().elements()) * size_of(source->type); }
};

// A piece as the checkpoint holds it: values, or codes and, for all rows of its tensor, scales.
struct StoredPiece {
  AnyView values;
  std::shared_ptr<bf16[]> scales;
};

void check_stored(const CheckpointReader& reader, const std::string& name, DType type,
                  const Shape& shape) {
  const CheckpointReader::TensorInfo info = reader.info(name);
  if (info.shape == shape && info.dtype == type) return;
  throw DataError("{}: {} is {} {}, the configuration and scheme make it {} {}", reader.folder(),
                  name, dtype_name(info.dtype), info.shape.str(), dtype_name(type), shape.str());
}

Source source_of(const CheckpointReader& reader, const ParameterSet& parameters, Parameter& p,
                 std::string name, Scheme scheme) {
  const SchemeInfo& info = scheme_info(scheme);
  Source source{.parameter = &p,
                .name = std::move(name),
                .scheme = scheme,
                .type = DType::kF32,
                .shape = p.spec.shape,
                .local = p.spec.shape};
  if (info.quantized()) {
    source.type = info.weight;
    source.shape = code_shape(scheme, p.spec.shape);
  } else if (quantizable(p.spec.role)) {
    source.type = reader.info(source.name).dtype;  // any unquantized one
  }
  if (p.spec.role == ParameterRole::kExperts) {
    source.local = source.local.with_rows(parameters.experts().count);
  }
  check_stored(reader, source.name, source.type, source.shape);
  return source;
}

// This rank's rows in the order of the file; those that follow each other there and here as one.
std::vector<Rows> runs_of(const Source& source, const ParameterSet& parameters) {
  const int64_t rows = source.shape[0];
  if (source.parameter->spec.role != ParameterRole::kExperts) return {{0, 0, rows}};
  const auto [begin, count] = parameters.experts();
  const std::span<const int32_t> slot_E =
      parameters.placement().slots(source.parameter->spec.layer);
  if (slot_E.empty()) return {{begin, 0, count}};
  std::vector<Rows> runs;
  for (int64_t e = 0; e < rows; ++e) {
    const int64_t slot = slot_E[static_cast<size_t>(e)] - begin;
    if (slot < 0 || slot >= count) continue;
    if (!runs.empty() && runs.back().stored + runs.back().count == e &&
        runs.back().first + runs.back().count == slot) {
      ++runs.back().count;
    } else {
      runs.push_back({e, slot, 1});
    }
  }
  return runs;
}

// Experts are packed one by one, a matrix in runs of kPackRows; what is not packed stays whole.
void cut(const Source& source, const Rows& run, std::vector<Piece>& pieces) {
  const int64_t unit = source.local.rank() == 2 ? kPackRows : 1;
  const size_t unit_bytes =
      static_cast<size_t>(unit * source.shape.row_elements()) * size_of(source.type);
  const int64_t step =
      source.local.rank() == 1
          ? run.count
          : unit * std::max<int64_t>(1, static_cast<int64_t>(kBatchBytes / unit_bytes));
  for (int64_t at = 0; at < run.count; at += step) {
    pieces.push_back({&source, {run.stored + at, run.first + at, std::min(step, run.count - at)}});
  }
}

AnyView scales_of(const Source& source, bf16* memory) {
  return View<bf16>(memory, scale_shape(source.local));
}

using Batch = std::span<const Piece>;

std::vector<Batch> batches_of(const std::vector<Piece>& pieces) {
  std::vector<Batch> batches;
  size_t begin = 0;
  size_t bytes = 0;
  for (size_t i = 0; i < pieces.size(); ++i) {
    if (i > begin && bytes + pieces[i].bytes() > kBatchBytes) {
      batches.push_back(Batch(pieces).subspan(begin, i - begin));
      begin = i;
      bytes = 0;
    }
    bytes += pieces[i].bytes();
  }
  if (begin < pieces.size()) batches.push_back(Batch(pieces).subspan(begin));
  return batches;
}

// Reads one batch after another, into two places in turn.
class BatchReader {
 public:
  BatchReader(CheckpointReader& reader, const ParameterSet& parameters,
              std::span<const Batch> batches)
      : reader_(reader), parameters_(parameters), stream_(reader) {
    size_t most = 0;
    for (const Batch& batch : batches) {
      Arena memory = Arena::measuring();
      for (const Piece& piece : batch) memory.take_bytes(piece.bytes());
      most = std::max(most, memory.used());
    }
    for (Arena& memory : memory_) memory = Arena(most);
  }

  // The values live until the call after the next.
  std::vector<StoredPiece> read(Batch batch) {
    std::swap(memory_[0], memory_[1]);
    memory_[0].release(0);
    std::vector<StoredPiece> out;
    for (const Piece& piece : batch) {
      const Source& source = *piece.source;
      if (source.quantized() && &source != scaled_) read_scales(source);
      out.push_back({memory_[0].take(source.type, piece.shape()), scales_});
      read_rows(source.name, source.shape, piece.rows.stored, out.back().values);
    }
    return out;
  }
  // DataError when something that was read is not what was written.
  void finish() { stream_.finish(); }

 private:
  // At a tensor's first piece: scales stand before the codes, all in one run (compress/tensors.cc).
  void read_scales(const Source& source) {
    const std::string name = source.name + std::string(kScaleSuffix);
    const Shape shape = scale_shape(source.parameter->spec.shape);
    check_stored(reader_, name, DType::kBF16, shape);
    // From the heap, which hands the same pages out again.
    scales_ = std::make_shared_for_overwrite<bf16[]>(
        static_cast<size_t>(scale_shape(source.local).elements()));
    const AnyView scales = scales_of(source, scales_.get());
    for (const Rows& run : runs_of(source, parameters_)) {
      read_rows(name, shape, run.stored, scales.rows(run.first, run.count));
    }
    scaled_ = &source;
  }

  void read_rows(const std::string& name, const Shape& shape, int64_t row, AnyView out) {
    stream_.read(name, row * shape.row_elements(), out);
  }

  CheckpointReader& reader_;
  const ParameterSet& parameters_;
  CheckpointStream stream_;
  std::array<Arena, 2> memory_{Arena(0), Arena(0)};
  const Source* scaled_ = nullptr;  // whose scales are here
  std::shared_ptr<bf16[]> scales_;
};

void store(Context& context, ParameterSet& parameters, const Piece& piece,
           const StoredPiece& stored) {
  const Source& source = *piece.source;
  Parameter& p = *source.parameter;
  if (p.value) {
    copy(context, stored.values, p.value.rows(piece.rows.first, piece.rows.count));
  } else if (!source.quantized()) {
    parameters.load(context, p, piece.rows.first, stored.values);
  } else {
    parameters.load(
        context, p, piece.rows.first,
        {.scheme = source.scheme,
         .shape = source.local.with_rows(piece.rows.count),
         .codes = stored.values,
         .scales =
             scales_of(source, stored.scales.get()).rows(piece.rows.first, piece.rows.count)});
  }
}

}  // namespace

std::optional<QuantizationInfo> quantization_of(const CheckpointReader& reader) {
  const Json& metadata = reader.metadata();
  if (!metadata.contains(kKey)) return std::nullopt;
  QuantizationInfo info;
  try {
    const Json& entry = metadata.at(kKey);
    info.scheme = scheme_or_throw(reader.folder(), entry.at("scheme").get<std::string>());
    info.method = entry.at("method").get<std::string>();
    if (const auto group = entry.at("group").get<int64_t>(); group != kScaleGroup) {
      throw DataError("{}: groups of {} codes; this program reads groups of {}", reader.folder(),
                      group, kScaleGroup);
    }
    for (const auto& [name, scheme] : entry.at("tensors").items()) {
      info.tensors[name] = scheme_or_throw(reader.folder(), scheme.get<std::string>());
    }
  } catch (const Json::exception& error) {
    throw DataError("{}: the entry '{}' of the manifest is damaged: {}", reader.folder(), kKey,
                    error.what());
  }
  return info;
}

nlohmann::json to_json(const QuantizationInfo& info) {
  Json tensors = Json::object();
  for (const auto& [name, scheme] : info.tensors) tensors[name] = scheme_info(scheme).name;
  return {{kKey,
           {{"scheme", scheme_info(info.scheme).name},
            {"method", info.method},
            {"group", kScaleGroup},
            {"tensors", std::move(tensors)}}}};
}

void load_parameters(Context& context, CheckpointReader& reader, const SchemeOf& scheme_of,
                     const StoredName& stored_name, ParameterSet& parameters) {
  std::deque<Source> sources;  // pieces point to them
  std::vector<Piece> pieces;
  for (const auto& p : parameters.all()) {
    std::string name = stored_name(p->spec);
    if (name.empty()) continue;
    const Scheme scheme = p->value ? Scheme::kFp32 : scheme_of(p->spec);
    sources.push_back(source_of(reader, parameters, *p, std::move(name), scheme));
    for (const Rows& run : runs_of(sources.back(), parameters)) {
      cut(sources.back(), run, pieces);
    }
  }
  const std::vector<Batch> batches = batches_of(pieces);
  BatchReader stored(reader, parameters, batches);
  std::vector<StoredPiece> present;
  if (!batches.empty()) present = stored.read(batches[0]);
  for (size_t i = 0; i < batches.size(); ++i) {
    std::future<std::vector<StoredPiece>> next;  // nobody else touches the reader meanwhile
    if (i + 1 < batches.size()) {
      next = std::async(std::launch::async, [&, i] { return stored.read(batches[i + 1]); });
    }
    for (size_t j = 0; j < batches[i].size(); ++j) {
      store(context, parameters, batches[i][j], present[j]);
    }
    if (next.valid()) present = next.get();
  }
  stored.finish();
  parameters.pack(context);
}

std::unique_ptr<ParameterSet> load_for_inference(Context& context, CheckpointReader& reader,
                                                 const ModelShape& shape, DType activation,
                                                 ExpertRange experts,
                                                 const ExpertPlacement& placement) {
  const std::optional<QuantizationInfo> quantization = quantization_of(reader);
  if (quantization) activation = DType::kBF16;
  const auto scheme_of = [&](const ParameterSpec& spec) {
    if (!quantization) return training_scheme(activation);
    const auto found = quantization->tensors.find(spec.name);
    if (found == quantization->tensors.end()) {
      throw DataError("{}: the manifest does not say how {} is quantized", reader.folder(),
                      spec.name);
    }
    return found->second;
  };
  auto parameters = std::make_unique<ParameterSet>(context, shape, activation, experts,
                                                   SchemeOf(scheme_of), placement);
  load_parameters(
      context, reader, SchemeOf(scheme_of),
      [](const ParameterSpec& spec) { return std::string(kModelPrefix) + spec.name; }, *parameters);
  return parameters;
}

}  // namespace degu
