// A loaded DeepSeek-V2-family model and its forward pass.
//
// The contract (README, "The numerics contract"): the logits at position t are
// a pure function of token ids [0..t], the weights, the NumericsPlan and the
// architecture. Nothing in this interface lets a caller break that: a slice may
// be of any length, in any company, in any order of slices.
#ifndef INVAR_WORKER_MODEL_MODEL_H_
#define INVAR_WORKER_MODEL_MODEL_H_

#include <cstdint>
#include <functional>
#include <limits>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "worker/kv/kv_cache.h"
#include "worker/model/checkpoint/checkpoint.h"
#include "worker/model/checkpoint/config.h"
#include "worker/model/rows.h"

namespace invar {

// Consecutive positions of one sequence, computed in one engine step. A decode
// is a slice of one token; a prefill, or a chunk of one, is a longer slice.
struct SequenceSlice {
  // The ids at positions [first_position, first_position + size).
  std::span<const int32_t> token_ids;
  int64_t first_position = 0;
  // Cache blocks of the sequence in order; covers every position up to and
  // including the slice's last. Positions before first_position are filled.
  std::span<const int32_t> block_ids;
  // How many of the slice's last positions want logits: 0 for an inner prefill
  // chunk, 1 to sample, size to score a prompt.
  int64_t logit_rows = 0;
  // Not negative, in Start alone: the slice's one token is what the step that
  // was started before, and is unfinished, chooses in this row. The id in
  // token_ids then means nothing.
  int64_t chosen_row = -1;
};

// kNonFinite: a latent written to the cache or a wanted logit is infinite or
// not a number. The request must fail, and its blocks must not be shared.
enum class SliceHealth { kFinite, kNonFinite };

// What one operation returned for the rows of a step. Of any backend: values
// that are not fp32 in memory are shown as fp32.
struct OpOutput {
  int64_t layer = 0;  // -1 before the first; layers() after the last
  std::string_view op;
  int64_t rows = 0;      // a row a token of the step, or a wanted logit row
  int64_t row_size = 0;  // values
  const float* values = nullptr;  // (rows, row_size), valid during the call
};
using OpObserver = std::function<void(const OpOutput&)>;

class Model {
 public:
  struct LoadOptions {
    std::string path;  // folder with config.json and *.safetensors
    KvDtype kv_dtype = KvDtype::kFp8E5m2;
    int threads = 0;  // of the CPU backend; 0: one per core
    // What a GPU's memory is planned for. More tokens go in several passes;
    // a step never has more sequences.
    int64_t step_tokens = 2048;
    int64_t step_sequences = 256;
    int64_t context_tokens = 0;  // 0: all that the model has
    // At most what the processor has; never moves a bit.
    cpu::Isa isa = cpu::BestIsa();
    // determinism.mode. A backend that has no plan for it fails to load with
    // FAILED_PRECONDITION; one without a FAST plan of its own runs the other.
    bool deterministic = true;
    LoadProgressCallback progress = nullptr;
  };

  // Checks every file before it is used. Errors name the file and the tensor:
  // NOT_FOUND (no such file), INVALID_ARGUMENT (damaged or inconsistent),
  // UNIMPLEMENTED (an architecture or quantisation that is not supported),
  // FAILED_PRECONDITION (no plan for the mode, or for this processor, which
  // must be x86-64-v3).
  static absl::StatusOr<std::unique_ptr<Model>> Load(
      const LoadOptions& options);

  virtual ~Model() = default;

  virtual const ModelConfig& config() const = 0;

  // SHA-256 (hex) over the names, shapes, dtypes and per-tensor SHA-256 of the
  // checkpoint, in name order: independent of sharding and of file names.
  virtual const std::string& weights_digest() const = 0;

  // The backend's part of the NumericsPlan, without the config's
  // (checkpoint/plan_entries.h): name=value lines in a fixed order
  // (kernel revisions, K split, KV dtype and scale, attention split, ...).
  virtual std::vector<std::pair<std::string, std::string>> NumericsPlan()
      const = 0;

  // Whether mode FAST has a plan of its own here.
  virtual bool HasFastPlan() const { return false; }

  // Hash of the kernels' revisions, and the architecture whose bits they give
  // ("x86-64-v3"): the other two parts of the fingerprint that a model knows.
  virtual std::string kernel_build_id() const = 0;
  virtual std::string architecture() const = 0;

  // Blocks of cache for which the backend has memory now.
  virtual int64_t MaxKvBlocks() const {
    return std::numeric_limits<int64_t>::max();
  }

  // A cache with room for `blocks` blocks, of this model's layers and dtype. At
  // most MaxKvBlocks(). Null: there is no such memory, or another process
  // took it meanwhile.
  virtual std::unique_ptr<KvCache> NewKvCache(int64_t blocks) const = 0;

  // Makes at once what Answer's steps on `cache` would make when they need it
  // first, where a backend makes any: a GPU's code and launch graphs, for all
  // that the model was loaded for. Before the first step: it overwrites the
  // cache. Moves no bit.
  virtual void Prepare(KvCache& cache, int64_t limit) {}

  // Appends the slices' latents to the cache and computes the wanted logits.
  // `logits`: (sum of logit_rows, vocab_size) fp32, rows in slice order.
  // Returns the health of each slice, in slice order; one slice's health never
  // touches another's values.
  // Not thread-safe: one caller at a time (it owns the thread pool).
  virtual std::vector<SliceHealth> Forward(
      std::span<const SequenceSlice> slices, KvCache& cache,
      std::span<float> logits) = 0;

  // Forward, and what `requests`, one a row in slice order, ask of the rows;
  // `answers` has as many. Rows of a slice that is not finite are not answered.
  // Ids >= limit are neither chosen nor alternatives.
  virtual std::vector<SliceHealth> Answer(std::span<const SequenceSlice> slices,
                                          KvCache& cache, int64_t limit,
                                          std::span<const RowRequest> requests,
                                          std::span<RowAnswer> answers);

  // Answer in two parts, for a caller that works on while steps are computed.
  // Start takes a step, of which nothing need outlive the call; Finish waits
  // for the first unfinished one, whose count of rows `answers` has. All is as
  // if steps were computed one after the other, in the order of their starts:
  // one may write where an earlier one reads. At most StepsInFlight() are
  // unfinished; while any is, neither Forward nor Answer is called, and the
  // cache lives on.
  virtual int64_t StepsInFlight() const { return 1; }
  virtual void Start(std::span<const SequenceSlice> slices, KvCache& cache,
                     int64_t limit, std::span<const RowRequest> requests);
  virtual std::vector<SliceHealth> Finish(std::span<RowAnswer> answers);

  // Shows each operation's output to `observer` from now on; an empty one ends
  // it, and then nothing is spent on it. For the bisection of two runs whose
  // bits differ (digests.h). A backend without it shows nothing.
  virtual void Observe(OpObserver observer) {}

 private:
  std::vector<float> logits_;  // of Answer
  // Of a step that was computed in Start.
  std::vector<SliceHealth> health_;
  std::vector<RowAnswer> answers_;
};

}  // namespace invar

#endif  // INVAR_WORKER_MODEL_MODEL_H_
