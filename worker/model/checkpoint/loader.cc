#include "worker/model/checkpoint/loader.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <cmath>
#include <cstring>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "worker/model/checkpoint/manifest.h"
#include "worker/model/checkpoint/tensor_digest.h"

namespace invar {
namespace {

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

// A scale's elements, the last `bytes` of its memory, become fp32 where they
// are not, and are checked.
absl::Status ConvertScales(int64_t bytes, LoadedTensor& tensor) {
  const std::byte* from = tensor.data + tensor.bytes - bytes;
  for (int64_t i = 0; i < tensor.bytes / 4; ++i) {
    float scale;
    if (tensor.dtype == TensorDtype::kF32) {
      std::memcpy(&scale, tensor.data + 4 * i, sizeof(scale));
    } else {
      // Ahead of what is written, up to the last.
      uint16_t code;
      std::memcpy(&code, from + 2 * i, sizeof(code));
      scale = tensor.dtype == TensorDtype::kF16
                  ? HalfValue(code)
                  : std::bit_cast<float>(static_cast<uint32_t>(code) << 16);
      std::memcpy(tensor.data + 4 * i, &scale, sizeof(scale));
    }
    if (!(scale > 0.0f) || !std::isfinite(scale)) {
      return absl::InvalidArgumentError(
          absl::StrCat("has ", scale, ", a scale is finite and above 0"));
    }
  }
  tensor.dtype = TensorDtype::kF32;
  return absl::OkStatus();
}

// Has the storage read what the loading threads come to next: its requests
// then are long and in order, whatever the threads ask for.
class ReadAhead {
 public:
  explicit ReadAhead(const std::vector<LoadTask>& tasks) : tasks_(tasks) {}

  // With `done` bytes loaded. Returns at once where another thread is at it.
  void Advance(int64_t done) {
    if (!mutex_.try_lock()) return;
    while (task_ < tasks_.size() && asked_ < done + kAheadBytes) {
      const Shards::Place& place = tasks_[task_].place;
      const int64_t left = place.tensor->bytes - offset_;
      const int64_t size = std::min(kPieceBytes, left);
      place.file->reader().WillNeed(place.tensor->offset + offset_, size);
      asked_ += size;
      offset_ += size;
      if (size < left) continue;
      offset_ = 0;
      ++task_;
    }
    mutex_.unlock();
  }

 private:
  // In the page cache, beside the weights.
  static constexpr int64_t kAheadBytes = int64_t{128} << 20;
  static constexpr int64_t kPieceBytes = int64_t{8} << 20;

  const std::vector<LoadTask>& tasks_;
  std::mutex mutex_;
  size_t task_ = 0;
  int64_t offset_ = 0;  // in the task's tensor
  int64_t asked_ = 0;
};

// One tensor while it is read, hashed and checked, chunk by chunk.
class Run {
 public:
  // `copier` is there if the tensor goes to a store.
  Run(LoadTask& task, const TensorMemory& memory,
      const Checkpoint::Options& options, TensorStore::Copier* copier)
      : task_(task), memory_(memory), options_(options), copier_(copier) {
    const Tensor& tensor = *task.place.tensor;
    task.loaded = {
        .dtype = tensor.dtype,
        .shape = tensor.shape,
        .data = copier != nullptr ? task.stored : memory.data() + task.begin,
        .bytes = task.LoadedBytes()};
  }

  bool done() const { return begin_ == task_.place.tensor->bytes; }
  TensorDigest& digest() { return digest_; }

  // The next chunk. What is hashed and checked is the copy: it is what will be
  // used.
  absl::StatusOr<absl::string_view> Read() {
    const int64_t size = ChunkBytes();
    const absl::StatusOr<char*> chunk =
        copier_ != nullptr ? ReadToRoom(size) : ReadToPlace(size);
    if (!chunk.ok()) return chunk.status();
    return absl::string_view(*chunk, size);
  }

  // With the chunk that was read, and hashed.
  absl::Status Advance(absl::string_view chunk) {
    if (task_.spec->kind == TensorKind::kFp8) {
      nans_ += std::count_if(chunk.begin(), chunk.end(),
                             [](char code) { return (code & 0x7f) == 0x7f; });
    }
    const int64_t size = static_cast<int64_t>(chunk.size());
    if (copier_ != nullptr) {
      absl::Status copied =
          copier_->Copy(chunk.data(), size, task_.stored + begin_);
      if (!copied.ok()) return copied;
    }
    begin_ += size;
    return absl::OkStatus();
  }

