// The logits of one text, with given experts, on the GPU:
//
//   build/bin/forced_logits FOLDER bf16|e4m3|e5m2 IDS EXPERTS OUT
//
// IDS: int32, a text. EXPERTS: int32 (layers with experts, tokens, top_k), best
// first. OUT: fp32 (tokens, vocabulary). For error_against_fp32.py.
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "tests/gpu/forced_experts.h"
#include "worker/model/cuda/cuda_model.h"

namespace invar {
namespace {

std::vector<int32_t> ReadInts(const std::string& path) {
  std::vector<int32_t> values(std::filesystem::file_size(path) /
                              sizeof(int32_t));
  std::ifstream(path, std::ios::binary)
      .read(reinterpret_cast<char*>(values.data()),
            values.size() * sizeof(int32_t));
  return values;
}

KvDtype KvDtypeOf(const std::string& name) {
  return name == "bf16"   ? KvDtype::kBf16
         : name == "e4m3" ? KvDtype::kFp8E4m3
                          : KvDtype::kFp8E5m2;
}

int Main(const std::string& folder, const std::string& kv,
         const std::string& ids_path, const std::string& experts_path,
         const std::string& out_path) {
  const std::vector<int32_t> ids = ReadInts(ids_path);
  const int64_t tokens = static_cast<int64_t>(ids.size());
  const int64_t blocks = (tokens - 1) / kBlockTokens + 1;
  auto model = cuda::CudaModel::Load({.path = folder,
                                      .kv_dtype = KvDtypeOf(kv),
                                      .step_tokens = tokens,
                                      .context_tokens = blocks * kBlockTokens},
                                     {});
  if (!model.ok()) {
    std::fprintf(stderr, "%s\n", model.status().ToString().c_str());
    return 1;
  }
  const ModelConfig& config = (*model)->config();
  cuda::ForceExperts(ReadInts(experts_path), tokens, config.router.top_k,
                     config.router.experts);
  const auto cache = (*model)->NewKvCache(blocks);
  std::vector<int32_t> table(blocks);
  std::iota(table.begin(), table.end(), 0);
  std::vector<float> logits(tokens * config.vocab_size);
  const SequenceSlice slice = {
      .token_ids = ids, .block_ids = table, .logit_rows = tokens};
  const auto health = (*model)->Forward({&slice, 1}, *cache, logits);
  if (health[0] != SliceHealth::kFinite) {
    std::fprintf(stderr, "a logit is not finite\n");
    return 1;
  }
  if (!cuda::ExpertsWereForced()) {
    std::fprintf(stderr, "the model chose experts of its own\n");
    return 1;
  }
  std::ofstream out(out_path, std::ios::binary);
  out.write(reinterpret_cast<const char*>(logits.data()),
            static_cast<int64_t>(logits.size() * sizeof(float)));
  return out.good() ? 0 : 1;
}

}  // namespace
}  // namespace invar

int main(int argc, char** argv) {
  if (argc != 6) {
    std::fprintf(
        stderr, "usage: forced_logits FOLDER bf16|e4m3|e5m2 IDS EXPERTS OUT\n");
    return 2;
  }
  return invar::Main(argv[1], argv[2], argv[3], argv[4], argv[5]);
}
