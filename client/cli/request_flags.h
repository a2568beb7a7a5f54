// The flags that generate and chat share: how tokens are chosen and when an
// answer ends. Absent ones are left to the server.
#ifndef INVAR_CLIENT_CLI_REQUEST_FLAGS_H_
#define INVAR_CLIENT_CLI_REQUEST_FLAGS_H_

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "common/flags.h"
#include "invar/v1/inference.pb.h"

namespace invar {

class RequestFlags {
 public:
  void AddTo(FlagSet& flags);
  void Fill(v1::GenerateRequest& request) const;
  absl::Duration deadline() const { return deadline_; }

 private:
  std::string model_;
  absl::Duration deadline_ = absl::Minutes(10);

  std::optional<float> temperature_;
  std::optional<int32_t> top_k_;
  std::optional<float> top_p_;
  std::optional<float> min_p_;
  std::optional<float> presence_penalty_;
  std::optional<float> frequency_penalty_;
  std::optional<float> repetition_penalty_;
  std::map<int32_t, float> logit_bias_;
  std::optional<uint64_t> seed_;

  std::optional<int32_t> max_tokens_;
  std::optional<int32_t> min_tokens_;
  std::vector<std::string> stop_strings_;
  std::optional<std::vector<int32_t>> stop_token_ids_;
  std::optional<bool> ignore_eos_;
  std::optional<bool> include_stop_text_;
};

}  // namespace invar

#endif  // INVAR_CLIENT_CLI_REQUEST_FLAGS_H_
