// Continuous batching over one model: what a worker does, without its sockets,
// threads and clock.
#ifndef INVAR_WORKER_ENGINE_ENGINE_H_
#define INVAR_WORKER_ENGINE_ENGINE_H_

#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "invar/worker/v1/link.pb.h"
#include "worker/engine/batcher.h"
#include "worker/engine/credits.h"
#include "worker/engine/sequence.h"
#include "worker/engine/submit_check.h"
#include "worker/kv/block_pool.h"
#include "worker/model/model.h"

namespace invar {

// Takes what one step did for one session. Of any size: the link splits it.
using ReportSink = std::function<void(worker::v1::StepReport)>;

// What one step did, for metrics.
struct StepSummary {
  bool computed = false;  // False: it only ended sequences.
  // Computed: prompt, resumed output, and again what was preempted or what a
  // sequence that ended meanwhile had in flight.
  int64_t prompt_tokens = 0;
  int64_t generated_tokens = 0;  // sampled
  int64_t running = 0;
  int64_t waiting = 0;
  int64_t preemptions = 0;       // since the step before
  int64_t kv_blocks_used = 0;    // of a sequence that runs
  int64_t kv_blocks_cached = 0;  // of none, kept for their text
  int64_t kv_blocks_total = 0;
};

// Owns the model, its cache, the block pool and every sequence. Each call
// returns when its work is done, except that a model which computes beside its
// caller has the next step in flight after Step; reports go to the session's
// sink at the end of Step. Not thread-safe: see EngineThread.
//
// The next step is planned as if no step in flight ended a sequence. What such
// a step computed of one that has ended or was preempted meanwhile is dropped:
// it went into blocks of that sequence alone, and steps are computed in order,
// so whoever takes the blocks next writes them later.
class Engine {
 public:
  struct Options {
    int64_t kv_blocks = 0;
    int64_t max_running_sequences = 0;
    int64_t max_step_tokens = 0;
    int64_t max_context_tokens = 0;
    int64_t max_top_logprobs = 0;
    // Ids that the tokenizer knows; those from here on are never chosen.
    int64_t tokenizer_ids = 0;
    // Schedulers that share the worker.
    int schedulers = 1;
  };

  // `cache` has options.kv_blocks; without one the model makes it.
  Engine(const Options& options, std::unique_ptr<Model> model,
         std::unique_ptr<KvCache> cache = nullptr);
  ~Engine();

  const Model& model() const { return *model_; }
  const Options& options() const { return options_; }
  const SubmitLimits& submit_limits() const { return submit_limits_; }
  int64_t steps() const { return steps_; }
  int64_t kv_blocks_used() const { return pool_.used(); }
  int64_t kv_blocks_cached() const { return pool_.cached(); }
  int64_t kv_blocks_available() const { return pool_.available(); }
  int64_t preemptions() const { return batcher_.preemptions(); }
  int64_t sequences() const { return static_cast<int64_t>(sequences_.size()); }
  // Nothing to compute, nothing in flight and nothing to report.
  bool idle() const {
    return sequences_.empty() && in_flight_.empty() && reports_.empty();
  }

  // What scheduler `place` is granted at an attach.
  CreditAmount Share(int place) const;

  // Begins a session of scheduler `place`. `sink` is called until Close.
  void Open(SessionId session, int place, ReportSink sink);
  // Drops the session: its sequences end without a report.
  void Close(SessionId session);

  // Takes a whole submit. Every submit ends in one Terminal, in a report.
  void Submit(SessionId session, const worker::v1::Submit& submit,
              absl::Time received);
  // Takes a submit only to end it.
  void Refuse(SessionId session, const worker::v1::Submit& submit,
              worker::v1::Terminal::Reason reason, absl::string_view message);
  // A key that does not run, or no longer, is stale and ignored.
  void Cancel(SessionId session, const worker::v1::AttemptKey& key);
  // Does to a sequence what memory pressure does: it gives its blocks back and
  // is computed again, with the same bits. For tests; a key that does not run,
  // or no longer, is stale and ignored.
  void Preempt(SessionId session, const worker::v1::AttemptKey& key);

  // Ends what is past its deadline, computes one step and reports. Steps that
  // the model can compute behind it are started before.
  StepSummary Step(absl::Time now);

 private:
  struct Session {
    CreditLedger ledger;
    ReportSink sink;
  };
  struct StartedStep {
    std::vector<PlannedSlice> slices;  // without a sequence: dropped
    std::vector<RowTask> tasks;        // of its rows
  };

  // What is reported of a sequence in this step.
  worker::v1::AttemptReport* Report(const Sequence& sequence);
  // Reports the end of an attempt and grants its cost again.
  void ReportEnd(SessionId session, worker::v1::AttemptReport* report,
                 const CreditAmount& cost, worker::v1::Terminal::Reason reason,
                 absl::string_view message);
  // Ends a sequence: frees its blocks and forgets it.
  void End(Sequence* sequence, worker::v1::Terminal::Reason reason,
           absl::string_view message);
  void Forget(Sequence* sequence);
  // What the steps in flight compute of it is for nothing.
  void DropInFlight(Sequence* sequence);

  void EndExpired(absl::Time now);
  // False: there is none to start now.
  bool StartStep();
  // The slice's part of the step, and of row_requests_.
  SequenceSlice StartSlice(const PlannedSlice& slice);
  // What the row of `position` is asked for.
  RowRequest RequestOf(const Sequence& sequence, int64_t position) const;
  // Waits for the first step in flight.
  void FinishStep(StepSummary* summary);
  // Returns tokens chosen.
  int64_t Advance(const PlannedSlice& slice, std::span<const RowTask> tasks,
                  std::span<const RowAnswer> answers);
  void AddScore(Sequence* sequence, float log_prob);
  void AddToken(Sequence* sequence, const RowAnswer& answer);
  void SendReports();

  const Options options_;
  const std::unique_ptr<Model> model_;
  const int64_t vocab_size_;
  const SubmitLimits submit_limits_;
  const std::unique_ptr<KvCache> cache_;
  BlockPool pool_;
  Batcher batcher_;
  std::map<SessionId, Session> sessions_;
  std::map<SequenceId, std::unique_ptr<Sequence>> sequences_;
  // Attempts reported in this step, by session.
  std::map<SessionId, std::map<SequenceId, worker::v1::AttemptReport>> reports_;
  std::deque<StartedStep> in_flight_;
  // Of a step's rows of logits.
  std::vector<RowRequest> row_requests_;
  std::vector<RowAnswer> row_answers_;
  int64_t steps_ = 0;
  int64_t preemptions_reported_ = 0;
};

}  // namespace invar

#endif  // INVAR_WORKER_ENGINE_ENGINE_H_
