// The one model that a worker serves: nothing until the first scheduler sends
// a config, then that config's model and engine for the rest of its life.
#ifndef INVAR_WORKER_REPLICA_H_
#define INVAR_WORKER_REPLICA_H_

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "invar/v1/numerics.pb.h"
#include "invar/worker/v1/link.pb.h"
#include "worker/engine/engine_thread.h"
#include "worker/engine/progress.h"
#include "worker/model/model.h"

namespace invar {

// Thread-safe. Owns the loading thread and the engine's.
class Replica {
 public:
  using ModelLoader = std::function<absl::StatusOr<std::unique_ptr<Model>>(
      const Model::LoadOptions&)>;

  struct Options {
    int threads = 0;  // of the model; 0: one per core
    int schedulers = 1;
    EngineThread::StepObserver observer;
    ModelLoader load_model = Model::Load;
  };

  explicit Replica(Options options) : options_(std::move(options)) {}
  ~Replica();

  // Called once: when the config is served, or with the reason why not. May be
  // called before Configure returns, or on the loading thread.
  using LoadedCallback = std::function<void(const absl::Status&)>;

  // The first call begins to load. A later one with another config is told
  // FAILED_PRECONDITION, which names the differing field.
  void Configure(const worker::v1::WorkerConfig& config, LoadedCallback done);

  // Of the config it holds; empty without one.
  std::string config_digest();
  // Why loading failed, which is final; once every LoadedCallback knows.
  std::optional<absl::Status> load_failure();
  // Whether the load has failed, told or not.
  bool load_failed();
  // Null until loaded.
  EngineThread* engine_if_loaded();
  const Progress& progress() const { return progress_; }

  // Only after a LoadedCallback was told OK.
  EngineThread& engine() { return *engine_; }
  const v1::Numerics& numerics() const { return numerics_; }

 private:
  void Load(const worker::v1::WorkerConfig& config);
  // Fills engine_ and numerics_.
  absl::Status LoadEngine(const worker::v1::WorkerConfig& config);

  const Options options_;
  Progress progress_;
  // Written by the loading thread before state_ says so.
  v1::Numerics numerics_;
  std::unique_ptr<EngineThread> engine_;

  absl::Mutex mutex_;
  std::optional<worker::v1::WorkerConfig> config_ ABSL_GUARDED_BY(mutex_);
  // Absent while loading.
  std::optional<absl::Status> loaded_ ABSL_GUARDED_BY(mutex_);
  std::vector<LoadedCallback> waiting_ ABSL_GUARDED_BY(mutex_);
  bool all_told_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread loading_thread_;
};

}  // namespace invar

#endif  // INVAR_WORKER_REPLICA_H_
