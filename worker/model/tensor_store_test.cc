// Every byte of a tensor comes to its place, in the host's memory or a store's.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <list>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "worker/model/checkpoint/architecture.h"
#include "worker/model/checkpoint/checkpoint.h"
#include "worker/model/model.h"
#include "worker/model/testing/load_test_case.h"
#include "worker/model/weights.h"

namespace invar {
namespace {

using ::testing::AllOf;
using testing::Find;
using ::testing::HasSubstr;
using testing::kQ;
using testing::kScale;
using testing::RawTensor;

class TensorStoreTest : public testing::LoadTestCase {};

// From the page cache.
void DropPages(const std::string& path) {
  const int descriptor = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  ASSERT_GE(descriptor, 0);
  EXPECT_EQ(fsync(descriptor), 0);
  EXPECT_EQ(posix_fadvise(descriptor, 0, 0, POSIX_FADV_DONTNEED), 0);
  close(descriptor);
}

// In the host's memory, what a GPU's is in the product.
class HostStore : public TensorStore {
 public:
  // In what it fails; empty: in nothing.
  explicit HostStore(std::string failure = "") : failure_(failure) {}

  absl::StatusOr<std::vector<std::byte*>> Place(
      const std::vector<TensorHeader>& tensors) override {
    if (failure_ == "place") return absl::ResourceExhaustedError("no place");
    std::vector<std::byte*> places;
    for (const TensorHeader& header : tensors) {
      const bool stored = header.spec->shape.size() == 2 &&
                          header.spec->kind != TensorKind::kScale;
      if (stored) memory_.emplace_back(header.tensor->bytes);
      places.push_back(stored ? memory_.back().data() : nullptr);
    }
    return places;
  }

  absl::StatusOr<std::unique_ptr<Copier>> NewCopier() override {
    if (failure_ == "copier") return absl::ResourceExhaustedError("no copier");
    return std::make_unique<HostCopier>(failure_);
  }

  bool Has(const std::byte* data) const {
    return std::any_of(memory_.begin(), memory_.end(),
                       [&](const auto& m) { return m.data() == data; });
  }

 private:
  // Copies when it must: what is written to a room too early is seen.
  class HostCopier : public Copier {
   public:
    explicit HostCopier(const std::string& failure) : failure_(failure) {}
    ~HostCopier() override {
      for (const auto& room : rooms_) std::free(room);
    }
    absl::StatusOr<char*> Room(int64_t bytes) override {
      at_ = (at_ + 1) % 2;
      Arrive(at_);
      std::free(rooms_[at_]);
      rooms_[at_] = static_cast<char*>(
          std::aligned_alloc(FileReader::kBlockBytes, bytes));
      return rooms_[at_];
    }
    absl::Status Copy(const char* from, int64_t bytes, std::byte* to) override {
      if (failure_ == "copy") return absl::InternalError("no copy");
      copies_[at_] = {from, bytes, to};
      return absl::OkStatus();
    }
    absl::Status Finish() override {
      if (failure_ == "finish") return absl::InternalError("no finish");
      Arrive(0);
      Arrive(1);
      return absl::OkStatus();
    }

   private:
    struct Pending {
      const char* from = nullptr;
      int64_t bytes = 0;
      std::byte* to = nullptr;
    };
    void Arrive(int at) {
      Pending& copy = copies_[at];
      if (copy.bytes > 0) std::memcpy(copy.to, copy.from, copy.bytes);
      copy = {};
    }

    const std::string failure_;
    std::array<char*, 2> rooms_ = {};
    std::array<Pending, 2> copies_;
    int at_ = 0;
  };

