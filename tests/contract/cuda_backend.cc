#include "tests/contract/cuda_backend.h"

#include <vector>

#include "kernels/cuda/check.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/ops.h"
#include "tests/contract/random.h"
#include "worker/model/cuda/cuda_model.h"

namespace invar::contract {
namespace {

void Soil(KvCache& cache, uint64_t seed) {
  std::vector<uint64_t> words(cache.layers() * cache.blocks() * kBlockTokens *
                              cache.row_bytes() / sizeof(uint64_t));
  Random random(seed);
  for (uint64_t& word : words) word = random.Next();
  cuda::Check(cuda::CopyToDevice(cache.Block(0, 0), words.data(),
                                 words.size() * sizeof(uint64_t)),
              "soiling a cache");
}

void Read(const KvCache& cache, int64_t layer, int64_t block,
          std::span<std::byte> bytes) {
  cuda::Check(cudaMemcpy(bytes.data(), cache.Block(layer, block), bytes.size(),
                         cudaMemcpyDeviceToHost),
              "reading a cache");
}

void Resize(ModelConfig& config) {
  config.kv_lora_rank = cuda::kLatent;
  config.qk_nope_head_dim = cuda::kNope;
  config.qk_rope_head_dim = cuda::kRope;
  config.v_head_dim = cuda::kValue;
}

// `step_tokens`: what a pass holds; a step of more takes several.
Variant MakeVariant(const std::string& name,
                    const cuda::CudaModel::Options& options,
                    int64_t step_tokens) {
  Variant variant;
  variant.name = name;
  variant.load = [options, step_tokens](const std::string& folder,
                                        KvDtype kv_dtype) {
    return cuda::CudaModel::Load(
        {.path = folder, .kv_dtype = kv_dtype, .step_tokens = step_tokens},
        options);
  };
  return variant;
}

}  // namespace

Backend CudaBackend() {
  Backend backend;
  backend.name = "cuda";
  backend.kv_dtypes = {KvDtype::kFp8E5m2, KvDtype::kFp8E4m3, KvDtype::kBf16};
  backend.variants = {
      MakeVariant("graphs=off/overlap=off/passes=one",
                  {.graphs = false, .overlap = false}, kCudaStepTokens),
      MakeVariant("graphs=on/overlap=on/passes=one", {}, kCudaStepTokens),
      MakeVariant("graphs=on/overlap=on/passes=many", {}, 48)};
  // Kernels for many tokens begin at 65 to 1,024; graphs end with 256.
  backend.extent.chunks.push_back(1024);
  backend.extent.large_batches = {65, 80, 100, 128, 200, 256};
  backend.extent.lanes.push_back({.positions = 64, .copies = 4, .chunk = 2048});
  backend.soil = Soil;
  backend.read = Read;
  backend.resize = Resize;
  return backend;
}

}  // namespace invar::contract
