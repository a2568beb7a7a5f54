#include "tests/contract/cpu_backend.h"

#include <cstring>

#include "absl/strings/str_cat.h"
#include "kernels/cpu/isa.h"
#include "tests/contract/random.h"

namespace invar::contract {
namespace {

Variant MakeVariant(int threads, cpu::Isa isa) {
  Variant variant;
  variant.name = absl::StrCat("threads=", threads, "/isa=", cpu::Name(isa));
  if (isa > cpu::BestIsa()) {
    variant.missing = absl::StrCat("this processor has no ", cpu::Name(isa));
  }
  variant.load = [threads, isa](const std::string& folder, KvDtype kv_dtype) {
    return Model::Load(
        {.path = folder, .kv_dtype = kv_dtype, .threads = threads, .isa = isa});
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
    for (const int threads : {1, 2}) {
      backend.variants.push_back(MakeVariant(threads, isa));
    }
  }
  backend.soil = Soil;
  backend.read = [](const KvCache& cache, int64_t layer, int64_t block,
                    std::span<std::byte> bytes) {
    std::memcpy(bytes.data(), cache.Block(layer, block), bytes.size());
  };
  return backend;
}

}  // namespace invar::contract
