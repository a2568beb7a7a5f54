// Typed, range-checked reads of one JSON object's fields.
#ifndef INVAR_WORKER_MODEL_CHECKPOINT_JSON_FIELDS_H_
#define INVAR_WORKER_MODEL_CHECKPOINT_JSON_FIELDS_H_

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"

namespace invar {

// Keeps whatever was wrong, so that a table of reads stays a table: a read that
// fails gives a value in range, and the reading goes on.
class JsonFields {
 public:
  using Json = nlohmann::json;

  // `prefix` goes before names in messages; `problems` gets one a failure.
  // All must outlive this.
  JsonFields(const Json& object, std::string prefix, const std::string& file,
             std::vector<absl::Status>* problems)
      : object_(object),
        prefix_(std::move(prefix)),
        file_(file),
        problems_(problems) {}

  // Present and not null.
  bool Has(const char* name) const;
  const Json& Get(const char* name) const { return object_[name]; }

  void Invalid(const std::string& name, const std::string& what) {
    Fail(absl::StatusCode::kInvalidArgument, name, what);
  }
  void Unsupported(const std::string& name, const std::string& what) {
    Fail(absl::StatusCode::kUnimplemented, name, what);
  }

  int64_t Integer(const char* name, int64_t low, int64_t high,
                  std::optional<int64_t> absent = std::nullopt);
  // A size that is summed over in lanes.
  int64_t LaneMultiple(const char* name, int64_t high);
  double Number(const char* name, double low, double high,
                std::optional<double> absent = std::nullopt);
  bool Boolean(const char* name, bool absent);
  std::string String(const char* name, const std::string& absent);
  // A list of strings; empty where absent.
  std::vector<std::string> Strings(const char* name);
  // The object under `name`, or an empty one.
  Json Object(const char* name);
  // The field may only be absent, null or equal to what is supported.
  void Only(const char* name, const Json& supported);
  // The field must be there and be that.
  void Exactly(const char* name, const Json& supported);

 private:
  void Fail(absl::StatusCode code, const std::string& name,
            const std::string& what);

  const Json& object_;
  std::string prefix_;
  const std::string& file_;
  std::vector<absl::Status>* problems_;
};

}  // namespace invar

#endif  // INVAR_WORKER_MODEL_CHECKPOINT_JSON_FIELDS_H_
