#include "worker/model/checkpoint/checkpoint.h"

#include <algorithm>
#include <atomic>
#include <bit>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/digest.h"
#include "worker/model/checkpoint/manifest.h"
#include "worker/model/checkpoint/shards.h"

namespace invar {
namespace {

constexpr size_t kAlignment = 64;
// Read, hashed and checked while it is in the second-level cache.
constexpr int64_t kChunkBytes = int64_t{1} << 20;

absl::Status Allocate(int64_t bytes, LoadedTensor& tensor) {
  const size_t capacity =
      (std::max<size_t>(bytes, 1) + kAlignment - 1) / kAlignment * kAlignment;
  tensor.bytes = bytes;
  tensor.data.reset(
      static_cast<std::byte*>(std::aligned_alloc(kAlignment, capacity)));
  if (tensor.data != nullptr) return absl::OkStatus();
  return absl::ResourceExhaustedError(
      absl::StrCat("needs ", bytes, " bytes that memory does not have"));
}

float HalfValue(uint16_t half) {
  const int exponent = half >> 10 & 0x1f;
  const int fraction = half & 0x3ff;
  const float sign = half & 0x8000 ? -1.0f : 1.0f;
  if (exponent == 0x1f) {
    return fraction == 0 ? sign * INFINITY : NAN;
  }
  return sign * (exponent == 0 ? std::ldexp(static_cast<float>(fraction), -24)
                               : std::ldexp(static_cast<float>(1024 + fraction),
                                            exponent - 25));
}

// A scale's elements become fp32, and are checked.
absl::Status ConvertScales(LoadedTensor& tensor) {
  if (tensor.dtype != TensorDtype::kF32) {
    LoadedTensor wide;
    wide.dtype = TensorDtype::kF32;
    wide.shape = tensor.shape;
    if (auto s = Allocate(tensor.bytes * 2, wide); !s.ok()) return s;
    for (int64_t i = 0; i < tensor.bytes / 2; ++i) {
      uint16_t code;
      std::memcpy(&code, tensor.data.get() + 2 * i, sizeof(code));
      const float value =
          tensor.dtype == TensorDtype::kF16
              ? HalfValue(code)
              : std::bit_cast<float>(static_cast<uint32_t>(code) << 16);
      std::memcpy(wide.data.get() + 4 * i, &value, sizeof(value));
    }
    tensor = std::move(wide);
  }
  for (int64_t i = 0; i < tensor.bytes / 4; ++i) {
    float scale;
    std::memcpy(&scale, tensor.data.get() + 4 * i, sizeof(scale));
    if (!(scale > 0.0f) || !std::isfinite(scale)) {
      return absl::InvalidArgumentError(
          absl::StrCat("has ", scale, ", a scale is finite and above 0"));
    }
  }
  return absl::OkStatus();
}

// One tensor's way into memory.
struct Task {
  const TensorSpec* spec;
  Shards::Place place;
  LoadedTensor loaded = {};
  std::string digest = {};  // SHA-256 (hex) of the file's bytes
  absl::Status status = {};
};

class Loader {
 public:
  Loader(std::vector<Task>& tasks, const Checkpoint::Options& options)
      : tasks_(tasks), options_(options) {
    for (const Task& task : tasks_) total_ += task.place.tensor->bytes;
  }

  // All tasks, in their order but side by side; the first that failed.
  absl::Status Run() {
    const int threads =
        options_.threads > 0
            ? options_.threads
            : std::max(4,
                       static_cast<int>(std::thread::hardware_concurrency()));
    std::vector<std::thread> helpers;
    for (int i = 1; i < threads; ++i) {
      helpers.emplace_back([this] { Work(); });
    }
    Work();
    for (std::thread& helper : helpers) helper.join();
    for (const Task& task : tasks_) {
      if (task.status.ok()) continue;
      return absl::Status(
          task.status.code(),
          absl::StrCat(task.place.file->path(), ": tensor ", task.spec->name,
                       " ", task.status.message()));
    }
    return absl::OkStatus();
  }

 private:
  void Work() {
    while (!failed_) {
      const size_t index = next_++;
      if (index >= tasks_.size()) return;
      tasks_[index].status = Load(tasks_[index]);
      if (!tasks_[index].status.ok()) failed_ = true;
    }
  }

