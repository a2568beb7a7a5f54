// CUTLASS's kernels of one type of product and of outputs, TYPE and OUTPUT: an
// object each, since each takes minutes (cutlass_gemm_bench.cu says how).
#include <algorithm>
#include <memory>
#include <string>

#include "cute/tensor.hpp"
#include "cutlass/cutlass.h"
#include "cutlass/epilogue/collective/collective_builder.hpp"
#include "cutlass/gemm/collective/collective_builder.hpp"
#include "cutlass/gemm/device/gemm_universal_adapter.h"
#include "cutlass/gemm/kernel/gemm_universal.hpp"
#include "cutlass/gemm/kernel/tile_scheduler.hpp"
#include "tests/bench/cutlass_gemm.h"

namespace invar::bench {
namespace {

using namespace cutlass::gemm;
using cute::_1;
using cute::_128;
using cute::_2;
using cute::_256;
using cute::_32;
using cute::_64;
using cute::Shape;
using cutlass::bfloat16_t;

struct Fp8Fast {
  using Value = cutlass::float_e4m3_t;
  static constexpr bool kFast = true;
};
struct Fp8Exact {
  using Value = cutlass::float_e4m3_t;
  static constexpr bool kFast = false;
};
struct Bf16 {
  using Value = bfloat16_t;
  static constexpr bool kFast = false;
};

struct Plain {
  static constexpr const char* kName = "plain";
  using Exact = KernelTmaWarpSpecialized;
  using Fast = KernelTmaWarpSpecializedFP8FastAccum;
  using Epilogue = cutlass::epilogue::TmaWarpSpecialized;
  using Scheduler = PersistentScheduler;
};
struct Pingpong : Plain {
  static constexpr const char* kName = "pingpong";
  using Exact = KernelTmaWarpSpecializedPingpong;
  using Fast = KernelTmaWarpSpecializedPingpongFP8FastAccum;
};
struct Cooperative {
  static constexpr const char* kName = "cooperative";
  using Exact = KernelTmaWarpSpecializedCooperative;
  using Fast = KernelTmaWarpSpecializedCooperativeFP8FastAccum;
  using Epilogue = cutlass::epilogue::TmaWarpSpecializedCooperative;
  using Scheduler = PersistentScheduler;
};
struct StreamK : Cooperative {
  static constexpr const char* kName = "stream-k";
  using Scheduler = StreamKScheduler;
};

// A tile with 128 bytes of K.
template <class Type, class Output, class TileTokens, class TileRows,
          class Schedule, class Cluster>
struct Config {
  using Value = typename Type::Value;
  using RowMajor = cutlass::layout::RowMajor;
  using ColumnMajor = cutlass::layout::ColumnMajor;
  using Tile = Shape<TileTokens, TileRows, cute::Int<128 / int(sizeof(Value))>>;
  static constexpr int kAlignment = 16 / sizeof(Value);
  static constexpr int kOutputAlignment = 16 / sizeof(Output);

