// From a public request to what the core and the answer need: every field
// checked, every default resolved, the prompt tokenized.
#ifndef INVAR_SCHEDULER_API_REQUEST_READER_H_
#define INVAR_SCHEDULER_API_REQUEST_READER_H_

#include <grpcpp/support/status.h>

#include <cstdint>
#include <string>
#include <vector>

#include "invar/v1/config.pb.h"
#include "invar/v1/inference.pb.h"
#include "scheduler/core/types.h"
#include "scheduler/tokenizer/tokenizer.h"

namespace invar::scheduler {

// Stateless and thread-safe; borrows its arguments.
class RequestReader {
 public:
  RequestReader(const Tokenizer& tokenizer, const v1::Limits& limits,
                std::string model_name)
      : tokenizer_(tokenizer),
        limits_(limits),
        model_name_(std::move(model_name)) {}

  // Fills everything but number, request_id, seed and deadline. Errors name
  // the field: INVALID_ARGUMENT, NOT_FOUND (model).
  grpc::Status Read(const v1::GenerateRequest& request,
                    RequestSpec* spec) const;

  // INVALID_ARGUMENT names request_id.
  static grpc::Status CheckRequestId(const std::string& request_id);

  // The ids of a text or a conversation, as Generate reads them.
  grpc::Status ReadText(const std::string& text,
                        std::vector<int32_t>* ids) const;
  grpc::Status ReadChat(const v1::Chat& chat, std::vector<int32_t>* ids) const;
  grpc::Status CheckModel(const std::string& model) const;
  // INVALID_ARGUMENT names FIELD[i] for an id outside the vocabulary.
  grpc::Status CheckIds(
      const std::string& field,
      const google::protobuf::RepeatedField<int32_t>& ids) const;

 private:
  grpc::Status ReadPrompt(const v1::GenerateRequest& request,
                          std::vector<int32_t>* ids) const;
  grpc::Status ReadSampling(const v1::Sampling& sampling,
                            RequestSpec* spec) const;
  grpc::Status ReadLogitBias(const v1::Sampling& sampling,
                             v1::EffectiveSampling* effective) const;
  grpc::Status ReadStopping(const v1::Stopping& stopping,
                            RequestSpec* spec) const;
  grpc::Status ReadOutput(const v1::Output& output, RequestSpec* spec) const;
  grpc::Status ReadResume(const v1::ResumeFrom& resume,
                          RequestSpec* spec) const;

  const Tokenizer& tokenizer_;
  const v1::Limits& limits_;
  const std::string model_name_;
};

}  // namespace invar::scheduler

#endif  // INVAR_SCHEDULER_API_REQUEST_READER_H_
