#include "kernels/cuda/device.h"

#include "absl/strings/str_cat.h"
#include "kernels/cuda/device_choice.h"

namespace invar::cuda {

absl::Status ToStatus(cudaError_t error, absl::string_view what) {
  if (error == cudaSuccess) return absl::OkStatus();
  const std::string text = absl::StrCat(what, ": ", cudaGetErrorString(error));
  cudaGetLastError();  // It has been told; the next check must not see it.
  if (error == cudaErrorMemoryAllocation) {
    return absl::ResourceExhaustedError(text);
  }
  return absl::FailedPreconditionError(text);
}

absl::StatusOr<DeviceFacts> UseDevice(int index) {
  MachineFacts facts = {.runtime = CUDART_VERSION, .index = index};
  absl::Status status = ToStatus(cudaDriverGetVersion(&facts.driver),
                                 "asking for the CUDA driver");
  if (status.ok()) status = CheckMachine(facts);
  if (!status.ok()) return status;
  int count = 0;
  const cudaError_t counted = cudaGetDeviceCount(&count);
  status = ToStatus(counted, "counting GPUs");
  if (!status.ok() && counted != cudaErrorNoDevice) return status;
  facts.gpus = count;
  status = CheckMachine(facts);
  if (!status.ok()) return status;
  cudaDeviceProp properties;
  status = ToStatus(cudaGetDeviceProperties(&properties, index),
                    "asking for the GPU's properties");
  if (!status.ok()) return status;
  facts.gpu = {properties.name, properties.major, properties.minor};
  status = CheckMachine(facts);
  if (!status.ok()) return status;
  status = ToStatus(cudaSetDevice(index), "choosing the GPU");
  if (!status.ok()) return status;
  size_t free = 0;
  size_t total = 0;
  status = ToStatus(cudaMemGetInfo(&free, &total), "asking for its memory");
  if (!status.ok()) return status;
  return DeviceFacts{properties.name, VersionText(facts.driver),
                     properties.multiProcessorCount,
                     static_cast<int64_t>(total), static_cast<int64_t>(free)};
}

Stream::Stream() {
  Check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking),
        "making a stream");
}

Stream::~Stream() { cudaStreamDestroy(stream_); }

void Stream::Synchronize() const {
  Check(cudaStreamSynchronize(stream_), "waiting for a stream");
}

cudaError_t CopyToDevice(void* to, const void* from, int64_t bytes) {
  const cudaError_t error = cudaMemcpy(to, from, bytes, cudaMemcpyHostToDevice);
  return error == cudaSuccess ? cudaStreamSynchronize(cudaStreamLegacy) : error;
}

cudaError_t FillOnDevice(void* to, int byte, int64_t bytes) {
  const cudaError_t error = cudaMemset(to, byte, bytes);
  return error == cudaSuccess ? cudaStreamSynchronize(cudaStreamLegacy) : error;
}

absl::StatusOr<void*> AllocateBytes(int64_t bytes, absl::string_view what) {
  void* data = nullptr;
  const absl::Status status =
      ToStatus(cudaMalloc(&data, bytes),
               absl::StrCat(what, " needs ", bytes, " bytes of GPU memory"));
  if (!status.ok()) return status;
  return data;
}

}  // namespace invar::cuda
