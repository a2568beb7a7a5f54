// The public API's handlers.
#ifndef INVAR_SCHEDULER_API_INFERENCE_SERVICE_H_
#define INVAR_SCHEDULER_API_INFERENCE_SERVICE_H_

#include <grpcpp/grpcpp.h>

#include <atomic>
#include <functional>
#include <list>
#include <memory>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "invar/v1/config.pb.h"
#include "invar/v1/inference.grpc.pb.h"
#include "scheduler/api/answer_book.h"
#include "scheduler/api/generate_call.h"
#include "scheduler/api/request_reader.h"
#include "scheduler/api/task_pool.h"
#include "scheduler/core_loop.h"

namespace invar::scheduler {

// The methods whose requests hold strings take bytes: see wire.h.
using InferenceServiceBase =
    v1::InferenceService::WithRawCallbackMethod_Generate<
        v1::InferenceService::WithRawCallbackMethod_GenerateOnce<
            v1::InferenceService::WithRawCallbackMethod_Tokenize<
                v1::InferenceService::WithRawCallbackMethod_Detokenize<
                    v1::InferenceService::WithCallbackMethod_GetServerInfo<
                        v1::InferenceService::Service>>>>>;

// Thread-safe. Handlers return at once; reading a request runs on the pool.
class InferenceService final : public InferenceServiceBase {
 public:
  // What the service uses; all must outlive it.
  struct Parts {
    const v1::ServerConfig& config;
    const Tokenizer& tokenizer;
    CoreLoop& loop;
    AnswerBook& answers;
    TaskPool& pool;
    std::string config_digest;
  };
  explicit InferenceService(Parts parts);

  grpc::ServerWriteReactor<grpc::ByteBuffer>* Generate(
      grpc::CallbackServerContext* context,
      const grpc::ByteBuffer* bytes) override;
  grpc::ServerUnaryReactor* GenerateOnce(grpc::CallbackServerContext* context,
                                         const grpc::ByteBuffer* bytes,
                                         grpc::ByteBuffer* response) override;
  grpc::ServerUnaryReactor* Tokenize(grpc::CallbackServerContext* context,
                                     const grpc::ByteBuffer* bytes,
                                     grpc::ByteBuffer* response) override;
  grpc::ServerUnaryReactor* Detokenize(grpc::CallbackServerContext* context,
                                       const grpc::ByteBuffer* bytes,
                                       grpc::ByteBuffer* response) override;
  grpc::ServerUnaryReactor* GetServerInfo(
      grpc::CallbackServerContext* context,
      const v1::GetServerInfoRequest* request,
      v1::GetServerInfoResponse* response) override;

  // Cancels streams whose clients have not read for limits.client_stall_ms.
  // To be called now and then.
  void CancelStalledStreams();

 private:
  // Names the request, announces name and seed, and queues the reading of it;
  // or refuses it if it did not parse.
  void Begin(grpc::CallbackServerContext* context, const grpc::Status& parsed,
             std::shared_ptr<const v1::GenerateRequest> request,
             RequestNumber number, std::shared_ptr<AnswerSink> sink);
  // Runs on the pool.
  void ReadAndSubmit(const v1::GenerateRequest& request,
                     std::shared_ptr<RequestSpec> spec,
                     std::shared_ptr<AnswerSink> sink);
  // Ends a request that the core never sees: one log line, and the status.
  static void Refuse(const RequestSpec& spec, AnswerSink& sink,
                     const grpc::Status& status);
  Abandon AbandonOf(RequestNumber number);

  Parts parts_;
  RequestReader reader_;
  std::atomic<RequestNumber> last_number_ = 0;
  absl::Mutex mutex_;
  std::list<std::weak_ptr<StreamedCall>> streams_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace invar::scheduler

#endif  // INVAR_SCHEDULER_API_INFERENCE_SERVICE_H_
