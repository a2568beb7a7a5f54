#include "common/config.h"

#include <google/protobuf/io/tokenizer.h>
#include <google/protobuf/text_format.h>

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/digest.h"

namespace invar {
namespace {

using google::protobuf::FieldDescriptor;
using google::protobuf::Message;

// Collects protobuf's complaints with 1-based line and column.
class ErrorCollector : public google::protobuf::io::ErrorCollector {
 public:
  explicit ErrorCollector(std::string name) : name_(std::move(name)) {}

  void AddError(int line, int column, const std::string& message) override {
    if (!errors_.empty()) return;  // The rest follows from the first.
    errors_ =
        absl::StrCat(name_, ":", line + 1, ":", column + 1, ": ", message);
  }
  void AddWarning(int line, int column, const std::string& message) override {}

  const std::string& errors() const { return errors_; }

 private:
  std::string name_;
  std::string errors_;
};

// A limit's default and range. Every field of Limits stands here.
struct LimitRule {
  const char* name;
  int64_t fallback;
  int64_t least;
  int64_t most;
};

constexpr LimitRule kLimitRules[] = {
    {"max_queued_requests", 4096, 1, 1'000'000},
    {"max_running_sequences", 64, 1, 4096},
    {"max_step_tokens", 512, 1, 1 << 20},
    {"max_context_tokens", 0, 0, 1 << 24},
    {"default_max_tokens", 256, 1, 1 << 24},
    {"max_message_bytes", 4 << 20, 1 << 10, 64 << 20},
    {"link_message_bytes", 1 << 20, 16 << 10, 64 << 20},
    {"max_stop_strings", 16, 1, 1024},
    {"max_stop_string_bytes", 256, 1, 1 << 16},
    {"max_stop_token_ids", 64, 1, 4096},
    {"max_top_logprobs", 20, 1, 1024},
    {"stream_buffer_bytes", 1 << 20, 1 << 10, 1 << 30},
    {"client_stall_ms", 30'000, 100, 3'600'000},
    {"heartbeat_ms", 500, 50, 60'000},
    {"heartbeat_timeout_ms", 2'000, 200, 600'000},
    {"step_stall_ms", 60'000, 100, 3'600'000},
    {"grpc_memory_bytes", 256 << 20, 16 << 20, int64_t{1} << 40},
    {"api_threads", 4, 1, 256},
    {"max_attempts", 2, 1, 16},
    {"worker_wait_ms", 30'000, 1, 3'600'000},
    {"max_logit_bias", 1024, 1, 1 << 16},
};

// Bytes of a Submit on the link without its token ids: an id of stop_token_ids
// or an entry of logit_bias at most, and everything else.
constexpr int64_t kStopIdBytes = 6;
constexpr int64_t kLogitBiasBytes = 16;
constexpr int64_t kSubmitBytes = 4096;

int64_t GetInteger(const Message& message, const FieldDescriptor* field) {
  const auto* reflection = message.GetReflection();
  return field->cpp_type() == FieldDescriptor::CPPTYPE_INT32
             ? reflection->GetInt32(message, field)
             : reflection->GetInt64(message, field);
}

void SetInteger(Message* message, const FieldDescriptor* field, int64_t value) {
  const auto* reflection = message->GetReflection();
  if (field->cpp_type() == FieldDescriptor::CPPTYPE_INT32) {
    reflection->SetInt32(message, field, static_cast<int32_t>(value));
  } else {
    reflection->SetInt64(message, field, value);
  }
}

absl::Status ResolveLimits(v1::Limits* limits) {
  for (const LimitRule& rule : kLimitRules) {
    const auto* field = limits->GetDescriptor()->FindFieldByName(rule.name);
    const int64_t value = GetInteger(*limits, field);
    if (value == 0) {
      SetInteger(limits, field, rule.fallback);
    } else if (value < rule.least || value > rule.most) {
      return absl::InvalidArgumentError(absl::StrCat(
          "limits.", rule.name, " is ", value, "; it must lie in [", rule.least,
          ", ", rule.most, "], or be left out for ", rule.fallback));
    }
  }
  if (limits->heartbeat_timeout_ms() < 2 * limits->heartbeat_ms()) {
    return absl::InvalidArgumentError(absl::StrCat(
        "limits.heartbeat_timeout_ms is ", limits->heartbeat_timeout_ms(),
        "; it must be at least twice limits.heartbeat_ms (",
        limits->heartbeat_ms(), ")"));
  }
  const int64_t submit_bytes = kSubmitBytes +
                               limits->max_stop_token_ids() * kStopIdBytes +
                               limits->max_logit_bias() * kLogitBiasBytes;
  if (limits->link_message_bytes() < submit_bytes) {
    return absl::InvalidArgumentError(absl::StrCat(
        "limits.link_message_bytes is ", limits->link_message_bytes(),
        "; with limits.max_stop_token_ids and limits.max_logit_bias as they "
        "are it must be at least ",
        submit_bytes));
  }
  return absl::OkStatus();
}

absl::Status ResolveModel(v1::ModelSource* model) {
  if (model->path().empty()) {
    return absl::InvalidArgumentError(
        "model.path is not set; name the folder of a checkpoint");
  }
  if (model->tensor_parallel() == 0) model->set_tensor_parallel(1);
  if (model->tensor_parallel() != 1) {
    return absl::FailedPreconditionError(
        absl::StrCat("model.tensor_parallel is ", model->tensor_parallel(),
                     "; only 1 exists in this version"));
  }
  if (model->name().empty()) {
    std::filesystem::path path(model->path());
    if (!path.has_filename()) path = path.parent_path();
    model->set_name(path.filename().string());
  }
  return absl::OkStatus();
}

absl::Status ResolveKvCache(v1::KvCache* cache) {
  if (cache->dtype() == v1::KvCache::DTYPE_UNSPECIFIED) {
    cache->set_dtype(v1::KvCache::FP8_E5M2);
  }
  if (cache->block_tokens() == 0) cache->set_block_tokens(64);
  if (cache->block_tokens() != 64) {
    return absl::InvalidArgumentError(absl::StrCat("kv_cache.block_tokens is ",
                                                   cache->block_tokens(),
                                                   "; only 64 exists"));
  }
  if (cache->memory_bytes() == 0) cache->set_memory_bytes(1 << 30);
  if (cache->memory_bytes() < 1 << 16) {
    return absl::InvalidArgumentError(
        absl::StrCat("kv_cache.memory_bytes is ", cache->memory_bytes(),
                     "; it must be at least 65536"));
  }
  return absl::OkStatus();
}

void ResolveListen(v1::Listen* listen) {
  if (listen->api().empty()) listen->set_api("127.0.0.1:8470");
  if (listen->worker_link().empty()) listen->set_worker_link("127.0.0.1:8471");
  if (listen->admin().empty()) listen->set_admin("127.0.0.1:8472");
  if (listen->metrics().empty()) listen->set_metrics("127.0.0.1:9470");
}

absl::Status Resolve(v1::ServerConfig* config) {
  if (auto status = ResolveModel(config->mutable_model()); !status.ok()) {
    return status;
  }
  if (auto status = ResolveKvCache(config->mutable_kv_cache()); !status.ok()) {
    return status;
  }
  auto* determinism = config->mutable_determinism();
  if (determinism->mode() == v1::Determinism::MODE_UNSPECIFIED) {
    determinism->set_mode(v1::Determinism::DETERMINISTIC);
  }
  ResolveListen(config->mutable_listen());
  return ResolveLimits(config->mutable_limits());
}

// Flattens a message of singular fields to "path=value" pairs.
void Flatten(const Message& message, const std::string& prefix,
             std::vector<std::pair<std::string, std::string>>* lines) {
  const auto* descriptor = message.GetDescriptor();
  for (int i = 0; i < descriptor->field_count(); ++i) {
    const FieldDescriptor* field = descriptor->field(i);
    const std::string path = absl::StrCat(prefix, field->name());
    if (field->cpp_type() == FieldDescriptor::CPPTYPE_MESSAGE) {
      Flatten(message.GetReflection()->GetMessage(message, field),
              absl::StrCat(path, "."), lines);
      continue;
    }
    std::string value;
    google::protobuf::TextFormat::PrintFieldValueToString(message, field, -1,
                                                          &value);
    lines->emplace_back(path, std::move(value));
  }
}

}  // namespace

absl::StatusOr<v1::ServerConfig> ParseServerConfig(absl::string_view text,
                                                   const std::string& name) {
  v1::ServerConfig config;
  ErrorCollector errors(name);
  google::protobuf::TextFormat::Parser parser;
  parser.RecordErrorsTo(&errors);
  if (!parser.ParseFromString(std::string(text), &config)) {
    return absl::InvalidArgumentError(errors.errors());
  }
  if (auto status = Resolve(&config); !status.ok()) {
    return absl::Status(status.code(),
                        absl::StrCat(name, ": ", status.message()));
  }
  return config;
}

absl::StatusOr<v1::ServerConfig> LoadServerConfig(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::stringstream text;
  if (!file || !(text << file.rdbuf())) {
    return absl::NotFoundError(absl::StrCat("cannot read the config file ",
                                            path,
                                            "; see deploy/config for samples"));
  }
  auto config = ParseServerConfig(text.str(), path);
  if (!config.ok()) return config;
  std::error_code error;
  const auto folder = std::filesystem::absolute(path, error).parent_path();
  auto* model = config->mutable_model();
  model->set_path((folder / model->path()).lexically_normal().string());
  return config;
}

worker::v1::WorkerConfig MakeWorkerConfig(const v1::ServerConfig& config) {
  worker::v1::WorkerConfig result;
  *result.mutable_model() = config.model();
  *result.mutable_kv_cache() = config.kv_cache();
  *result.mutable_determinism() = config.determinism();
  *result.mutable_limits() = config.limits();
  return result;
}

std::string ConfigDigest(const worker::v1::WorkerConfig& config) {
  std::vector<std::pair<std::string, std::string>> lines;
  Flatten(config, "", &lines);
  std::string text;
  for (const auto& [path, value] : lines) {
    absl::StrAppend(&text, path, "=", value, "\n");
  }
  return Sha256Hex(text);
}

std::string DifferingField(const worker::v1::WorkerConfig& ours,
                           const worker::v1::WorkerConfig& theirs) {
  std::vector<std::pair<std::string, std::string>> left;
  std::vector<std::pair<std::string, std::string>> right;
  Flatten(ours, "", &left);
  Flatten(theirs, "", &right);
  const auto [a, b] = std::mismatch(left.begin(), left.end(), right.begin());
  if (a == left.end()) return "";
  return absl::StrCat(a->first, " is ", a->second, " here and ", b->second,
                      " there");
}

}  // namespace invar
