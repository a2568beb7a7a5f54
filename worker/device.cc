#include "worker/device.h"

#include <spdlog/spdlog.h>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "kernels/ops.h"
#ifdef INVAR_WITH_CUDA
#include "kernels/cuda/device.h"
#include "worker/model/cuda/cuda_model.h"
#endif

namespace invar {
namespace {

absl::StatusOr<Replica::ModelLoader> CudaLoader(const std::string& device) {
#ifdef INVAR_WITH_CUDA
  absl::string_view number = device;
  int index = 0;
  if (!absl::ConsumePrefix(&number, "cuda:") ||
      !absl::SimpleAtoi(number, &index)) {
    return absl::InvalidArgumentError(
        absl::StrCat("--device is ", device, "; it must be cpu or cuda:N"));
  }
  const absl::StatusOr<cuda::DeviceFacts> facts = cuda::UseDevice(index);
  if (!facts.ok()) return facts.status();
  spdlog::info("{}: {}, {} GiB, {} GiB free, driver for CUDA {}", device,
               facts->name, facts->memory_bytes >> 30, facts->free_bytes >> 30,
               facts->driver);
  return [index](const Model::LoadOptions& options) {
    return cuda::CudaModel::Load(options, {.device = index});
  };
#else
  return absl::FailedPreconditionError(
      absl::StrCat("--device is ", device,
                   ", but this build has no CUDA backend; use --device cpu, or "
                   "build where CUDA 13's nvcc is"));
#endif
}

}  // namespace

absl::StatusOr<Replica::ModelLoader> LoaderFor(const std::string& device) {
  if (const std::string missing = cpu::MissingCpuFeatures(); !missing.empty()) {
    return absl::FailedPreconditionError(
        absl::StrCat("this processor lacks ", missing,
                     "; a worker needs x86-64-v3 (AVX2 and FMA), as the CPU's "
                     "bits are defined there"));
  }
  if (device != "cpu") return CudaLoader(device);
  return Model::Load;
}

}  // namespace invar
