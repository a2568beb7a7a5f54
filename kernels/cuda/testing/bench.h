// Benchmarks of kernels, as shares of what the same GPU measured just before:
// its copy bandwidth for what is bound by memory, and a rate for what is not.
#ifndef INVAR_KERNELS_CUDA_TESTING_BENCH_H_
#define INVAR_KERNELS_CUDA_TESTING_BENCH_H_

#include <cuda_runtime_api.h>

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "kernels/cuda/device.h"

namespace invar::cuda::testing {

// Device 0. Without a GPU nothing, and it says that `what` is skipped; the exit
// code is then kNoGpu, as of the tests.
constexpr int kNoGpu = 77;
std::optional<DeviceFacts> DeviceOrSkip(const char* what);

class Bench {
 public:
  // Measures the copy bandwidth: bytes read plus bytes written.
  explicit Bench(cudaStream_t stream);

  cudaStream_t stream() const { return stream_; }
  double bytes_per_second() const { return bytes_per_second_; }

  // Median seconds of one `launch(i)`, i rotating over [0, inputs): of graphs
  // that hold one launch of each, so that gaps between launches do not count.
  // Inputs that fit in L2 together measure L2.
  double Seconds(int inputs, const std::function<void(int)>& launch);

  // Prints a row: the time, the bytes that must move over it, its share of the
  // copy bandwidth; with `operations` also the rate.
  void Report(const std::string& name, double seconds, double bytes,
              double operations = 0);

 private:
  cudaStream_t stream_;
  double bytes_per_second_ = 0;
};

// A benchmark registers itself: static const BenchEntry entry("gemm", Run);
// `gpu_bench --bench gemm` runs those whose name holds the text.
using BenchFunction = void (*)(Bench& bench);
struct BenchEntry {
  BenchEntry(std::string name, BenchFunction run);
  std::string name;
  BenchFunction run;
};
std::vector<const BenchEntry*>& BenchEntries();

// What measures more than kernels registers itself as a program of gpu_bench's:
// `gpu_bench NAME ARGUMENT...`. `run` returns the exit code.
using ProgramFunction = int (*)(const std::vector<std::string>& arguments);
struct BenchProgram {
  BenchProgram(std::string name, std::string usage, ProgramFunction run);
  std::string name;
  std::string usage;  // of its arguments
  ProgramFunction run;
};
std::vector<const BenchProgram*>& BenchPrograms();

}  // namespace invar::cuda::testing

#endif  // INVAR_KERNELS_CUDA_TESTING_BENCH_H_
