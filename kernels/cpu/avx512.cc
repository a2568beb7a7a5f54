// Compiled for x86-64-v4: runs only where BestIsa() says so.
#include "kernels/cpu/absorb_kernel.h"
#include "kernels/cpu/avx512_simd.h"
#include "kernels/cpu/dot_kernel.h"
#include "kernels/cpu/mla_attention_kernel.h"

namespace invar::cpu {

constexpr IsaKernels kAvx512Kernels = {
    .dot = DotAll<Avx512>,
    .column_sums = ColumnSumsAll<Avx512>,
    .tile_scores = TileScoresAll<Avx512>,
    .tile_values = TileValuesAll<Avx512>,
};

}  // namespace invar::cpu
