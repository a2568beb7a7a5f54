#include "worker/replica.h"

#include <spdlog/spdlog.h>
#include <unistd.h>

#include <algorithm>
#include <iostream>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/config.h"
#include "common/numerics.h"
#include "common/status.h"
#include "common/tokenizer_digest.h"
#include "worker/engine/steady_clock.h"
#include "worker/load_progress.h"
#include "worker/model/checkpoint/plan_entries.h"

namespace invar {
namespace {

using worker::v1::WorkerConfig;

KvDtype KvDtypeOf(v1::KvCache::Dtype dtype) {
  switch (dtype) {
    case v1::KvCache::FP8_E4M3:
      return KvDtype::kFp8E4m3;
    case v1::KvCache::BF16:
      return KvDtype::kBf16;
    case v1::KvCache::FP32:
      return KvDtype::kFp32;
    default:
      return KvDtype::kFp8E5m2;
  }
}

int64_t BlockBytes(const WorkerConfig& config, const Model& model) {
  return KvCache::BlockBytes(KvDtypeOf(config.kv_cache().dtype()),
                             model.config().layers,
                             model.config().kv_row_elements());
}

absl::Status NoRoom(const WorkerConfig& config, const Model& model) {
  const int64_t block_bytes = BlockBytes(config, model);
  // Where nothing is known of the device's memory, any number of blocks.
  const bool is_known =
      model.MaxKvBlocks() <= std::numeric_limits<int64_t>::max() / block_bytes;
  const std::string room =
      is_known ? absl::StrCat("room for ", model.MaxKvBlocks() * block_bytes)
               : "less room";
  return absl::ResourceExhaustedError(absl::StrCat(
      "kv_cache.memory_bytes is ", config.kv_cache().memory_bytes(),
      ", but the device has ", room,
      " beside the model: lower it; workers that share a device share its "
      "memory"));
}

// Blocks that fit in kv_cache.memory_bytes.
absl::StatusOr<int64_t> KvBlocks(const WorkerConfig& config,
                                 const Model& model) {
  const int64_t block_bytes = BlockBytes(config, model);
  const int64_t blocks = config.kv_cache().memory_bytes() / block_bytes;
  if (blocks > model.MaxKvBlocks()) return NoRoom(config, model);
  if (blocks > 0) return blocks;
  return absl::FailedPreconditionError(absl::StrCat(
      "kv_cache.memory_bytes is ", config.kv_cache().memory_bytes(),
      ", but one block of this model takes ", block_bytes, ": raise it"));
}

v1::Numerics MakeNumerics(const WorkerConfig& config, const Model& model,
                          std::string tokenizer_digest) {
  v1::Numerics numerics;
  const auto add = [&numerics](const std::string& name,
                               const std::string& value) {
    v1::NumericsPlan::Entry* entry = numerics.mutable_plan()->add_entries();
    entry->set_name(name);
    entry->set_value(value);
  };
  // Also where the two plans are equal: a pool promises what its mode says.
  add("mode", v1::Determinism::Mode_Name(config.determinism().mode()));
  for (const auto& [name, value] : model.NumericsPlan()) add(name, value);
  for (const auto& [name, value] : PlanEntries(model.config())) {
    add(name, value);
  }
  numerics.set_weights_digest(model.weights_digest());
  numerics.set_kernel_build_id(model.kernel_build_id());
  numerics.set_architecture(model.architecture());
  numerics.set_tokenizer_digest(std::move(tokenizer_digest));
  numerics.set_fingerprint(Fingerprint(numerics));
  return numerics;
}

}  // namespace

Replica::~Replica() {
  if (loading_thread_.joinable()) loading_thread_.join();
}

void Replica::Configure(const WorkerConfig& config, LoadedCallback done) {
  absl::Status answer;
  {
    absl::MutexLock lock(&mutex_);
    if (!config_.has_value()) {
      config_ = config;
      waiting_.push_back(std::move(done));
      loading_thread_ = std::thread([this, config] { Load(config); });
      return;
    }
    const std::string difference = DifferingField(*config_, config);
    if (!difference.empty()) {
      answer = WithReason(
          absl::FailedPreconditionError(absl::StrCat(
              "this worker holds another config, that of an earlier scheduler "
              "or of another one, which differs: ",
              difference,
              "; restart the worker, or give all schedulers one config")),
          "CONFIG_DIFFERS");
    } else if (loaded_.has_value()) {
      answer = *loaded_;
    } else {
      waiting_.push_back(std::move(done));
      return;
    }
  }
  done(answer);
}

std::string Replica::config_digest() {
  absl::MutexLock lock(&mutex_);
  return config_.has_value() ? ConfigDigest(*config_) : "";
}

std::optional<absl::Status> Replica::load_failure() {
  absl::MutexLock lock(&mutex_);
  if (!all_told_ || loaded_->ok()) return std::nullopt;
  return loaded_;
}

bool Replica::load_failed() {
  absl::MutexLock lock(&mutex_);
  return loaded_.has_value() && !loaded_->ok();
}

EngineThread* Replica::engine_if_loaded() {
  absl::MutexLock lock(&mutex_);
  return loaded_.has_value() && loaded_->ok() ? engine_.get() : nullptr;
}

void Replica::Load(const WorkerConfig& config) {
  const absl::Time start = SteadyNow();
  spdlog::info("loading {}", config.model().path());
  const absl::Status status = LoadEngine(config);
  if (status.ok()) {
    spdlog::info(
        "loaded {} in {:.1f} s: {} KV blocks of {} tokens, fingerprint"
        " {}",
        config.model().name(), absl::ToDoubleSeconds(SteadyNow() - start),
        engine_->facts().options().kv_blocks, kBlockTokens,
        numerics_.fingerprint());
  }
  std::vector<LoadedCallback> waiting;
  {
    absl::MutexLock lock(&mutex_);
    loaded_ = status;
    waiting.swap(waiting_);
  }
  for (const LoadedCallback& done : waiting) done(status);
  absl::MutexLock lock(&mutex_);
  all_told_ = true;
}

absl::Status Replica::LoadEngine(const WorkerConfig& config) {
  const std::string& path = config.model().path();
  absl::StatusOr<std::string> tokenizer_digest = TokenizerDigest(path);
  if (!tokenizer_digest.ok()) return tokenizer_digest.status();
  Model::LoadOptions load;
  load.path = path;
  load.kv_dtype = KvDtypeOf(config.kv_cache().dtype());
  load.threads = options_.threads;
  load.deterministic = config.determinism().mode() != v1::Determinism::FAST;
  const v1::Limits& limits = config.limits();
  load.step_tokens = limits.max_step_tokens();
  load.step_sequences = limits.max_running_sequences();
  load.context_tokens = limits.max_context_tokens();
  // Where the log goes too.
  LoadProgress progress(isatty(STDERR_FILENO) ? &std::cerr : nullptr,
                        SteadyNow());
  load.progress = [&progress](int64_t done, int64_t total) {
    progress.Show(done, total, SteadyNow());
  };
  absl::StatusOr<std::unique_ptr<Model>> model = options_.load_model(load);
  if (absl::IsFailedPrecondition(model.status())) {
    return WithReason(model.status(), "NUMERICS_NOT_HONOURED");
  }
  if (!model.ok()) return model.status();
  const ModelConfig& model_config = (*model)->config();
  const int64_t tokenizer_ids = config.tokenizer_vocab_size();
  if (tokenizer_ids < 1 || tokenizer_ids > model_config.vocab_size) {
    return absl::InvalidArgumentError(
        absl::StrCat("the scheduler's tokenizer has ", tokenizer_ids,
                     " ids, but the vocabulary of ", path, " is [0, ",
                     model_config.vocab_size, ")"));
  }
  const absl::StatusOr<int64_t> kv_blocks = KvBlocks(config, **model);
  if (!kv_blocks.ok()) return kv_blocks.status();
  std::unique_ptr<KvCache> cache = (*model)->NewKvCache(*kv_blocks);
  if (cache == nullptr) return NoRoom(config, **model);
  (*model)->Prepare(*cache, tokenizer_ids);
  if (config.determinism().mode() == v1::Determinism::FAST) {
    spdlog::info(
        "determinism.mode is FAST; on this backend {}",
        (*model)->HasFastPlan()
            ? "the bits of an answer depend on what runs beside it"
            : "its plan equals DETERMINISTIC's, and so does its speed");
  }

  Engine::Options options;
  options.kv_blocks = *kv_blocks;
  options.max_running_sequences = limits.max_running_sequences();
  options.max_step_tokens = limits.max_step_tokens();
  options.max_context_tokens = model_config.max_position_embeddings;
  if (limits.max_context_tokens() > 0) {
    options.max_context_tokens = std::min<int64_t>(options.max_context_tokens,
                                                   limits.max_context_tokens());
  }
  options.max_top_logprobs = limits.max_top_logprobs();
  options.tokenizer_ids = tokenizer_ids;
  options.schedulers = options_.schedulers;
  numerics_ = MakeNumerics(config, **model, *std::move(tokenizer_digest));
  engine_ = std::make_unique<EngineThread>(
      std::make_unique<Engine>(options, *std::move(model), std::move(cache)),
      &progress_, options_.observer);
  return absl::OkStatus();
}

}  // namespace invar
