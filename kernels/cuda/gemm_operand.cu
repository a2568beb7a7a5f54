// Tensor maps: what the copy engine must know of operands, told once when their
// memory is planned, and of wide outputs, told at each launch, since a map's
// end is where the copy engine stops to write.
#include <cudaTypedefs.h>

#include "kernels/cuda/check.h"
#include "kernels/cuda/gemm_wgmma.h"
#include "kernels/cuda/ops_linear.h"
#include "kernels/cuda/wide_gemm.h"

namespace invar::cuda {
namespace {

// The driver's encoder, reached through the runtime, so that nothing links
// against the driver's library.
PFN_cuTensorMapEncodeTiled_v12000 FindEncoder() {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult found;
  const cudaError_t error = cudaGetDriverEntryPointByVersion(
      "cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &found);
  if (error != cudaSuccess || found != cudaDriverEntryPointSuccess) {
    return nullptr;
  }
  return reinterpret_cast<PFN_cuTensorMapEncodeTiled_v12000>(function);
}

// Boxes of `box_rows` rows by 128 bytes. The engine is told of bytes, whatever
// the elements are: it only moves them.
bool EncodeRows(const void* data, int64_t rows, int64_t row_bytes,
                uint32_t box_rows, CUtensorMap* map) {
  static const auto encode = FindEncoder();
  if (encode == nullptr) return false;
  const cuuint64_t sizes[2] = {static_cast<cuuint64_t>(row_bytes),
                               static_cast<cuuint64_t>(rows)};
  const cuuint64_t strides[1] = {static_cast<cuuint64_t>(row_bytes)};
  const cuuint32_t box[2] = {kTileRowBytes, box_rows};
  const cuuint32_t steps[2] = {1, 1};
  return encode(map, CU_TENSOR_MAP_DATA_TYPE_UINT8, 2, const_cast<void*>(data),
                sizes, strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
                CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
}

bool IsProductDtype(WeightDtype dtype) {
  return dtype == WeightDtype::kBf16 || dtype == WeightDtype::kFp16 ||
         dtype == WeightDtype::kFp8E4m3;
}

}  // namespace

bool MakeGemmWeight(WeightDtype dtype, const void* data, int64_t rows,
                    int64_t columns, GemmWeight* weight) {
  *weight = {.dtype = dtype, .rows = rows, .columns = columns};
  return IsProductDtype(dtype) &&
         EncodeRows(data, rows, columns * WeightElementBytes(dtype),
                    kProductRows, &weight->map);
}

bool MakeGemmInput(WeightDtype dtype, const void* data, int64_t rows,
                   int64_t columns, GemmInput* input) {
  *input = {.dtype = dtype, .rows = rows, .columns = columns};
  const int64_t row_bytes = columns * WeightElementBytes(dtype);
  return IsProductDtype(dtype) &&
         EncodeRows(data, rows, row_bytes, 8, &input->map) &&
         EncodeRows(data, rows, row_bytes, 1, &input->row_map) &&
         EncodeRows(data, rows, row_bytes, 32, &input->middle_map) &&
         EncodeRows(data, rows, row_bytes, kProductRows, &input->wide_map);
}

bool MakeWideOutput(const void* data, int64_t tokens, int64_t token_bytes,
                    int tile_tokens, CUtensorMap* map) {
  return EncodeRows(data, tokens, token_bytes, tile_tokens, map);
}

}  // namespace invar::cuda