  absl::Status Finish() {
    const Tensor& tensor = *task_.place.tensor;
    if (copier_ == nullptr && task_.InBlocks()) {
      // What the last block had beyond the tensor.
      char* const data = reinterpret_cast<char*>(task_.loaded.data);
      std::fill(data + tensor.bytes, data + TensorMemory::Padded(tensor.bytes),
                '\0');
    }
    if (nans_ != 0) {
      return absl::InvalidArgumentError(
          absl::StrCat("has ", nans_, " values that are not numbers"));
    }
    task_.digest = digest_.HexDigest();
    if (options_.manifest != nullptr) {
      absl::Status same =
          CheckTensor(*options_.manifest, task_.spec->name, task_.digest);
      if (!same.ok()) return same;
    }
    if (task_.spec->kind == TensorKind::kScale) {
      absl::Status converted = ConvertScales(tensor.bytes, task_.loaded);
      if (!converted.ok()) return converted;
    }
    if (options_.discard && copier_ == nullptr) {
      memory_.Release(task_.begin, task_.begin + task_.loaded.bytes);
    }
    return absl::OkStatus();
  }

 private:
  // In blocks, all but the last chunk end where a block does.
  int64_t ChunkBytes() const {
    const int64_t size =
        task_.InBlocks()
            ? kLoadChunkBytes - (task_.InBlock() + begin_) % kLoadChunkBytes
            : kLoadChunkBytes;
    return std::min(size, task_.place.tensor->bytes - begin_);
  }

  // Reads the next bytes to where they are to lie in memory.
  absl::StatusOr<char*> ReadToPlace(int64_t size) const {
    char* const chunk = reinterpret_cast<char*>(task_.loaded.data) +
                        task_.loaded.bytes - task_.place.tensor->bytes + begin_;
    // Blocks come to lie where a block of memory begins, and go on to where a
    // cache line does: into the place of bytes that have gone on before.
    char* const block = task_.InBlocks()
                            ? chunk + task_.InBlock() % TensorMemory::kAlignment
                            : chunk;
    const absl::Status read = ReadBytes(size, block);
    if (!read.ok()) return read;
    if (block != chunk) std::memmove(chunk, block, size);
    return chunk;
  }

  // The same on the way to the store.
  absl::StatusOr<char*> ReadToRoom(int64_t size) const {
    const absl::StatusOr<char*> room = copier_->Room(kLoadChunkBytes);
    if (!room.ok()) return room.status();
    char* const chunk =
        task_.InBlocks() ? *room + Offset() % FileReader::kBlockBytes : *room;
    const absl::Status read = ReadBytes(size, chunk);
    if (!read.ok()) return read;
    return chunk;
  }

  // In the file.
  int64_t Offset() const { return task_.place.tensor->offset + begin_; }

  absl::Status ReadBytes(int64_t size, char* to) const {
    const FileReader& reader = task_.place.file->reader();
    return task_.InBlocks() ? reader.ReadBlocks(Offset(), size, to)
                            : reader.Read(Offset(), size, to);
  }

  LoadTask& task_;
  const TensorMemory& memory_;
  const Checkpoint::Options& options_;
  TensorStore::Copier* const copier_;
  TensorDigest digest_;
  int64_t begin_ = 0;  // of the next chunk in the tensor
  int64_t nans_ = 0;
};

class Loader {
 public:
  Loader(std::vector<LoadTask>& tasks, const TensorMemory& memory,
         const Checkpoint::Options& options)
      : tasks_(tasks), memory_(memory), options_(options), read_ahead_(tasks) {
    for (const LoadTask& task : tasks_) total_ += task.place.tensor->bytes;
  }

