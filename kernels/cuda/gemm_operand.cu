#include <cudaTypedefs.h>

#include "kernels/cuda/check.h"
#include "kernels/cuda/gemm_wgmma.h"
#include "kernels/cuda/ops_linear.h"

namespace invar::cuda {
namespace {

// The driver's encoder, reached through the runtime, so that nothing links
// against the driver's library.
PFN_cuTensorMapEncodeTiled_v12000 Encoder() {
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
bool EncodeRows(WeightDtype dtype, const void* data, int64_t rows,
                int64_t columns, uint32_t box_rows, CUtensorMap* map) {
  const auto encode = Encoder();
  if (encode == nullptr) return false;
  const uint64_t row_bytes = columns * WeightElementBytes(dtype);
  const cuuint64_t sizes[2] = {row_bytes, static_cast<cuuint64_t>(rows)};
  const cuuint64_t strides[1] = {row_bytes};
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
         EncodeRows(dtype, data, rows, columns, kProductRows, &weight->map);
}

bool MakeGemmInput(WeightDtype dtype, const void* data, int64_t rows,
                   int64_t columns, GemmInput* input) {
  *input = {.dtype = dtype, .rows = rows, .columns = columns};
  return IsProductDtype(dtype) &&
         EncodeRows(dtype, data, rows, columns, 8, &input->map) &&
         EncodeRows(dtype, data, rows, columns, 1, &input->row_map) &&
         EncodeRows(dtype, data, rows, columns, kProductRows,
                    &input->wide_map);
}

}  // namespace invar::cuda
