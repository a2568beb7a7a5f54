// Writes a random checkpoint of DeepSeek-V2-Lite's shape (31 GB in bf16, 16 GB
// in FP8, in seconds where the folder is memory), or of fewer layers:
//
//   build/bin/full_shape_checkpoint FOLDER bf16|fp8 [LAYERS]
#include <cstdio>
#include <cstdlib>
#include <string>

#include "worker/model/testing/large_checkpoint.h"
#include "worker/model/testing/random_checkpoint.h"

int main(int argc, char** argv) {
  const std::string weights = argc > 2 ? argv[2] : "";
  const int layers = argc > 3 ? std::atoi(argv[3]) : 27;
  if (argc > 4 || (weights != "bf16" && weights != "fp8") || layers < 1) {
    std::fprintf(stderr,
                 "usage: full_shape_checkpoint FOLDER bf16|fp8 [LAYERS]\n");
    return 2;
  }
  invar::ModelConfig config = invar::testing::V2LiteModelConfig(layers);
  if (weights == "fp8") config.quantization = invar::testing::StaticFp8();
  const absl::Status status =
      invar::testing::WriteLargeCheckpoint(argv[1], config, 1);
  if (status.ok()) return 0;
  std::fprintf(stderr, "%s\n", std::string(status.message()).c_str());
  return 1;
}
