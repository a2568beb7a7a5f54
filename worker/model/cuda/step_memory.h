// The device memory of a step, planned once for the largest one.
#ifndef INVAR_WORKER_MODEL_CUDA_STEP_MEMORY_H_
#define INVAR_WORKER_MODEL_CUDA_STEP_MEMORY_H_

#include <cstddef>
#include <cstdint>
#include <memory>

#include "absl/status/statusor.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/ops_linear.h"
#include "kernels/cuda/ops_sample.h"
#include "worker/model/checkpoint/config.h"
#include "worker/model/cuda/device_weights.h"

namespace invar::cuda {

// What products read: rows of any of their dtypes, one dtype at a time, and
// the scales that dynamic ones have.
class InputBuffer {
 public:
  // RESOURCE_EXHAUSTED: no memory. INTERNAL: the copy engine cannot describe
  // the buffer (MakeGemmInput).
  static absl::StatusOr<InputBuffer> Allocate(int64_t rows, int64_t columns);

  const GemmInput& As(const InputKind& kind) const;
  InputSink Sink(const InputKind& kind) const;
  InputRows Rows(const InputKind& kind) const;

 private:
  DeviceBuffer<std::byte> data_;
  DeviceBuffer<float> scales_;
  int64_t columns_ = 0;
  GemmInput bf16_, fp16_, fp8_, fp8_dynamic_;
};

// Host memory that the copy engine reads and writes without a detour.
template <typename T>
class PinnedBuffer {
 public:
  // RESOURCE_EXHAUSTED: no memory.
  static absl::StatusOr<PinnedBuffer> Allocate(int64_t count) {
    PinnedBuffer buffer;
    void* data = nullptr;
    absl::Status status =
        ToStatus(cudaHostAlloc(&data, count * sizeof(T), cudaHostAllocDefault),
                 "allocating pinned host memory");
    if (!status.ok()) return status;
    buffer.data_.reset(static_cast<T*>(data));
    return buffer;
  }
  T* data() const { return data_.get(); }

 private:
  struct Free {
    void operator()(T* p) const { cudaFreeHost(p); }
  };
  std::unique_ptr<T[], Free> data_;
};

// Steps whose inputs and results the host's memory holds at once.
inline constexpr int64_t kStepsInFlight = 2;

struct StepLimits {
  int64_t tokens = 0;         // of a pass over the layers
  int64_t sequences = 0;      // of a step
  int64_t logit_rows = 0;     // of a product with the LM head
  int64_t max_positions = 0;  // of a sequence
};

// Of T = limits.tokens tokens; names are those of the CPU's step.
struct StepMemory {
  // What a pass brings from the host, in one copy.
  struct Places {
    SampleRow* rows = nullptr;     // (T) what is asked of rows of logits
    int32_t* ids = nullptr;        // (T) of tokens, as StepTokens has them
    int32_t* positions = nullptr;  // (T)
    int32_t* tables = nullptr;     // (T)
    int32_t* row_ids = nullptr;    // (T) of the wanted logits
    // (T) positions and tables of the tokens that those are of.
    int32_t* row_positions = nullptr;
    int32_t* row_tables = nullptr;
    int32_t* block_ids = nullptr;  // (BlockIds()) of all sequences' tables
  };
  // What a pass leaves to the host, in one copy, and the rows' ids to the next
  // step. At the same place for all passes.
  struct Results {
    uint8_t* finite = nullptr;      // (T)
    SampledRow* sampled = nullptr;  // (T)
  };

  // RESOURCE_EXHAUSTED: no memory. INTERNAL: as InputBuffer::Allocate.
  static absl::StatusOr<StepMemory> Allocate(const ModelConfig& config,
                                             const StepLimits& limits);

  // As many as the step's sequences can have: nothing moves or grows later.
  int64_t BlockIds() const;
  // Where a pass of `tokens` is staged by step `slot` of those in flight. The
  // device's places of all passes small enough for a graph are the same.
  void Place(int64_t tokens, int64_t slot);
  // What is staged of a pass placed so, with `block_ids` of them.
  int64_t StagedBytes(int64_t block_ids) const;
  // Of a pass that asks for `rows` rows of logits.
  int64_t ResultBytes(int64_t rows) const;
  Results HostResults(int64_t slot) const {
    return ResultsAt(results_host[slot].data());
  }
  Results ResultsAt(std::byte* base) const;

  StepLimits limits;
  int64_t stride = 0;  // of places
  Places host, device;
  PinnedBuffer<std::byte> staged_host[kStepsInFlight];
  DeviceBuffer<std::byte> staged;
  PinnedBuffer<std::byte> results_host[kStepsInFlight];
  DeviceBuffer<std::byte> results_memory;
  Results results;  // in device memory

  DeviceBuffer<float> hidden;            // (T, hidden)
  DeviceBuffer<float> normed;            // (T, hidden)
  DeviceBuffer<float> roots;             // (T), RmsNorm's
  DeviceBuffer<float> q_a;               // (T, q_lora_rank)
  DeviceBuffer<float> q;                 // (T, heads, N + R)
  DeviceBuffer<float> kv_a;              // (T, L + R)
  DeviceBuffer<float> query;             // (T, heads, L + R)
  DeviceBuffer<float> attended;          // (T, heads, L)
  DeviceBuffer<float> attention_parts;   // of splits
  DeviceBuffer<std::byte> prompt_tiles;  // of PromptAttention
  // Inputs of a product before they are quantised, where a kernel cannot do
  // both: (T, heads * V), (T, inner), (T * top_k, moe inner).
  DeviceBuffer<float> unquantised;
  DeviceBuffer<float> side_unquantised;   // (T, inner) of shared experts
  DeviceBuffer<__nv_bfloat16> projected;  // (T, hidden)
  DeviceBuffer<int32_t> expert_ids;       // (T, top_k)
  DeviceBuffer<float> expert_weights;     // (T, top_k)
  DeviceBuffer<__nv_bfloat16> slots;      // (T, top_k, hidden)
  DeviceBuffer<int32_t> order, counts;
  DeviceBuffer<ExpertWork> work;
  DeviceBuffer<float> logits;  // (logit_rows, vocab)

  InputBuffer inputs[2];        // (T, hidden) after a norm
  InputBuffer q_inputs;         // (T, q_lora_rank)
  InputBuffer value_inputs;     // (T, heads * V)
  InputBuffer dense_inputs;     // (T, inner) of dense layers
  InputBuffer shared_inputs;    // (T, inner) of shared experts
  InputBuffer gathered_inputs;  // (T * top_k, hidden) in the experts' order
  InputBuffer expert_inputs;    // (T * top_k, moe inner)

  ExpertPlan plan() const { return {order.data(), work.data(), counts.data()}; }
};

}  // namespace invar::cuda

#endif  // INVAR_WORKER_MODEL_CUDA_STEP_MEMORY_H_