  absl::Status Load(Task& task) {
    const Tensor& tensor = *task.place.tensor;
    task.loaded.dtype = tensor.dtype;
    task.loaded.shape = tensor.shape;
    if (auto s = Allocate(tensor.bytes, task.loaded); !s.ok()) return s;
    // What is hashed and checked is the copy: it is what will be used.
    Sha256 digest;
    int64_t nans = 0;
    for (int64_t begin = 0; begin < tensor.bytes; begin += kChunkBytes) {
      const int64_t size = std::min(kChunkBytes, tensor.bytes - begin);
      char* chunk = reinterpret_cast<char*>(task.loaded.data.get()) + begin;
      absl::Status read =
          task.place.file->Read(tensor.offset + begin, size, chunk);
      if (!read.ok()) return read;
      digest.Update({chunk, static_cast<size_t>(size)});
      if (task.spec->kind == TensorKind::kFp8) {
        nans += std::count_if(chunk, chunk + size,
                              [](char code) { return (code & 0x7f) == 0x7f; });
      }
      done_ += size;
      if (options_.progress) options_.progress(done_, total_);
    }
    if (nans != 0) {
      return absl::InvalidArgumentError(
          absl::StrCat("has ", nans, " values that are not numbers"));
    }
    task.digest = digest.HexDigest();
    if (options_.manifest != nullptr) {
      absl::Status same =
          CheckTensor(*options_.manifest, task.spec->name, task.digest);
      if (!same.ok()) return same;
    }
    if (task.spec->kind == TensorKind::kScale) {
      absl::Status converted = ConvertScales(task.loaded);
      if (!converted.ok()) return converted;
    }
    if (options_.discard) task.loaded = {};
    return absl::OkStatus();
  }

  std::vector<Task>& tasks_;
  const Checkpoint::Options& options_;
  int64_t total_ = 0;
  std::atomic<int64_t> done_{0};
  std::atomic<size_t> next_{0};
  std::atomic<bool> failed_{false};
};

}  // namespace

void LoadedTensor::Free::operator()(std::byte* p) const { std::free(p); }

absl::StatusOr<Checkpoint> Checkpoint::Load(
    const std::string& folder, const std::vector<TensorSpec>& expected,
    const Options& options) {
  absl::StatusOr<Shards> shards = OpenShards(folder);
  if (!shards.ok()) return shards.status();
  const auto problems = CheckTable(*shards, expected);
  if (!problems.empty()) return problems.front();
  if (options.manifest != nullptr) {
    absl::Status same = CheckFiles(*options.manifest, folder, *shards);
    if (!same.ok()) return same;
  }
  std::vector<Task> tasks;
  for (const TensorSpec& spec : expected) {
    const auto it = shards->tensors.find(spec.name);
    if (it == shards->tensors.end()) continue;  // optional
    tasks.push_back({.spec = &spec, .place = it->second});
  }
  // In the order of the storage.
  std::sort(tasks.begin(), tasks.end(), [](const Task& a, const Task& b) {
    const auto key = [](const Task& task) {
      return std::pair<const std::string&, int64_t>(task.place.file->path(),
                                                    task.place.tensor->offset);
    };
    return key(a) < key(b);
  });
  if (auto s = Loader(tasks, options).Run(); !s.ok()) return s;

  Checkpoint checkpoint;
  std::map<std::string, std::string> lines;
  for (Task& task : tasks) {
    const Tensor& tensor = *task.place.tensor;
    lines[task.spec->name] =
        absl::StrCat(task.spec->name, " ", TensorDtypeName(tensor.dtype), " ",
                     ShapeString(task.spec->shape), " ", task.digest, "\n");
    checkpoint.tensor_digests_[task.spec->name] = std::move(task.digest);
    checkpoint.tensors_.emplace(task.spec->name, std::move(task.loaded));
  }
  Sha256 digest;
  for (const auto& [name, line] : lines) digest.Update(line);
  checkpoint.digest_ = digest.HexDigest();
  if (options.manifest != nullptr) {
    absl::Status same =
        CheckWeights(*options.manifest, tasks.size(), checkpoint.digest_);
    if (!same.ok()) return same;
  }
  return checkpoint;
}

int64_t Checkpoint::bytes() const {
  int64_t bytes = 0;
  for (const auto& [name, tensor] : tensors_) bytes += tensor.bytes;
  return bytes;
}

}  // namespace invar