  absl::Status Load() {
    const int threads =
        options_.threads > 0
            ? options_.threads
            : std::max(kMinThreads,
                       static_cast<int>(std::thread::hardware_concurrency()));
    std::vector<std::thread> helpers;
    for (int i = 1; i < threads; ++i) {
      helpers.emplace_back([this] { Work(); });
    }
    Work();
    for (std::thread& helper : helpers) helper.join();
    for (const LoadTask& task : tasks_) {
      if (task.status.ok()) continue;
      return absl::Status(
          task.status.code(),
          absl::StrCat(task.place.file->path(), ": tensor ", task.spec->name,
                       " ", task.status.message()));
    }
    return copied_;
  }

 private:
  // Of so many, some wait for the storage while others hash.
  static constexpr int kMinThreads = 8;

  // One of the two tensors that a thread hashes at once.
  struct Lane {
    LoadTask* task = nullptr;  // null: there is none left
    std::optional<Run> run;
    absl::string_view chunk;  // read, and not yet hashed
    std::unique_ptr<TensorStore::Copier> copier;
  };

  void Work() {
    std::array<Lane, 2> lanes;
    for (;;) {
      for (Lane& lane : lanes) NextChunk(lane);
      Lane& a = lanes[0];
      Lane& b = lanes[1];
      if (failed_ || (a.task == nullptr && b.task == nullptr)) break;
      if (a.task != nullptr && b.task != nullptr) {
        TensorDigest::UpdateBoth(a.run->digest(), a.chunk, b.run->digest(),
                                 b.chunk);
      } else {
        Lane& one = a.task != nullptr ? a : b;
        one.run->digest().Update(one.chunk);
      }
      for (Lane& lane : lanes) {
        if (lane.task != nullptr) Advance(lane);
      }
    }
    for (Lane& lane : lanes) {
      if (lane.copier == nullptr || failed_) continue;
      const absl::Status copied = lane.copier->Finish();
      const std::lock_guard<std::mutex> lock(copied_mutex_);
      copied_.Update(copied);
    }
  }

  // Of the lane's tensor, or of the next one that has bytes.
  void NextChunk(Lane& lane) {
    while (!failed_) {
      if (lane.task == nullptr && !Take(lane)) return;
      if (!lane.run->done()) {
        read_ahead_.Advance(done_);
        const absl::StatusOr<absl::string_view> chunk = lane.run->Read();
        if (!chunk.ok()) return Fail(lane, chunk.status());
        lane.chunk = *chunk;
        return;
      }
      const absl::Status finished = lane.run->Finish();
      if (!finished.ok()) return Fail(lane, finished);
      lane.task = nullptr;
    }
  }

  // Begins the next tensor, if there is one.
  bool Take(Lane& lane) {
    const size_t index = next_++;
    if (index >= tasks_.size()) return false;
    lane.task = &tasks_[index];
    if (lane.task->stored != nullptr && lane.copier == nullptr) {
      auto made = options_.store->NewCopier();
      if (!made.ok()) {
        Fail(lane, made.status());
        return false;
      }
      lane.copier = *std::move(made);
    }
    lane.run.emplace(
        *lane.task, memory_, options_,
        lane.task->stored != nullptr ? lane.copier.get() : nullptr);
    return true;
  }

  void Advance(Lane& lane) {
    const absl::Status advanced = lane.run->Advance(lane.chunk);
    if (!advanced.ok()) return Fail(lane, advanced);
    done_ += static_cast<int64_t>(lane.chunk.size());
    if (options_.progress) options_.progress(done_, total_);
  }

  void Fail(Lane& lane, const absl::Status& status) {
    lane.task->status = status;
    failed_ = true;
  }

  std::vector<LoadTask>& tasks_;
  const TensorMemory& memory_;
  const Checkpoint::Options& options_;
  ReadAhead read_ahead_;
  int64_t total_ = 0;
  std::atomic<int64_t> done_{0};
  std::atomic<size_t> next_{0};
  std::atomic<bool> failed_{false};
  std::mutex copied_mutex_;
  absl::Status copied_;  // to the store
};

}  // namespace

int64_t LoadTask::LoadedBytes() const {
  const Tensor& tensor = *place.tensor;
  return spec->kind == TensorKind::kScale
             ? tensor.bytes / TensorElementBytes(tensor.dtype) * 4
             : tensor.bytes;
}

absl::Status LoadTensors(std::vector<LoadTask>& tasks,
                         const TensorMemory& memory,
                         const Checkpoint::Options& options) {
  return Loader(tasks, memory, options).Load();
}

}  // namespace invar
