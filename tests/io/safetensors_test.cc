#include "io/safetensors.h"

#include <catch2/catch.hpp>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "base/random.h"
#include "io/atomic_file.h"
#include "io/checkpoint.h"
#include "io/exchange.h"
#include "tensor/tensor.h"
#include "tests/support/error_text.h"
#include "tests/support/temporary_folder.h"

namespace degu {
namespace {

namespace fs = std::filesystem;
using test::message;
using test::TemporaryFolder;

bool has(const std::string& text, const std::string& part) {
  INFO("'" << text << "' should contain '" << part << "'");
  CHECK(text.find(part) != std::string::npos);
  return text.find(part) != std::string::npos;
}

Tensor numbers(DType type, Shape shape, float first) {
  Tensor x(type, shape);
  for (int64_t i = 0; i < shape.elements(); ++i) {
    const float value = first + static_cast<float>(i) * 0.37f;
    if (type == DType::kF32) {
      x.as<float>()[i] = value;
    } else {
      x.as<bf16>()[i] = bf16(value);
    }
  }
  return x;
}

void write_two(const std::string& path) {
  SafetensorsWriter writer(
      path, {{"w", DType::kF32, {2, 3}}, {"b", DType::kBF16, {5}}, {"none", DType::kF32, {0}}},
      {{"note", "a \"quoted\" naïve note"}});
  writer.write(numbers(DType::kF32, {2, 3}, 1));
  writer.write(numbers(DType::kBF16, {5}, -2));
  writer.write(Tensor(DType::kF32, {0}));
  writer.finish();
}

TEST_CASE("the file's bytes are those of the format") {
  const TemporaryFolder temporary;
  const std::string path = temporary.path() + "/x.safetensors";
  write_two(path);
  const std::string bytes = read_file(path);
  uint64_t length = 0;
  std::memcpy(&length, bytes.data(), 8);
  CHECK(length % 8 == 0);
  const nlohmann::json header = nlohmann::json::parse(bytes.substr(8, length));
  CHECK(header["w"] ==
        nlohmann::json::parse(R"({"dtype":"F32","shape":[2,3],"data_offsets":[0,24]})"));
  CHECK(header["b"] ==
        nlohmann::json::parse(R"({"dtype":"BF16","shape":[5],"data_offsets":[24,34]})"));
  CHECK(bytes.size() == 8 + length + 34);
  float first = 0;
  std::memcpy(&first, bytes.data() + 8 + length, 4);
  CHECK(first == 1.0f);
}

TEST_CASE("what was written is read") {
  const TemporaryFolder temporary;
  const std::string path = temporary.path() + "/x.safetensors";
  write_two(path);
  SafetensorsReader reader(path);
  REQUIRE(reader.entries().size() == 3);
  CHECK(reader.metadata().at("note") == "a \"quoted\" naïve note");
  Tensor w(DType::kF32, {2, 3});
  Tensor b(DType::kBF16, {5});
  reader.read("b", b);
  reader.read("w", w);
  CHECK(std::memcmp(w.view().data, numbers(DType::kF32, {2, 3}, 1).view().data, w.bytes()) == 0);
  CHECK(std::memcmp(b.view().data, numbers(DType::kBF16, {5}, -2).view().data, b.bytes()) == 0);
  has(message([&] { reader.read("c", b); }), "holds no tensor 'c'");
  has(message([&] { reader.read("w", b); }), "is fp32 [2, 3], not bf16 [5]");
}

TEST_CASE("a writer that is not finished leaves nothing, and keeps to its list") {
  const TemporaryFolder temporary;
  const std::string path = temporary.path() + "/x.safetensors";
  {
    SafetensorsWriter writer(path, {{"w", DType::kF32, {2}}, {"v", DType::kF32, {2}}});
    writer.write(Tensor(DType::kF32, {2}));
    CHECK_THROWS_AS(writer.finish(), ShapeError);
    CHECK_THROWS_AS(writer.write(Tensor(DType::kF32, {3})), ShapeError);
    CHECK_THROWS_AS(writer.write(Tensor(DType::kF32, {2})), ShapeError);
  }
  CHECK(fs::is_empty(temporary.path()));
  CHECK_THROWS_AS(SafetensorsWriter(path, {{"w", DType::kF32, {2}}, {"w", DType::kF32, {2}}}),
                  ShapeError);
  std::ofstream(path) << "a file, not a folder";
  CHECK_THROWS_AS(SafetensorsWriter(path + "/y", {}).finish(), IoError);
}

std::string refusal(const std::string& header, int64_t bytes) {
  return message([&] { SafetensorsReader::parse_header(header, bytes, "f"); });
}

TEST_CASE("inconsistent headers are refused with the reason") {
  const char* a = R"("a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]})";
  CHECK(refusal(fmt::format("{{{}}}", a), 8).empty());
  has(refusal(fmt::format("{{{}}}", a), 7),
      "7 bytes of data where the header says 8: truncated or altered");
  has(refusal(fmt::format("{{{},{}}}", a, a), 8), "appears twice");
  has(refusal(
          fmt::format("{{{},\"b\":{{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[4,8]}}}}", a),
          8),
      "starts at byte 4, the one before it ends at 8");
  has(refusal(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}})", 12),
      "starts at byte 4");
  has(refusal(R"({"a":{"dtype":"F16","shape":[2],"data_offsets":[0,4]}})", 4), "'F16'");
  has(refusal(R"({"a":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}})", 8),
      "bytes 0 to 8 for fp32 of shape [3]");
  has(refusal(R"({"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,8]}})", 8), "whole number");
  has(refusal(R"({"a":{"dtype":"F32","shape":[1,1,1,1,1],"data_offsets":[0,4]}})", 4),
      "at most 4 dimensions");
  has(refusal(R"({"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]}})", 0),
      "2^56");
  has(refusal("[1]", 0), "no JSON object");
  has(refusal("{", 0), "not a safetensors header");
  has(refusal(R"({"__metadata__":{"x":1}})", 0), "not a safetensors header");
}

