#include "tests/bench/kernel_trace.h"

#include <cuda_runtime_api.h>
#include <cupti.h>
#include <cxxabi.h>
#include <dlfcn.h>

#include <algorithm>
#include <cstdlib>
#include <map>
#include <mutex>
#include <utility>

namespace invar::bench {
namespace {

// CUPTI calls back without a context of ours.
struct State {
  decltype(&cuptiActivityEnable) enable = nullptr;
  decltype(&cuptiActivityDisable) disable = nullptr;
  decltype(&cuptiActivityFlushAll) flush = nullptr;
  decltype(&cuptiActivityGetNextRecord) next = nullptr;
  std::mutex mutex;
  std::map<std::string, KernelTime> times;  // by mangled name
  std::vector<std::pair<uint64_t, std::string>> ends;
  uint64_t start = 0;  // of the first kernel, in ns
  uint64_t end = 0;    // of the last one
};

State& TheState() {
  static State* const state = new State;
  return *state;
}

constexpr size_t kBufferBytes = size_t{8} << 20;

void CUPTIAPI GiveBuffer(uint8_t** buffer, size_t* size, size_t* records) {
  *buffer = static_cast<uint8_t*>(std::aligned_alloc(8, kBufferBytes));
  *size = kBufferBytes;
  *records = 0;
}

void CUPTIAPI TakeBuffer(CUcontext, uint32_t, uint8_t* buffer, size_t,
                         size_t valid) {
  State& state = TheState();
  const std::lock_guard<std::mutex> lock(state.mutex);
  CUpti_Activity* record = nullptr;
  while (state.next(buffer, valid, &record) == CUPTI_SUCCESS) {
    if (record->kind != CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL) continue;
    const auto* kernel = reinterpret_cast<CUpti_ActivityKernel10*>(record);
    KernelTime& time = state.times[kernel->name];
    ++time.launches;
    state.ends.emplace_back(kernel->end, kernel->name);
    state.start = std::min<uint64_t>(state.start, kernel->start);
    state.end = std::max<uint64_t>(state.end, kernel->end);
    time.seconds += 1e-9 * static_cast<double>(kernel->end - kernel->start);
  }
  std::free(buffer);
}

// "void invar::cuda::(anonymous namespace)::F<G, 8>(H)" -> "F<G, 8>".
std::string ShortName(const std::string& mangled) {
  int status = 0;
  char* demangled =
      abi::__cxa_demangle(mangled.c_str(), nullptr, nullptr, &status);
  std::string name = status == 0 ? demangled : mangled;
  std::free(demangled);
  for (const std::string scope : {"invar::cuda::", "(anonymous namespace)::",
                                  "void ", "(int)", "(bool)"}) {
    for (size_t at; (at = name.find(scope)) != std::string::npos;) {
      name.erase(at, scope.size());
    }
  }
  return name.substr(0, name.find('('));
}

}  // namespace

std::unique_ptr<KernelTrace> KernelTrace::Create() {
  void* library = nullptr;
  for (const char* name : {"libcupti.so.13", "libcupti.so"}) {
    if (library == nullptr) library = dlopen(name, RTLD_NOW);
  }
  if (library == nullptr) return nullptr;
  State& state = TheState();
  const auto find = [&]<typename F>(const char* name, F* function) {
    *function = reinterpret_cast<F>(dlsym(library, name));
    return *function != nullptr;
  };
  decltype(&cuptiActivityRegisterCallbacks) register_callbacks = nullptr;
  if (!find("cuptiActivityEnable", &state.enable) ||
      !find("cuptiActivityDisable", &state.disable) ||
      !find("cuptiActivityFlushAll", &state.flush) ||
      !find("cuptiActivityGetNextRecord", &state.next) ||
      !find("cuptiActivityRegisterCallbacks", &register_callbacks) ||
      register_callbacks(GiveBuffer, TakeBuffer) != CUPTI_SUCCESS) {
    return nullptr;
  }
  return std::unique_ptr<KernelTrace>(new KernelTrace);
}

KernelTrace::~KernelTrace() {
  TheState().disable(CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL);
}

void KernelTrace::Start() {
  cudaDeviceSynchronize();
  State& state = TheState();
  state.flush(CUPTI_ACTIVITY_FLAG_FLUSH_FORCED);
  {
    const std::lock_guard<std::mutex> lock(state.mutex);
    state.times.clear();
    state.ends.clear();
    state.start = UINT64_MAX;
    state.end = 0;
  }
  state.enable(CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL);
}

KernelTimes KernelTrace::Stop() {
  cudaDeviceSynchronize();
  State& state = TheState();
  state.flush(CUPTI_ACTIVITY_FLAG_FLUSH_FORCED);
  state.disable(CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL);
  KernelTimes times;
  const std::lock_guard<std::mutex> lock(state.mutex);
  std::sort(state.ends.begin(), state.ends.end());
  uint64_t before = state.start;
  for (const auto& [end, name] : state.ends) {
    state.times[name].added += 1e-9 * static_cast<double>(end - before);
    before = end;
  }
  for (const auto& [mangled, time] : state.times) {
    times.kernels.push_back(time);
    times.kernels.back().name = ShortName(mangled);
    times.span = 1e-9 * static_cast<double>(state.end - state.start);
  }
  std::sort(times.kernels.begin(), times.kernels.end(),
            [](const KernelTime& a, const KernelTime& b) {
              return a.added > b.added;
            });
  return times;
}

}  // namespace invar::bench
