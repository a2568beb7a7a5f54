#include "worker/model/testing/large_checkpoint.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <thread>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "worker/model/checkpoint/architecture.h"
#include "worker/model/testing/random_checkpoint.h"

namespace invar::testing {
namespace {

using nlohmann::json;

constexpr int64_t kShardBytes = int64_t{4} << 30;
constexpr int64_t kPieceBytes = int64_t{8} << 20;

// A tensor, and where it goes.
struct Place {
  TensorSpec spec;
  int shard = 0;
  int64_t offset = 0;  // in the shard's data
  int64_t bytes = 0;
};

uint64_t Mix(uint64_t x) {
  x += 0x9e3779b97f4a7c15u;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

const char* DtypeName(TensorKind kind) {
  return kind == TensorKind::kFp8     ? "F8_E4M3"
         : kind == TensorKind::kScale ? "F32"
                                      : "BF16";
}

int64_t Bytes(const TensorSpec& spec) {
  int64_t count = 1;
  for (const int64_t size : spec.shape) count *= size;
  return count * (spec.kind == TensorKind::kFp8     ? 1
                  : spec.kind == TensorKind::kScale ? 4
                                                    : 2);
}

// Each of four bf16 of a word: a random sign and mantissa, and one of the four
// exponents up to `exponent`.
uint64_t Bf16Word(uint64_t random, int exponent) {
  constexpr uint64_t kLanes = 0x0001000100010001u;
  const uint64_t top = static_cast<uint64_t>(exponent + 127) << 7;
  return (kLanes * top - (random & (kLanes * 0x0180))) |
         (random & (kLanes * 0x807f));
}

// Fills `count` words, the first of which is word `first` of the tensor.
void Fill(const TensorSpec& spec, uint64_t seed, int64_t first, int64_t count,
          uint64_t* words) {
  const double width =
      spec.shape.empty() ? 1.0 : static_cast<double>(spec.shape.back());
  const bool embedding = absl::StrContains(spec.name, "embed_tokens");
  const int exponent = static_cast<int>(
      std::lround(std::log2(embedding ? 1.0 : 1.0 / std::sqrt(width))));
  for (int64_t i = 0; i < count; ++i) {
    const uint64_t random = Mix(seed + static_cast<uint64_t>(first + i));
    switch (spec.kind) {
      case TensorKind::kFp8:  // magnitudes below 2, no NaN
        words[i] = random & 0xbfbfbfbfbfbfbfbfu;
        break;
      case TensorKind::kScale: {
        // Inputs up to 9; weights as large as bf16's, since the codes' mean
        // square is that of 0.6.
        const bool input = absl::StrContains(spec.name, "input_scale");
        const float scale = input ? 0.02f : 1.6f / 45.0f;
        std::memcpy(&words[i], &scale, sizeof(scale));
        std::memcpy(reinterpret_cast<char*>(&words[i]) + 4, &scale,
                    sizeof(scale));
        break;
      }
      case TensorKind::kFloat:
        words[i] = spec.shape.size() == 1
                       ? 0x3f803f803f803f80u | (random & 0x000f000f000f000fu)
                       : Bf16Word(random, exponent);
        break;
    }
  }
}

absl::Status SystemError(const std::string& path) {
  return absl::UnknownError(
      absl::StrCat("cannot write ", path, ": ", std::strerror(errno)));
}

class Writer {
 public:
  Writer(const std::string& folder, const ModelConfig& config, uint64_t seed)
      : folder_(folder), seed_(Mix(seed)) {
    for (TensorSpec& spec : ArchitectureTensors(config)) {
      const int64_t bytes = Bytes(spec);
      if (shards_.empty() || shards_.back() + bytes > kShardBytes) {
        shards_.push_back(0);
      }
      const int shard = static_cast<int>(shards_.size()) - 1;
      places_.push_back({std::move(spec), shard, shards_.back(), bytes});
      shards_.back() += bytes;
    }
  }

  absl::Status Run() {
    if (auto status = WriteHeaders(); !status.ok()) return status;
    std::vector<std::thread> threads;
    for (unsigned i = 0; i < std::thread::hardware_concurrency(); ++i) {
      threads.emplace_back([this] { WriteTensors(); });
    }
    for (std::thread& thread : threads) thread.join();
    for (const int file : files_) close(file);
    return failed_ ? SystemError(folder_) : absl::OkStatus();
  }

 private:
  std::string ShardName(size_t shard) const {
    return absl::StrFormat("model-%05d-of-%05d.safetensors", shard + 1,
                           shards_.size());
  }

  absl::Status WriteHeaders() {
    json weight_map = json::object();
    std::vector<json> headers(shards_.size(), json::object());
    for (const Place& place : places_) {
      headers[place.shard][place.spec.name] = {
          {"dtype", DtypeName(place.spec.kind)},
          {"shape", place.spec.shape},
          {"data_offsets", {place.offset, place.offset + place.bytes}}};
      weight_map[place.spec.name] = ShardName(place.shard);
    }
    for (size_t i = 0; i < shards_.size(); ++i) {
      const std::string path = absl::StrCat(folder_, "/", ShardName(i));
      const std::string text = headers[i].dump();
      const uint64_t length = text.size();
      const int file = open(path.c_str(), O_RDWR | O_CREAT | O_TRUNC, 0644);
      if (file < 0) return SystemError(path);
      files_.push_back(file);
      starts_.push_back(static_cast<int64_t>(sizeof(length) + length));
      if (pwrite(file, &length, sizeof(length), 0) < 0 ||
          pwrite(file, text.data(), text.size(), sizeof(length)) < 0 ||
          ftruncate(file, starts_[i] + shards_[i]) != 0) {
        return SystemError(path);
      }
    }
    return WriteFile(absl::StrCat(folder_, "/model.safetensors.index.json"),
                     json{{"weight_map", weight_map}}.dump());
  }

  void WriteTensors() {
    std::vector<uint64_t> words(kPieceBytes / sizeof(uint64_t));
    for (size_t i = next_++; i < places_.size(); i = next_++) {
      const Place& place = places_[i];
      const uint64_t seed = Mix(seed_ + i);
      for (int64_t done = 0; done < place.bytes; done += kPieceBytes) {
        const int64_t bytes = std::min(kPieceBytes, place.bytes - done);
        Fill(place.spec, seed, done / 8, (bytes + 7) / 8, words.data());
        const int64_t at = starts_[place.shard] + place.offset + done;
        if (pwrite(files_[place.shard], words.data(), bytes, at) != bytes) {
          failed_ = true;
          return;
        }
      }
    }
  }

  const std::string folder_;
  const uint64_t seed_;
  std::vector<int64_t> shards_;  // bytes of data
  std::vector<Place> places_;
  std::vector<int> files_;
  std::vector<int64_t> starts_;  // of the data in each
  std::atomic<size_t> next_ = 0;
  std::atomic<bool> failed_ = false;
};

}  // namespace

ModelConfig V2LiteModelConfig(int64_t layers) {
  ModelConfig config = EmbeddedModelConfig();
  config.quantization = {};
  config.vocab_size = 102400;
  config.hidden_size = 2048;
  config.layers = layers;
  config.max_position_embeddings = 163840;
  config.heads = 16;
  config.dense_layers = 1;
  config.intermediate_size = 10944;
  config.moe_intermediate_size = 1408;
  config.shared_experts = 2;
  config.router.experts = 64;
  config.router.top_k = 6;
  config.rope_scaling = {.factor = 40,
                         .original_max_positions = 4096,
                         .mscale = 0.707,
                         .mscale_all_dim = 0.707};
  return config;
}

absl::Status WriteLargeCheckpoint(const std::string& folder,
                                  const ModelConfig& config, uint64_t seed) {
  std::error_code error;
  std::filesystem::create_directories(folder, error);
  absl::Status status =
      WriteFile(absl::StrCat(folder, "/config.json"), ConfigJson(config));
  if (!status.ok()) return status;
  return Writer(folder, config, seed).Run();
}

}  // namespace invar::testing