TEST_CASE("no damaged file does worse than a DataError") {
  const TemporaryFolder temporary;
  const std::string path = temporary.path() + "/x.safetensors";
  write_two(path);
  const std::string bytes = read_file(path);
  uint64_t length = 0;
  std::memcpy(&length, bytes.data(), 8);
  const std::string header = bytes.substr(8, length);
  const char* pieces[] = {
      "-1", "1e99", "18446744073709551615", "null", "[[[[", "{", "}", "\"", "0", "\\u0000", "\xff"};
  int refused = 0;
  for (uint64_t round = 0; round < 20000; ++round) {
    const RandomStream draw(4, "header", round);
    std::string damaged = header;
    for (uint64_t e = 0; e <= draw.below(0, 3); ++e) {
      const size_t at = draw.below(9 * e + 1, damaged.size());
      if (draw.below(9 * e + 2, 2) == 0) {
        damaged[at] = static_cast<char>(draw.below(9 * e + 3, 256));
      } else {
        damaged.replace(at, draw.below(9 * e + 4, 4),
                        pieces[draw.below(9 * e + 5, std::size(pieces))]);
      }
    }
    try {
      SafetensorsReader::parse_header(damaged, 34, "fuzz");
    } catch (const DataError&) {
      ++refused;
    }
  }
  CHECK(refused > 15000);
  for (size_t size = 0; size < bytes.size(); ++size) {
    std::ofstream(path, std::ios::binary | std::ios::trunc) << bytes.substr(0, size);
    REQUIRE_THROWS_AS(SafetensorsReader(path), DataError);
  }
  std::string endless = bytes;
  std::memset(endless.data(), 0xff, 8);
  std::ofstream(path, std::ios::binary | std::ios::trunc) << endless;
  CHECK_THROWS_AS(SafetensorsReader(path), DataError);
}

