#include "kernels/cuda/device_choice.h"

#include "absl/strings/str_cat.h"

namespace invar::cuda {
namespace {

// The compute capability that the kernels are compiled for.
constexpr int kMajor = 9;
constexpr int kMinor = 0;

template <typename... Parts>
absl::Status Missing(const Parts&... parts) {
  return absl::FailedPreconditionError(absl::StrCat(parts...));
}

// The GPUs to ask for instead.
std::string Others(int gpus) {
  if (gpus == 0) return "use --device cpu";
  if (gpus == 1) return "use cuda:0, or --device cpu";
  return absl::StrCat("use one of cuda:0 to cuda:", gpus - 1,
                      ", or --device cpu");
}

}  // namespace

std::string VersionText(int version) {
  return absl::StrCat(version / 1000, ".", version % 1000 / 10);
}

absl::Status CheckMachine(const MachineFacts& facts) {
  if (facts.driver == 0) {
    return Missing("no NVIDIA driver is installed; use --device cpu");
  }
  // A driver runs all minor versions of its CUDA's major one.
  const int needed = facts.runtime / 1000 * 1000;
  if (facts.driver < needed) {
    return Missing("the NVIDIA driver runs CUDA ", VersionText(facts.driver),
                   "; this build needs ", VersionText(needed),
                   ": install a newer one");
  }
  if (!facts.gpus.has_value()) return absl::OkStatus();
  if (facts.index < 0 || facts.index >= *facts.gpus) {
    return Missing(
        "there is no cuda:", facts.index, "; this machine has ", *facts.gpus,
        *facts.gpus == 1 ? " GPU: " : " GPUs: ", Others(*facts.gpus));
  }
  if (!facts.gpu.has_value()) return absl::OkStatus();
  if (facts.gpu->major != kMajor || facts.gpu->minor != kMinor) {
    return Missing("cuda:", facts.index, " is ", facts.gpu->name,
                   " of compute capability ", facts.gpu->major, ".",
                   facts.gpu->minor, "; this build is for ", kMajor, ".",
                   kMinor, " (H100, H200): use one of those, or --device cpu");
  }
  return absl::OkStatus();
}

}  // namespace invar::cuda
