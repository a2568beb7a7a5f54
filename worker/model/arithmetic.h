// What a step's multiply-adds cost at least: how many there are, and how fast
// the processor makes them when nothing else holds it up.
#ifndef INVAR_WORKER_MODEL_ARITHMETIC_H_
#define INVAR_WORKER_MODEL_ARITHMETIC_H_

#include <algorithm>
#include <cstdint>
#include <map>
#include <string>

#include "kernels/cpu/thread_pool.h"
#include "worker/model/model.h"

namespace invar {

// Multiply-adds: with an operand in fp32, and of FP8 by FP8.
struct Work {
  double fp32 = 0.0;
  double fp8 = 0.0;

  double all() const { return fp32 + fp8; }
  Work& operator+=(const Work& other) {
    fp32 += other.fp32;
    fp8 += other.fp8;
    return *this;
  }
};

// A decoded token's at `context` visible positions, all layers together, by the
// names of Model::Observe.
std::map<std::string, Work> WorkOf(const ModelConfig& config, int64_t context);

// Multiply-adds a millisecond by all threads of a pool, out of registers.
struct PeakRates {
  double fp32 = 0.0;
  // Of pairs of bf16, which FP8 by FP8 goes through where the processor has
  // such an instruction and is faster so; fp32's where it has none.
  double pairs = 0.0;

  double Milliseconds(const Work& work) const {
    return work.fp32 / fp32 + work.fp8 / std::max(fp32, pairs);
  }
};

// Measured now, the best of some.
PeakRates MeasurePeakRates(cpu::ThreadPool& pool);

}  // namespace invar

#endif  // INVAR_WORKER_MODEL_ARITHMETIC_H_
