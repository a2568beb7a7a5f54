#include "worker/model/checkpoint/checkpoint.h"

#include <algorithm>
#include <tuple>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/digest.h"
#include "worker/model/checkpoint/loader.h"
#include "worker/model/checkpoint/manifest.h"
#include "worker/model/checkpoint/shards.h"

namespace invar {
namespace {

// In the order in which they are loaded: that of the storage, but the largest
// first, so that no thread is left with one of them at the end.
std::vector<LoadTask> MakeTasks(const Shards& shards,
                                const std::vector<TensorSpec>& expected) {
  constexpr int64_t kLargeBytes = int64_t{64} << 20;
  std::vector<LoadTask> tasks;
  for (const TensorSpec& spec : expected) {
    const auto it = shards.tensors.find(spec.name);
    if (it == shards.tensors.end()) continue;  // optional
    tasks.push_back({.spec = &spec, .place = it->second});
  }
  std::sort(tasks.begin(), tasks.end(),
            [](const LoadTask& a, const LoadTask& b) {
              const auto key = [](const LoadTask& task) {
                const Tensor& tensor = *task.place.tensor;
                return std::tuple<bool, const std::string&, int64_t>(
                    tensor.bytes < kLargeBytes, task.place.file->path(),
                    tensor.offset);
              };
              return key(a) < key(b);
            });
  return tasks;
}

// Those that `store` takes.
absl::Status PlaceInStore(std::vector<LoadTask>& tasks, TensorStore& store) {
  std::vector<TensorHeader> headers;
  for (const LoadTask& task : tasks) {
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
absl::StatusOr<TensorMemory> Place(std::vector<LoadTask>& tasks) {
  constexpr int64_t kBlock = FileReader::kBlockBytes;
  int64_t bytes = 0;
  for (LoadTask& task : tasks) {
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
  std::vector<LoadTask> tasks = MakeTasks(*shards, expected);
  if (options.store != nullptr) {
    absl::Status placed = PlaceInStore(tasks, *options.store);
    if (!placed.ok()) return placed;
  }
  absl::StatusOr<TensorMemory> memory = Place(tasks);
  if (!memory.ok()) return memory.status();
  if (auto s = LoadTensors(tasks, *memory, options); !s.ok()) return s;

  Checkpoint checkpoint;
  checkpoint.memory_ = *std::move(memory);
  std::map<std::string, std::string> lines;
  for (LoadTask& task : tasks) {
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
