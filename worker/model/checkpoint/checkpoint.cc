#include "worker/model/checkpoint/checkpoint.h"

#include <algorithm>
#include <atomic>
#include <bit>
#include <cmath>
#include <cstring>
#include <mutex>
#include <thread>
#include <tuple>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/digest.h"
#include "worker/model/checkpoint/manifest.h"
#include "worker/model/checkpoint/shards.h"

namespace invar {
namespace {

// Read, then hashed and checked while it is in the second-level cache. A tensor
// of at least as many bytes is read in the file's blocks.
constexpr int64_t kChunkBytes = int64_t{1} << 20;
static_assert(kChunkBytes % FileReader::kBlockBytes == 0);

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

// One tensor's way into memory.
struct Task {
  const TensorSpec* spec;
  Shards::Place place;
  int64_t begin = 0;            // in the checkpoint's memory, or
  std::byte* stored = nullptr;  // in the store
  LoadedTensor loaded = {};
  std::string digest = {};  // SHA-256 (hex) of the file's bytes
  absl::Status status = {};

  // Scales become fp32.
  int64_t LoadedBytes() const {
    const Tensor& tensor = *place.tensor;
    return spec->kind == TensorKind::kScale
               ? tensor.bytes / TensorElementBytes(tensor.dtype) * 4
               : tensor.bytes;
  }
  bool InBlocks() const {
    return LoadedBytes() == place.tensor->bytes &&
           place.tensor->bytes >= kChunkBytes;
  }
  // Of its first byte in the file's block.
  int64_t InBlock() const {
    return place.tensor->offset % FileReader::kBlockBytes;
  }
};

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
  explicit ReadAhead(const std::vector<Task>& tasks) : tasks_(tasks) {}

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

  const std::vector<Task>& tasks_;
  std::mutex mutex_;
  size_t task_ = 0;
  int64_t offset_ = 0;  // in the task's tensor
  int64_t asked_ = 0;
};

class Loader {
 public:
  Loader(std::vector<Task>& tasks, const TensorMemory& memory,
         const Checkpoint::Options& options)
      : tasks_(tasks), memory_(memory), options_(options), read_ahead_(tasks) {
    for (const Task& task : tasks_) total_ += task.place.tensor->bytes;
  }

