#include "kernels/cuda/support.h"

#include "absl/strings/str_cat.h"
#include "kernels/cuda/widths.h"

namespace invar::cuda {
namespace {

// The copy engine moves rows of a multiple of 16 bytes.
constexpr int64_t kRowBytes = 16;
constexpr int64_t kMostColumns = 16384;  // of inputs quantised by one block
constexpr int64_t kMostExperts = 512;
constexpr int64_t kMostGroups = 32;

template <typename... Parts>
absl::Status Refused(absl::string_view name, const Parts&... parts) {
  return absl::UnimplementedError(absl::StrCat("on a GPU, ", name, parts...));
}

absl::Status CheckColumns(const Weight& weight, absl::string_view name) {
  const int64_t bytes = weight.columns * WeightElementBytes(weight.dtype);
  if (weight.columns % kLanes != 0 || bytes % kRowBytes != 0) {
    return Refused(name, " has ", weight.columns,
                   " columns; only multiples of 16 are taken");
  }
  if (weight.columns > kMostColumns) {
    return Refused(name, " has ", weight.columns, " columns; at most ",
                   kMostColumns, " are taken");
  }
  if (weight.dtype == WeightDtype::kFp32) {
    return Refused(name, " is F32; only BF16, F16 and F8_E4M3 are taken");
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status SupportsAttention(int64_t latent, int64_t rope, int64_t nope,
                               int64_t value) {
  const struct {
    const char* name;
    int64_t actual;
    int64_t taken;
  } widths[] = {{"kv_lora_rank", latent, kLatent},
                {"qk_rope_head_dim", rope, kRope},
                {"qk_nope_head_dim", nope, kNope},
                {"v_head_dim", value, kValue}};
  for (const auto& width : widths) {
    if (width.actual != width.taken) {
      return Refused(width.name, " is ", width.actual, "; only ", width.taken,
                     " is taken: use --device cpu");
    }
  }
  return absl::OkStatus();
}

absl::Status SupportsKv(KvDtype dtype) {
  if (dtype != KvDtype::kFp32) return absl::OkStatus();
  return Refused("kv_cache.dtype",
                 " is FP32; only FP8_E5M2, FP8_E4M3 and BF16 are taken");
}

absl::Status SupportsLinear(const Weight& weight, absl::string_view name) {
  absl::Status status = CheckColumns(weight, name);
  if (!status.ok()) return status;
  const bool is_static = weight.input_scale > 0.0f;
  const bool is_dynamic = weight.dynamic_inputs != DynamicInputs::kNone;
  if (weight.dtype != WeightDtype::kFp8E4m3) {
    if (is_static || is_dynamic) {
      return Refused(name, " is not FP8 and wants FP8 inputs");
    }
    return absl::OkStatus();
  }
  if (!is_static && !is_dynamic) {
    return Refused(name,
                   " is FP8 and its inputs are not; their scales must be "
                   "static, a token's or a group's");
  }
  const bool groups = weight.dynamic_inputs == DynamicInputs::kGroup;
  if (groups != (weight.block_scales != nullptr)) {
    return Refused(name,
                   " has scales a block of weights or a group of inputs; only "
                   "both together are taken");
  }
  if (groups && weight.block_offset % kScaleBlock != 0) {
    return Refused(name, " begins at row ", weight.block_offset,
                   " of its blocks of scales; only multiples of ", kScaleBlock,
                   " are taken");
  }
  return absl::OkStatus();
}

absl::Status SupportsKvUp(const Weight& weight, absl::string_view name) {
  absl::Status status = CheckColumns(weight, name);
  if (!status.ok()) return status;
  if (weight.columns != kLatent || weight.rows % (kNope + kValue) != 0) {
    return Refused(name, " is ", weight.rows, " x ", weight.columns,
                   "; only multiples of ", kNope + kValue, " x ", kLatent,
                   " are taken");
  }
  return absl::OkStatus();
}

absl::Status SupportsRouter(const cpu::RouterOptions& router,
                            const Weight& weight, absl::string_view name) {
  if (weight.dtype != WeightDtype::kBf16 &&
      weight.dtype != WeightDtype::kFp32) {
    return Refused(name, " must be BF16 or F32");
  }
  if (router.experts > kMostExperts) {
    return Refused(name, " has ", router.experts, " experts; at most ",
                   kMostExperts, " are taken");
  }
  if (router.groups > kMostGroups) {
    return Refused(name, " has ", router.groups, " groups; at most ",
                   kMostGroups, " are taken");
  }
  return absl::OkStatus();
}

}  // namespace invar::cuda
