// Which kernels a stretch of work ran and for how long, as CUPTI saw them.
#ifndef INVAR_TESTS_BENCH_KERNEL_TRACE_H_
#define INVAR_TESTS_BENCH_KERNEL_TRACE_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace invar::bench {

struct KernelTime {
  std::string name;  // of the function, without namespaces and parameters
  int64_t launches = 0;
  double seconds = 0;  // summed; kernels that overlap are counted in full
  // By how much they ended after all that had ended before them: these add up
  // to the span, and say what the stretch waited for.
  double added = 0;
};

struct KernelTimes {
  std::vector<KernelTime> kernels;  // the longest first
  double span = 0;  // seconds from the first one's start to the last one's end
};

// One at a time in a process. libcupti is looked for when one is made, so that
// benchmarks run without it.
class KernelTrace {
 public:
  // Null if this machine has no libcupti.
  static std::unique_ptr<KernelTrace> Create();
  ~KernelTrace();

  void Start();
  // What ran since Start. Waits for the device.
  KernelTimes Stop();

 private:
  KernelTrace() = default;
};

}  // namespace invar::bench

#endif  // INVAR_TESTS_BENCH_KERNEL_TRACE_H_
