// `degu bench checkpoint`: random weights in a scheme's own numbers, so that a model of any size
// can be measured without training it and without an unquantized copy of it.
#include <array>
#include <bit>
#include <cstring>
#include <memory>
#include <nlohmann/json.hpp>

#include "base/random.h"
#include "cli/bench_model.h"
#include "comm/communicator.h"
#include "compress/policy.h"
#include "config/yaml.h"
#include "io/checkpoint.h"
#include "kernels/common/codes.h"
#include "model/load.h"
#include "tensor/tensor.h"
#include "train/train_config.h"

namespace degu {
namespace {

struct Options {
  std::string config;
  std::string scheme = "w8a8";
  std::vector<std::string> set;
  std::string out;
  int64_t seed = 1;
  int threads = 0;
};

constexpr int64_t kPiece = int64_t{1} << 16;  // bytes per task

// Any byte to one that the scheme knows: the few it does not become a neighbour.
uint8_t legal(Codes codes, uint8_t byte) {
  switch (codes) {
    case Codes::kInt4:
      if ((byte & 0x0f) == 0) byte |= 0x01;
      if ((byte & 0xf0) == 0) byte |= 0x10;
      return byte;
    case Codes::kE4M3:
      return (byte & 0x7f) == 0x7f ? static_cast<uint8_t>(byte - 1) : byte;
    default:
      return byte == 0x80 ? uint8_t{0x81} : byte;
  }
}

void fill_codes(Context& context, Codes codes, const RandomStream& stream, AnyView out) {
  auto* bytes = static_cast<uint8_t*>(out.data);
  const auto size = static_cast<int64_t>(out.bytes());
  context.parallel_for((size + kPiece - 1) / kPiece, [&](int64_t task, int) {
    const int64_t end = std::min(size, (task + 1) * kPiece);
    for (int64_t i = task * kPiece; i < end; i += 16) {
      auto words = std::bit_cast<std::array<uint8_t, 16>>(stream.words(static_cast<uint64_t>(i)));
      for (uint8_t& byte : words) byte = legal(codes, byte);
      std::memcpy(bytes + i, words.data(), static_cast<size_t>(std::min<int64_t>(16, end - i)));
    }
  });
}

constexpr double kUniform = 1.7320508;  // of uniform numbers: the largest over standard deviation

// Uniform codes times this give numbers of standard deviation 1.
double unit_scale(Codes codes) {
  return codes == Codes::kE4M3 ? 1.0 / 120.0 : kUniform / largest_code(codes);
}

// Uniform numbers of that standard deviation, 8 for each call of the generator: normal ones would
// take most of the time that a checkpoint of billions takes.
void fill_uniform(Context& context, const RandomStream& stream, double deviation, double mean,
                  View<bf16> out) {
  const double step = deviation * kUniform / 32768;
  context.parallel_for((out.elements() + kPiece - 1) / kPiece, [&](int64_t task, int) {
    const int64_t end = std::min(out.elements(), (task + 1) * kPiece);
    for (int64_t i = task * kPiece; i < end; i += 8) {
      const auto halves =
          std::bit_cast<std::array<uint16_t, 8>>(stream.words(static_cast<uint64_t>(i)));
      for (int64_t j = 0; j < std::min<int64_t>(8, end - i); ++j) {
        const double steps = static_cast<double>(halves[static_cast<size_t>(j)]) - 32767.5;
        out[i + j] = bf16(static_cast<float>(mean + step * steps));
      }
    }
  });
}

template <class T>
void fill_normal(Context& context, const RandomStream& stream, double deviation, double mean,
                 View<T> out) {
  context.parallel_for((out.elements() + kPiece - 1) / kPiece, [&](int64_t task, int) {
    const int64_t end = std::min(out.elements(), (task + 1) * kPiece);
    for (int64_t i = task * kPiece; i < end; ++i) {
      const double noise = deviation > 0 ? stream.normal(static_cast<uint64_t>(i)) : 0.0;
      out[i] = T(static_cast<float>(mean + deviation * noise));
    }
  });
}

void write_tensor(Context& context, const ParameterSpec& spec, Scheme scheme, uint64_t seed,
                  CheckpointWriter& writer) {
  const std::string name = std::string(kModelPrefix) + spec.name;
  const SchemeInfo& info = scheme_info(scheme);
  const RandomStream stream(seed, spec.name);
  if (!info.quantized()) {
    const Tensor value(info.weight, spec.shape);
    const double mean = spec.role == ParameterRole::kGain ? 1.0 : 0.0;
    if (info.weight == DType::kF32) {
      fill_normal(context, stream, spec.init_std, mean, value.as<float>());
    } else {
      fill_uniform(context, stream, spec.init_std, mean, value.as<bf16>());
    }
    writer.add(name, value);
    return;
  }
  const Tensor scales(DType::kBF16, scale_shape(spec.shape));
  const double scale = spec.init_std * unit_scale(info.codes);
  fill_normal(context, RandomStream(seed, spec.name + std::string(kScaleSuffix)), 0.1 * scale,
              scale, scales.as<bf16>());
  writer.add(name + std::string(kScaleSuffix), scales);
  const Tensor codes(info.weight, code_shape(scheme, spec.shape));
  fill_codes(context, info.codes, stream, codes);
  writer.add(name, codes);
}

ExitCode bench_checkpoint(const Options& options) {
  Context context({.threads = options.threads});
  YamlDocument document = YamlDocument::from_file(options.config);
  for (const std::string& assignment : options.set) document.set(assignment);
  RunConfig config = read_config<RunConfig>(document);
  config.model = config.model.resolved();
  const std::vector<ParameterSpec> specs = parameter_specs(config.model);
  const QuantizationPolicy policy{.scheme = *scheme_named(options.scheme), .keep = {}};
  const QuantizationInfo info{
      .scheme = policy.scheme, .method = "random", .tensors = policy.plan(specs)};
  const std::unique_ptr<Communicator> self = make_self_communicator();
  CheckpointWriter writer(*self, options.out, to_json(info));
  int64_t elements = 0;
  for (const ParameterSpec& spec : specs) {
    const auto planned = info.tensors.find(spec.name);
    const Scheme scheme = planned == info.tensors.end() ? Scheme::kFp32 : planned->second;
    write_tensor(context, spec, scheme, static_cast<uint64_t>(options.seed), writer);
    elements += spec.shape.elements();
  }
  writer.attach("config.yaml", to_yaml(config));
  writer.commit();
  fmt::print("{}: {} random weights in {}\n", options.out, elements, options.scheme);
  return ExitCode::kDone;
}

}  // namespace

Action attach_bench_checkpoint(CommandLine& line) {
  auto options = std::make_shared<Options>();
  std::vector<std::string> schemes;
  for (const SchemeInfo& info : kSchemes) {
    if (info.scheme != Scheme::kFp32) schemes.emplace_back(info.name);
  }
  line.option("config", options->config, "a run's YAML; its model: part is what counts").required();
  line.option("--scheme", options->scheme, "what the weights are written in").among(schemes);
  line.option("--set", options->set, "override one key: model.width=256");
  line.option("--out", options->out, "folder of the checkpoint").required();
  line.option("--seed", options->seed, "of the random numbers");
  line.option("--threads", options->threads, "threads; 0: the cores this process may run on");
  return [options] { return bench_checkpoint(*options); };
}

}  // namespace degu
