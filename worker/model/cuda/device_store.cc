#include "worker/model/cuda/device_store.h"

#include <array>
#include <cstdint>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/strip.h"
#include "worker/model/checkpoint/gpu_support.h"
#include "worker/model/cuda/step_memory.h"

namespace invar::cuda {
namespace {

constexpr char kCopying[] = "copying weights to the device";

// Two rooms: one is read into while the device reads the other.
class DeviceCopier final : public TensorStore::Copier {
 public:
  ~DeviceCopier() override {
    for (const Half& room : rooms_) cudaStreamSynchronize(room.stream.get());
  }

  absl::StatusOr<char*> Room(int64_t bytes) override {
    at_ = (at_ + 1) % rooms_.size();
    Half& room = rooms_[at_];
    const absl::Status free =
        ToStatus(cudaStreamSynchronize(room.stream.get()), kCopying);
    if (!free.ok()) return free;
    if (room.bytes < bytes) {
      auto made = PinnedBuffer<char>::Allocate(bytes);  // whole pages
      if (!made.ok()) return made.status();
      room.buffer = *std::move(made);
      room.bytes = bytes;
    }
    return room.buffer.data();
  }

  absl::Status Copy(const char* from, int64_t bytes, std::byte* to) override {
    return ToStatus(cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice,
                                    rooms_[at_].stream.get()),
                    kCopying);
  }

  absl::Status Finish() override {
    absl::Status status;
    for (const Half& room : rooms_) {
      status.Update(
          ToStatus(cudaStreamSynchronize(room.stream.get()), kCopying));
    }
    return status;
  }

 private:
  struct Half {
    Stream stream;
    PinnedBuffer<char> buffer;
    int64_t bytes = 0;
  };
  std::array<Half, 2> rooms_;
  size_t at_ = 0;
};

}  // namespace

absl::StatusOr<std::vector<std::byte*>> DeviceStore::Place(
    const std::vector<TensorHeader>& tensors) {
  const std::vector<absl::Status> problems = CheckGpu(config_, tensors);
  if (!problems.empty()) return problems.front();
  // Name of a stack -> place in it -> which of `tensors`.
  std::map<std::string, std::map<int64_t, size_t>> stacks;
  int64_t all_bytes = 0;
  for (size_t i = 0; i < tensors.size(); ++i) {
    all_bytes += tensors[i].tensor->bytes;
    absl::string_view module = tensors[i].spec->name;
    if (tensors[i].spec->shape.size() != 2 ||
        !absl::ConsumeSuffix(&module, ".weight") ||
        absl::EndsWith(module, ".kv_b_proj") ||
        absl::EndsWith(module, ".mlp.gate") ||
        (module == "model.embed_tokens" && config_.tie_word_embeddings)) {
      continue;
    }
    const StackPlace place = StackOf({module.data(), module.size()});
    stacks[place.stack][place.index] = i;
  }
  size_t free = 0;
  size_t total = 0;
  const absl::Status asked =
      ToStatus(cudaMemGetInfo(&free, &total), "asking for the device's memory");
  if (!asked.ok()) return asked;
  const absl::Status fits =
      CheckWeightsFit(all_bytes, static_cast<int64_t>(free));
  if (!fits.ok()) return fits;
  std::vector<std::byte*> places(tensors.size(), nullptr);
  for (const auto& [name, parts] : stacks) {
    int64_t bytes = 0;
    for (const auto& [index, i] : parts) bytes += tensors[i].tensor->bytes;
    auto buffer = DeviceBuffer<std::byte>::Allocate(bytes, name);
    if (!buffer.ok()) return buffer.status();
    std::byte* const begin = buffer->data();
    std::byte* to = begin;
    for (const auto& [index, i] : parts) {
      places[i] = to;
      to += tensors[i].tensor->bytes;
    }
    stacks_[begin] = {name, *std::move(buffer)};
  }
  return places;
}

absl::StatusOr<std::unique_ptr<TensorStore::Copier>> DeviceStore::NewCopier() {
  const absl::Status chosen =
      ToStatus(cudaSetDevice(device_), "choosing the device");
  if (!chosen.ok()) return chosen;
  return std::make_unique<DeviceCopier>();
}

DeviceBuffer<std::byte> DeviceStore::Take(const std::byte* first) {
  const auto it = stacks_.find(first);
  if (it == stacks_.end()) return {};
  DeviceBuffer<std::byte> buffer = std::move(it->second.buffer);
  stacks_.erase(it);
  return buffer;
}

std::string DeviceStore::Left() const {
  return stacks_.empty() ? "" : stacks_.begin()->second.name;
}

}  // namespace invar::cuda
