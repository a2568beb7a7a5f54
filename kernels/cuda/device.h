// A GPU, its memory and its streams, owned.
#ifndef INVAR_KERNELS_CUDA_DEVICE_H_
#define INVAR_KERNELS_CUDA_DEVICE_H_

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "kernels/cuda/check.h"

namespace invar::cuda {

// OK, or "WHAT: the runtime's text": RESOURCE_EXHAUSTED where there is no
// memory, else FAILED_PRECONDITION.
absl::Status ToStatus(cudaError_t error, absl::string_view what);

struct DeviceFacts {
  std::string name;    // "NVIDIA H100 80GB HBM3"
  std::string driver;  // "13.0", the newest CUDA that the driver runs
  int multiprocessors = 0;
  int64_t memory_bytes = 0;
  int64_t free_bytes = 0;
};

// Makes device `index` the calling thread's. FAILED_PRECONDITION says what is
// missing: a driver, a new enough one, a GPU of that index, compute capability
// 9.0 (device_choice.h).
absl::StatusOr<DeviceFacts> UseDevice(int index);

// Work in order, without the default stream's waiting for others.
class Stream {
 public:
  Stream();
  ~Stream();
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;

  cudaStream_t get() const { return stream_; }
  // Waits for all work; aborts if some of it failed.
  void Synchronize() const;

 private:
  cudaStream_t stream_ = nullptr;
};

// Both wait until the device's memory has changed. cudaMemcpy from pageable
// memory and cudaMemset return before that, and a Stream does not wait for what
// they have left to do: on a GPU that others use, too, its first kernel comes
// earlier.
cudaError_t CopyToDevice(void* to, const void* from, int64_t bytes);
cudaError_t FillOnDevice(void* to, int byte, int64_t bytes);

// `count` elements of T in device memory. T is trivially copyable.
template <typename T>
class DeviceBuffer {
 public:
  DeviceBuffer() = default;
  DeviceBuffer(DeviceBuffer&& other) noexcept { *this = std::move(other); }
  DeviceBuffer& operator=(DeviceBuffer&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
  }
  ~DeviceBuffer() { cudaFree(data_); }

  // As AllocateBytes; no elements need no memory.
  static absl::StatusOr<DeviceBuffer> Allocate(int64_t count,
                                               absl::string_view what);
  // Waits until the copy is done.
  static absl::StatusOr<DeviceBuffer> Upload(std::span<const T> values,
                                             absl::string_view what);

  T* data() const { return data_; }
  int64_t size() const { return size_; }
  int64_t bytes() const { return size_ * static_cast<int64_t>(sizeof(T)); }

  // Waits until all of it is in host memory.
  std::vector<T> Download() const;

 private:
  T* data_ = nullptr;
  int64_t size_ = 0;
};

// Device memory. RESOURCE_EXHAUSTED names `what` and the bytes; another error
// of the runtime's is ToStatus's.
absl::StatusOr<void*> AllocateBytes(int64_t bytes, absl::string_view what);

template <typename T>
absl::StatusOr<DeviceBuffer<T>> DeviceBuffer<T>::Allocate(
    int64_t count, absl::string_view what) {
  DeviceBuffer buffer;
  if (count == 0) return buffer;
  absl::StatusOr<void*> memory =
      AllocateBytes(count * static_cast<int64_t>(sizeof(T)), what);
  if (!memory.ok()) return memory.status();
  buffer.data_ = static_cast<T*>(*memory);
  buffer.size_ = count;
  return buffer;
}

template <typename T>
absl::StatusOr<DeviceBuffer<T>> DeviceBuffer<T>::Upload(
    std::span<const T> values, absl::string_view what) {
  absl::StatusOr<DeviceBuffer> buffer =
      Allocate(static_cast<int64_t>(values.size()), what);
  if (!buffer.ok()) return buffer;
  const absl::Status copied = ToStatus(
      CopyToDevice(buffer->data_, values.data(), values.size_bytes()), what);
  if (!copied.ok()) return copied;
  return buffer;
}

template <typename T>
std::vector<T> DeviceBuffer<T>::Download() const {
  std::vector<T> values(size_);
  Check(cudaMemcpy(values.data(), data_, bytes(), cudaMemcpyDeviceToHost),
        "copying from the device");
  return values;
}

}  // namespace invar::cuda

#endif  // INVAR_KERNELS_CUDA_DEVICE_H_