  // All tasks, in their order but side by side; the first that failed.
  absl::Status Run() {
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
    for (const Task& task : tasks_) {
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

  void Work() {
    std::unique_ptr<TensorStore::Copier> copier;
    while (!failed_) {
      const size_t index = next_++;
      if (index >= tasks_.size()) break;
      Task& task = tasks_[index];
      task.status = Load(task, copier);
      if (!task.status.ok()) failed_ = true;
    }
    if (copier == nullptr || failed_) return;
    const absl::Status copied = copier->Finish();
    const std::lock_guard<std::mutex> lock(copied_mutex_);
    copied_.Update(copied);
  }

  absl::Status Load(Task& task, std::unique_ptr<TensorStore::Copier>& copier) {
    const Tensor& tensor = *task.place.tensor;
    task.loaded = {.dtype = tensor.dtype,
                   .shape = tensor.shape,
                   .data = task.stored != nullptr ? task.stored
                                                  : memory_.data() + task.begin,
                   .bytes = task.LoadedBytes()};
    if (task.stored != nullptr && copier == nullptr) {
      auto made = options_.store->NewCopier();
      if (!made.ok()) return made.status();
      copier = *std::move(made);
    }
    // What is hashed and checked is the copy: it is what will be used.
    Sha256 digest;
    int64_t nans = 0;
    for (int64_t begin = 0; begin < tensor.bytes;) {
      const int64_t size = ChunkBytes(task, begin);
      read_ahead_.Advance(done_);
      const absl::StatusOr<char*> chunk =
          task.stored != nullptr ? ReadToRoom(task, begin, size, *copier)
                                 : ReadToPlace(task, begin, size);
      if (!chunk.ok()) return chunk.status();
      digest.Update({*chunk, static_cast<size_t>(size)});
      if (task.spec->kind == TensorKind::kFp8) {
        nans += std::count_if(*chunk, *chunk + size,
                              [](char code) { return (code & 0x7f) == 0x7f; });
      }
      if (task.stored != nullptr) {
        absl::Status copied = copier->Copy(*chunk, size, task.stored + begin);
        if (!copied.ok()) return copied;
      }
      begin += size;
      done_ += size;
      if (options_.progress) options_.progress(done_, total_);
    }
    if (task.stored == nullptr && task.InBlocks()) {
      // What the last block had beyond the tensor.
      char* const data = reinterpret_cast<char*>(task.loaded.data);
      std::fill(data + tensor.bytes, data + TensorMemory::Padded(tensor.bytes),
                '\0');
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
      absl::Status converted = ConvertScales(tensor.bytes, task.loaded);
      if (!converted.ok()) return converted;
    }
    if (options_.discard && task.stored == nullptr) {
      memory_.Release(task.begin, task.begin + task.loaded.bytes);
    }
    return absl::OkStatus();
  }

  // Of the chunk that begins at byte `begin` of the tensor. In blocks, all but
  // the last end where a block does.
  static int64_t ChunkBytes(const Task& task, int64_t begin) {
    const int64_t size =
        task.InBlocks() ? kChunkBytes - (task.InBlock() + begin) % kChunkBytes
                        : kChunkBytes;
    return std::min(size, task.place.tensor->bytes - begin);
  }

  // Reads [begin, begin + size) of the tensor to where it is to lie in memory.
  absl::StatusOr<char*> ReadToPlace(const Task& task, int64_t begin,
                                    int64_t size) const {
    const FileReader& reader = task.place.file->reader();
    const int64_t offset = task.place.tensor->offset + begin;
    char* const chunk = reinterpret_cast<char*>(task.loaded.data) +
                        task.loaded.bytes - task.place.tensor->bytes + begin;
    // Blocks come to lie where a block of memory begins, and go on to where a
    // cache line does: into the place of bytes that have gone on before.
    char* const block = task.InBlocks()
                            ? chunk + task.InBlock() % TensorMemory::kAlignment
                            : chunk;
    const absl::Status read = task.InBlocks()
                                  ? reader.ReadBlocks(offset, size, block)
                                  : reader.Read(offset, size, block);
    if (!read.ok()) return read;
    if (block != chunk) std::memmove(chunk, block, size);
    return chunk;
  }

  // The same on the way to the store.
  static absl::StatusOr<char*> ReadToRoom(const Task& task, int64_t begin,
                                          int64_t size,
                                          TensorStore::Copier& copier) {
    const FileReader& reader = task.place.file->reader();
    const int64_t offset = task.place.tensor->offset + begin;
    const absl::StatusOr<char*> room = copier.Room(kChunkBytes);
    if (!room.ok()) return room.status();
    char* const chunk =
        task.InBlocks() ? *room + offset % FileReader::kBlockBytes : *room;
    const absl::Status read = task.InBlocks()
                                  ? reader.ReadBlocks(offset, size, chunk)
                                  : reader.Read(offset, size, chunk);
    if (!read.ok()) return read;
    return chunk;
  }

  std::vector<Task>& tasks_;
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

// In the order in which they are loaded: that of the storage, but the largest
// first, so that no thread is left with one of them at the end.
std::vector<Task> MakeTasks(const Shards& shards,
                            const std::vector<TensorSpec>& expected) {
  constexpr int64_t kLargeBytes = int64_t{64} << 20;
  std::vector<Task> tasks;
  for (const TensorSpec& spec : expected) {
    const auto it = shards.tensors.find(spec.name);
    if (it == shards.tensors.end()) continue;  // optional
    tasks.push_back({.spec = &spec, .place = it->second});
  }
  std::sort(tasks.begin(), tasks.end(), [](const Task& a, const Task& b) {
    const auto key = [](const Task& task) {
      const Tensor& tensor = *task.place.tensor;
      return std::tuple<bool, const std::string&, int64_t>(
          tensor.bytes < kLargeBytes, task.place.file->path(), tensor.offset);
    };
    return key(a) < key(b);
  });
  return tasks;
}

// Those that `store` takes.
absl::Status PlaceInStore(std::vector<Task>& tasks, TensorStore& store) {
  std::vector<TensorHeader> headers;
  for (const Task& task : tasks) {
    headers.push_back({task.spec, task.place.tensor});
  }
  const auto places = store.Place(headers);
  if (!places.ok()) return places.status();
  for (size_t i = 0; i < tasks.size(); ++i) tasks[i].stored = (*places)[i];
  return absl::OkStatus();
}

// Gives each other task its place, in the order of the tasks. What is read in
// blocks has whole blocks of memory, and lies in the first one as it does in
// the file's, but at a cache line.
absl::StatusOr<TensorMemory> Place(std::vector<Task>& tasks) {
  constexpr int64_t kBlock = FileReader::kBlockBytes;
  int64_t bytes = 0;
  for (Task& task : tasks) {
    if (task.stored != nullptr) continue;
    int64_t size = TensorMemory::Padded(task.LoadedBytes());
    task.begin = bytes;
    if (task.InBlocks()) {
      const int64_t in_block = task.InBlock();
      const int64_t aligned = (bytes + kBlock - 1) / kBlock * kBlock;
      task.begin = aligned + in_block / TensorMemory::kAlignment *
                                 TensorMemory::kAlignment;
      size = aligned - bytes +
             (in_block + task.LoadedBytes() + kBlock - 1) / kBlock * kBlock;
    }
    // A tensor's bytes are in a file, so that its own size does not overflow.
    if (__builtin_add_overflow(bytes, size, &bytes) ||
        bytes > INT64_MAX - kBlock) {
      return absl::InvalidArgumentError(
          absl::StrCat(task.place.file->path(), ": tensor ", task.spec->name,
                       " is more than an address can reach"));
    }
  }
  return TensorMemory::Allocate(bytes);
}

}  // namespace

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
  std::vector<Task> tasks = MakeTasks(*shards, expected);
  if (options.store != nullptr) {
    absl::Status placed = PlaceInStore(tasks, *options.store);
    if (!placed.ok()) return placed;
  }
  absl::StatusOr<TensorMemory> memory = Place(tasks);
  if (!memory.ok()) return memory.status();
  if (auto s = Loader(tasks, *memory, options).Run(); !s.ok()) return s;

  Checkpoint checkpoint;
  checkpoint.memory_ = *std::move(memory);
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
