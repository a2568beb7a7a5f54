#include "kernels/cuda/testing/bench.h"

#include <algorithm>
#include <cstdio>

#include "kernels/cuda/device.h"

namespace invar::cuda::testing {
namespace {

constexpr int kRepeats = 21;
constexpr int64_t kCopyBytes = int64_t{1} << 30;

}  // namespace

Bench::Bench(cudaStream_t stream) : stream_(stream) {
  const auto from = *DeviceBuffer<std::byte>::Allocate(kCopyBytes, "a copy");
  const auto to = *DeviceBuffer<std::byte>::Allocate(kCopyBytes, "a copy");
  Check(FillOnDevice(from.data(), 0x5a, kCopyBytes), "filling");
  double seconds = 1.0;
  // The first rounds find the memory's clock low.
  for (int round = 0; round < 3; ++round) {
    seconds =
        std::min(seconds, Seconds(4, [&](int) {
                   Check(cudaMemcpyAsync(to.data(), from.data(), kCopyBytes,
                                         cudaMemcpyDeviceToDevice, stream_),
                         "copying");
                 }));
  }
  bytes_per_second_ = 2.0 * kCopyBytes / seconds;
}

double Bench::Seconds(int inputs, const std::function<void(int)>& launch) {
  for (int i = 0; i < inputs; ++i) launch(i);  // Loads what loads lazily.
  Check(cudaStreamSynchronize(stream_), "warming up");
  cudaGraph_t graph;
  cudaGraphExec_t executable;
  Check(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal),
        "capturing");
  for (int i = 0; i < inputs; ++i) launch(i);
  Check(cudaStreamEndCapture(stream_, &graph), "capturing");
  Check(cudaGraphInstantiate(&executable, graph, 0), "making a graph");
  cudaEvent_t begin;
  cudaEvent_t end;
  Check(cudaEventCreate(&begin), "making an event");
  Check(cudaEventCreate(&end), "making an event");
  std::vector<float> milliseconds(kRepeats);
  for (float& value : milliseconds) {
    Check(cudaEventRecord(begin, stream_), "timing");
    Check(cudaGraphLaunch(executable, stream_), "launching");
    Check(cudaEventRecord(end, stream_), "timing");
    Check(cudaEventSynchronize(end), "waiting");
    Check(cudaEventElapsedTime(&value, begin, end), "timing");
  }
  cudaEventDestroy(begin);
  cudaEventDestroy(end);
  cudaGraphExecDestroy(executable);
  cudaGraphDestroy(graph);
  std::nth_element(milliseconds.begin(), milliseconds.begin() + kRepeats / 2,
                   milliseconds.end());
  return milliseconds[kRepeats / 2] * 1e-3 / inputs;
}

void Bench::Report(const std::string& name, double seconds, double bytes,
                   double operations) {
  std::printf("%-44s %9.2f us %8.1f MB %5.1f %% of copy", name.c_str(),
              seconds * 1e6, bytes * 1e-6,
              100.0 * bytes / seconds / bytes_per_second_);
  if (operations > 0)
    std::printf(" %7.1f TFLOP/s", operations / seconds / 1e12);
  std::printf("\n");
}

std::optional<DeviceFacts> DeviceOrSkip(const char* what) {
  absl::StatusOr<DeviceFacts> device = UseDevice(0);
  if (device.ok()) return *std::move(device);
  std::printf("skipped: %s: %s\n", what,
              std::string(device.status().message()).c_str());
  return std::nullopt;
}

BenchEntry::BenchEntry(std::string name, BenchFunction run)
    : name(std::move(name)), run(run) {
  BenchEntries().push_back(this);
}

std::vector<const BenchEntry*>& BenchEntries() {
  static std::vector<const BenchEntry*> entries;
  return entries;
}

BenchProgram::BenchProgram(std::string name, std::string usage,
                           ProgramFunction run)
    : name(std::move(name)), usage(std::move(usage)), run(run) {
  BenchPrograms().push_back(this);
}

std::vector<const BenchProgram*>& BenchPrograms() {
  static std::vector<const BenchProgram*> programs;
  return programs;
}

}  // namespace invar::cuda::testing