void write_checkpoint(const std::string& folder) {
  const auto self = make_self_communicator();
  CheckpointWriter writer(*self, folder, {{"next_step", 3}});
  writer.add("model/embedding", numbers(DType::kF32, {4, 2}, 0.5f));
  writer.add("model/layers.0.experts.w", numbers(DType::kF32, {2, 3, 2}, -4));
  writer.add("optimizer/adam_m/embedding", numbers(DType::kF32, {4, 2}, 9));
  writer.attach("config.yaml", "model:\n  layers: 1\n");
  writer.attach("tokenizer.model", "tokens");
  writer.commit();
}

TEST_CASE("a checkpoint goes to safetensors and comes back with its weights, bit for bit") {
  const TemporaryFolder temporary;
  const std::string from = temporary.path() + "/from";
  const std::string file = temporary.path() + "/model.safetensors";
  const std::string to = temporary.path() + "/to";
  write_checkpoint(from);
  const ExchangeSummary out = export_safetensors(from, file, {});
  CHECK(out.tensors == 2);
  CHECK(out.elements == 20);
  CHECK(out.bytes == 80);
  const ExchangeSummary in = import_safetensors(file, to, {.like = from});
  CHECK(in.tensors == 2);
  CheckpointReader reader(to);
  CHECK(reader.list().size() == 2);
  CHECK(reader.attachment("config.yaml") == "model:\n  layers: 1\n");
  CHECK(reader.attachment("tokenizer.model") == "tokens");
  for (const CheckpointReader::TensorInfo& info : reader.list()) {
    Tensor before(DType::kF32, info.shape), after(DType::kF32, info.shape);
    CheckpointReader(from).read(info.name, before);
    reader.read(info.name, after);
    CHECK(std::memcmp(before.view().data, after.view().data, before.bytes()) == 0);
  }
}

TEST_CASE("weights are rounded to bf16 on request; optimizer state is not") {
  const TemporaryFolder temporary;
  const std::string from = temporary.path() + "/from";
  const std::string file = temporary.path() + "/model.safetensors";
  write_checkpoint(from);
  export_safetensors(from, file, {.everything = true, .convert = true, .dtype = DType::kBF16});
  SafetensorsReader reader(file);
  Tensor weights(DType::kBF16, {4, 2});
  reader.read("model/embedding", weights);
  for (int64_t i = 0; i < 8; ++i) {
    CHECK(weights.as<bf16>()[i] == bf16(0.5f + static_cast<float>(i) * 0.37f));
  }
  Tensor moments(DType::kF32, {4, 2});
  reader.read("optimizer/adam_m/embedding", moments);
  export_safetensors(from, file, {.convert = true, .dtype = DType::kBF16});
  import_safetensors(file, temporary.path() + "/to", {});
  CHECK(CheckpointReader(temporary.path() + "/to").info("model/embedding").dtype == DType::kF32);
}

TEST_CASE("an import that does not match its model is refused") {
  const TemporaryFolder temporary;
  const std::string from = temporary.path() + "/from";
  const std::string file = temporary.path() + "/model.safetensors";
  write_checkpoint(from);
  auto write_one = [&](const char* name, DType type, Shape shape) {
    SafetensorsWriter writer(file, {{name, type, shape}});
    writer.write(Tensor(type, shape));
    writer.finish();
  };
  auto imported = [&] {
    return message([&] { import_safetensors(file, temporary.path() + "/to", {.like = from}); });
  };
  write_one("embedding", DType::kF32, {4, 2});
  has(imported(), "'layers.0.experts.w' of " + from + " is missing");
  write_one("embedding", DType::kF32, {2, 4});
  has(imported(), "has shape [2, 4]");
  write_one("embeddings", DType::kF32, {4, 2});
  has(imported(), "'embeddings' is not in");
  write_one("embedding", DType::kI64, {4, 2});
  has(message([&] { import_safetensors(file, temporary.path() + "/to", {}); }),
      "weights are fp32 or bf16");
  CHECK_FALSE(fs::exists(temporary.path() + "/to"));
}

}  // namespace
}  // namespace degu