  const std::string failure_;
  std::list<std::vector<std::byte>> memory_;
};

// Tensors that are read in blocks, from the page cache and past it: each byte
// comes to its place, at any offset in the file, with zeros behind.
TEST_F(TensorStoreTest, LargeTensorsAreReadWhole) {
  config_.vocab_size = 40'001;  // embedding and lm_head: 2.56 MB
  for (const int64_t shift : {0, 2, 8, 66, 4094}) {
    const auto tensors = testing::RandomTensors(config_, 1);
    std::vector<RawTensor> shifted = tensors;
    shifted.insert(shifted.begin(),
                   {"shift", "BF16", {shift / 2}, std::string(shift, 'x')});
    ASSERT_TRUE(testing::WriteCheckpoint(folder_, config_, shifted).ok());
    auto expected = ArchitectureTensors(config_);
    expected.push_back({"shift", {shift / 2}});
    for (const bool cached : {true, false}) {
      SCOPED_TRACE(absl::StrCat(shift, cached ? " cached" : ""));
      if (!cached) DropPages(folder_ + "/model.safetensors");
      const auto checkpoint = Checkpoint::Load(folder_, expected);
      ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
      for (const RawTensor& tensor : tensors) {
        const LoadedTensor& loaded = checkpoint->tensor(tensor.name);
        const char* bytes = reinterpret_cast<const char*>(loaded.data);
        EXPECT_EQ(reinterpret_cast<uintptr_t>(bytes) % 64, 0u) << tensor.name;
        ASSERT_EQ(static_cast<size_t>(loaded.bytes), tensor.bytes.size());
        EXPECT_EQ(std::memcmp(bytes, tensor.bytes.data(), loaded.bytes), 0)
            << tensor.name;
        EXPECT_EQ(std::count(bytes + loaded.bytes,
                             bytes + (loaded.bytes + 63) / 64 * 64, '\0'),
                  (64 - loaded.bytes % 64) % 64)
            << tensor.name;
      }
    }
  }
}

// At any offset in the file, from the page cache and past it; the digest does
// not tell where the tensors lie.
TEST_F(TensorStoreTest, AStoreGetsEveryByte) {
  config_.vocab_size = 40'001;  // embedding and lm_head: 2.56 MB
  for (const int64_t shift : {0, 2, 66, 4094}) {
    std::vector<RawTensor> tensors = testing::RandomTensors(config_, 1);
    tensors.insert(tensors.begin(),
                   {"shift", "BF16", {shift / 2}, std::string(shift, 'x')});
    ASSERT_TRUE(testing::WriteCheckpoint(folder_, config_, tensors).ok());
    auto expected = ArchitectureTensors(config_);
    expected.push_back({"shift", {shift / 2}});
    const auto plain = Checkpoint::Load(folder_, expected);
    ASSERT_TRUE(plain.ok()) << plain.status();
    for (const bool cached : {true, false}) {
      SCOPED_TRACE(absl::StrCat(shift, cached ? " cached" : ""));
      if (!cached) DropPages(folder_ + "/model.safetensors");
      HostStore store;
      const auto stored =
          Checkpoint::Load(folder_, expected, {.store = &store});
      ASSERT_TRUE(stored.ok()) << stored.status();
      EXPECT_EQ(stored->digest(), plain->digest());
      EXPECT_EQ(stored->bytes(), plain->bytes());
      int matrices = 0;
      for (const TensorSpec& spec : expected) {
        const LoadedTensor& loaded = stored->tensor(spec.name);
        const LoadedTensor& same = plain->tensor(spec.name);
        ASSERT_EQ(loaded.bytes, same.bytes) << spec.name;
        EXPECT_EQ(std::memcmp(loaded.data, same.data, same.bytes), 0)
            << spec.name;
        matrices += store.Has(loaded.data);
      }
      EXPECT_GT(matrices, 30);
    }
  }
}

TEST_F(TensorStoreTest, AStoreThatFailsIsNoModel) {
  WriteSharded();
  for (const std::string failure : {"place", "copier", "copy", "finish"}) {
    HostStore store(failure);
    const auto refused = LoadChecked(folder_, {.threads = 2},
                                     [&](const auto&) { return &store; });
    EXPECT_THAT(std::string(refused.status().message()),
                HasSubstr("no " + failure));
  }
  // Nor is what is damaged, though its bytes have gone there.
  std::filesystem::remove_all(folder_);
  WriteChanged([](auto& tensors) { Find(tensors, kQ).bytes[5] = '\xff'; });
  HostStore store;
  const auto refused =
      LoadChecked(folder_, {}, [&](const auto&) { return &store; });
  EXPECT_THAT(std::string(refused.status().message()),
              AllOf(HasSubstr(kQ), HasSubstr("not numbers")));
}

}  // namespace
}  // namespace invar
