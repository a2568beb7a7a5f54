#include "tests/contract/cpu_backend.h"

#include <cstring>
#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/cpu/isa.h"
#include "tests/contract/random.h"
#include "worker/engine/testing/deferring_model.h"

namespace invar::contract {
namespace {

// With `overlap` steps are planned ahead, as a GPU's are.
Variant MakeVariant(int threads, bool overlap, cpu::Isa isa) {
  Variant variant;
  variant.name = absl::StrCat("threads=", threads, overlap ? "/overlap=on" : "",
                              "/isa=", cpu::Name(isa));
  if (isa > cpu::BestIsa()) {
    variant.missing = absl::StrCat("this processor has no ", cpu::Name(isa));
  }
  variant.load =
      [threads, overlap, isa](
          const std::string& folder,
          KvDtype kv_dtype) -> absl::StatusOr<std::shared_ptr<Model>> {
    absl::StatusOr<std::shared_ptr<Model>> model = Model::Load(
        {.path = folder, .kv_dtype = kv_dtype, .threads = threads, .isa = isa});
    if (!model.ok() || !overlap) return model;
    return std::make_shared<DeferringModel>(*std::move(model));
  };
  return variant;
}

void Soil(KvCache& cache, uint64_t seed) {
  const int64_t words = cache.layers() * cache.blocks() * kBlockTokens *
                        cache.row_bytes() / int64_t{sizeof(uint64_t)};
  std::byte* bytes = cache.Block(0, 0);
  Random random(seed);
  for (int64_t i = 0; i < words; ++i) {
    const uint64_t word = random.Next();
    std::memcpy(bytes + i * sizeof(word), &word, sizeof(word));
  }
}

}  // namespace

Backend CpuBackend() {
  Backend backend;
  backend.name = "cpu";
  backend.kv_dtypes = {KvDtype::kFp8E5m2, KvDtype::kFp8E4m3, KvDtype::kBf16,
                       KvDtype::kFp32};
  for (const cpu::Isa isa :
       {cpu::Isa::kAvx2, cpu::Isa::kAvx512, cpu::Isa::kAvx512Bf16}) {
    backend.variants.push_back(MakeVariant(1, /*overlap=*/false, isa));
    backend.variants.push_back(MakeVariant(2, /*overlap=*/true, isa));
  }
  backend.soil = Soil;
  backend.read = [](const KvCache& cache, int64_t layer, int64_t block,
                    std::span<std::byte> bytes) {
    std::memcpy(bytes.data(), cache.Block(layer, block), bytes.size());
  };
  return backend;
}

}  // namespace invar::contract