  using Epilogue = typename cutlass::epilogue::collective::CollectiveBuilder<
      cutlass::arch::Sm90, cutlass::arch::OpClassTensorOp, Tile, Cluster,
      cutlass::epilogue::collective::EpilogueTileAuto, float, float, void,
      RowMajor, kOutputAlignment, Output, RowMajor, kOutputAlignment,
      typename Schedule::Epilogue>::CollectiveOp;
  using Mainloop = typename collective::CollectiveBuilder<
      cutlass::arch::Sm90, cutlass::arch::OpClassTensorOp, Value, RowMajor,
      kAlignment, Value, ColumnMajor, kAlignment, float, Tile, Cluster,
      collective::StageCountAutoCarveout<int(
          sizeof(typename Epilogue::SharedStorage))>,
      std::conditional_t<Type::kFast, typename Schedule::Fast,
                         typename Schedule::Exact>>::CollectiveOp;
  using Kernel = kernel::GemmUniversal<Shape<int, int, int, int>, Mainloop,
                                       Epilogue, typename Schedule::Scheduler>;
  using Gemm = device::GemmUniversalAdapter<Kernel>;
  // Stream-k counts in its workspace, which must be zero before each launch.
  static constexpr bool kClears =
      std::is_same_v<typename Schedule::Scheduler, StreamKScheduler>;
};

template <class C>
std::string Prepare(const Product& product, const Variant& variant,
                    Launch* launch) {
  using Gemm = typename C::Gemm;
  using Value = typename C::Value;
  using Order = typename kernel::detail::PersistentTileSchedulerSm90Params::
      RasterOrderOptions;
  using Arguments = typename Gemm::Arguments;
  if (C::kClears && variant.overlap) return "does not overlap";
  auto gemms = std::make_shared<std::vector<Gemm>>(product.weights.size());
  Arguments arguments{};
  for (size_t i = 0; i < gemms->size(); ++i) {
    arguments.mode = GemmUniversalMode::kGemm;
    arguments.problem_shape = {product.tokens, product.rows, product.columns,
                               1};
    arguments.mainloop.ptr_A = static_cast<const Value*>(product.x);
    arguments.mainloop.dA = {int64_t{product.columns}, _1{}, 0};
    arguments.mainloop.ptr_B = static_cast<const Value*>(product.weights[i]);
    arguments.mainloop.dB = {int64_t{product.columns}, _1{}, 0};
    arguments.epilogue.thread.alpha = 1.0f;
    arguments.epilogue.thread.beta = 0.0f;
    arguments.epilogue.ptr_D =
        static_cast<typename Gemm::ElementD*>(product.out);
    arguments.epilogue.dD = {int64_t{product.rows}, _1{}, 0};
    arguments.hw_info = cutlass::KernelHardwareInfo::make_kernel_hardware_info<
        typename C::Kernel>();
    arguments.scheduler.max_swizzle_size = variant.swizzle;
    arguments.scheduler.raster_order = variant.first == 'm' ? Order::AlongM
                                       : variant.first == 'n'
                                           ? Order::AlongN
                                           : Order::Heuristic;
    if (Gemm::can_implement(arguments) != cutlass::Status::kSuccess) {
      return "not supported";
    }
    if (Gemm::get_workspace_size(arguments) > product.workspace_bytes) {
      return "wants more workspace";
    }
    const cutlass::Status status =
        (*gemms)[i].initialize(arguments, product.workspace);
    if (status != cutlass::Status::kSuccess) {
      cudaGetLastError();  // Is not the next one's.
      return cutlass::cutlassGetStatusString(status);
    }
  }
  const bool overlap = variant.overlap;
  void* const workspace = product.workspace;
  *launch = [=](int copy, cudaStream_t stream) {
    if (C::kClears &&
        C::Kernel::initialize_workspace(arguments, workspace, stream) !=
            cutlass::Status::kSuccess) {
      return false;
    }
    return (*gemms)[copy].run(stream, nullptr, overlap) ==
           cutlass::Status::kSuccess;
  };
  return "";
}

#define TEXT_OF(name) #name
#define TEXT(name) TEXT_OF(name)

template <class Tokens, class Rows, class Schedule, class Cluster>
void Add() {
  Candidates().push_back(
      {TEXT(TYPE), TEXT(OUTPUT),
       std::to_string(Tokens::value) + "x" + std::to_string(Rows::value) + "/" +
           Schedule::kName + "/" + std::to_string(cute::size<0>(Cluster{})) +
           "x" + std::to_string(cute::size<1>(Cluster{})),
       /*has_variants=*/true,
       Prepare<Config<TYPE, OUTPUT, Tokens, Rows, Schedule, Cluster>>});
}

// Tiles of 32 or 64 rows and what shares K are for few tokens.
const bool added = [] {
  using Alone = Shape<_1, _1, _1>;
  using Pair = Shape<_2, _1, _1>;  // of tiles of tokens: shares weights
  Add<_64, _32, Plain, Pair>();
  Add<_64, _64, Plain, Pair>();
  Add<_64, _128, Pingpong, Alone>();
  Add<_64, _128, Pingpong, Pair>();
  Add<_128, _64, StreamK, Alone>();
  Add<_128, _128, Pingpong, Pair>();
  Add<_128, _128, Cooperative, Alone>();
  Add<_128, _128, Cooperative, Pair>();
  Add<_128, _256, Cooperative, Alone>();
  Add<_128, _256, Cooperative, Pair>();
  Add<_256, _128, Cooperative, Pair>();
  return true;
}();

}  // namespace
}  // namespace invar::bench
