#include "worker/link/link_client.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <map>
#include <memory>
#include <vector>

#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"
#include "worker/engine/testing/deferring_model.h"
#include "worker/engine/testing/engine_harness.h"
#include "worker/engine/testing/fake_model.h"
#include "worker/link/testing/fake_scheduler.h"

namespace invar {
namespace {

using ::testing::HasSubstr;
using worker::v1::AttachRequest;
using worker::v1::AttachResponse;
using worker::v1::AttemptReport;
using worker::v1::LoadFailed;
using worker::v1::Submit;
using worker::v1::Terminal;
using worker::v1::WorkerConfig;

// A folder with the little that the worker reads itself.
std::string ModelFolder() {
  const std::string folder = ::testing::TempDir() + "/link_client_model";
  std::filesystem::create_directories(folder);
  std::ofstream(folder + "/tokenizer.json") << "{}";
  std::ofstream(folder + "/tokenizer_config.json") << "{}";
  return folder;
}

WorkerConfig MakeConfig() {
  absl::StatusOr<v1::ServerConfig> config = ParseServerConfig(
      "model { path: '" + ModelFolder() +
          "' } kv_cache { memory_bytes: 65536 dtype: FP32 } "
          "limits { heartbeat_ms: 50 heartbeat_timeout_ms: 200 "
          "         step_stall_ms: 1000 "
          "         link_message_bytes: 16384 max_logit_bias: 16 "
          "         max_step_tokens: 8192 "
          "         max_running_sequences: 8 }",
      "test");
  EXPECT_TRUE(config.ok()) << config.status();
  WorkerConfig worker_config = MakeWorkerConfig(*config);
  worker_config.set_tokenizer_vocab_size(90);  // of the model's 97
  return worker_config;
}

class LinkClientTest : public ::testing::Test {
 protected:
  LinkClientTest() {
    Replica::Options options;
    options.load_model = [this](const Model::LoadOptions& load)
        -> absl::StatusOr<std::unique_ptr<Model>> {
      may_load_.WaitForNotification();
      if (!load_status_.ok()) return load_status_;
      FakeModel::Options model = model_;
      model.max_position_embeddings = 1 << 20;
      model.on_forward = [this](std::span<const SequenceSlice>) {
        if (on_forward_) on_forward_();
      };
      return ForThisRun(std::make_unique<FakeModel>(model));
    };
    replica_ = std::make_unique<Replica>(options);
  }
  ~LinkClientTest() override {
    client_.reset();
    if (!may_load_.HasBeenNotified()) may_load_.Notify();
  }

  std::unique_ptr<LinkClient> Dial(const FakeScheduler& scheduler) {
    return std::make_unique<LinkClient>(
        LinkIdentity{scheduler.address(), 0, "worker-1", "cpu"},
        replica_.get());
  }

  // Attaches and loads; returns Loaded.
  worker::v1::Loaded AttachLoaded(int64_t epoch = 1) {
    if (client_ == nullptr) client_ = Dial(scheduler_);
    EXPECT_TRUE(scheduler_.Take(AttachRequest::kHello).has_hello());
    EXPECT_TRUE(scheduler_.Configure(epoch, MakeConfig()));
    if (!may_load_.HasBeenNotified()) may_load_.Notify();
    return scheduler_.Take(AttachRequest::kLoaded).loaded();
  }

  // The same of a config that cannot be served; returns why.
  LoadFailed AttachFailing(const WorkerConfig& config) {
    client_ = Dial(scheduler_);
    EXPECT_TRUE(scheduler_.Take(AttachRequest::kHello).has_hello());
    EXPECT_TRUE(scheduler_.Configure(1, config));
    may_load_.Notify();
    return scheduler_.Take(AttachRequest::kLoadFailed).load_failed();
  }

  static Submit SubmitOf(int64_t epoch, int64_t request, int32_t prompt,
                         int32_t max_tokens) {
    Submit submit =
        MakeSubmit(request, std::vector<int32_t>(prompt, 7), max_tokens);
    submit.mutable_key()->set_epoch(epoch);
    return submit;
  }
  void Send(const Submit& submit) {
    AttachResponse response;
    *response.mutable_submit() = submit;
    EXPECT_TRUE(scheduler_.Send(response));
  }

  // Waits for an attempt's terminal; returns its reports, joined.
  AttemptReport Finish(int64_t request) {
    while (!joined_[request].has_terminal()) {
      const AttachRequest message = scheduler_.Take(AttachRequest::kStepReport);
      if (!message.has_step_report()) break;
      EXPECT_LE(message.ByteSizeLong(), 16384u);
      credits_ = message.step_report().credits();
      for (const AttemptReport& attempt : message.step_report().attempts()) {
        joined_[attempt.key().request()].MergeFrom(attempt);
      }
    }
    AttemptReport joined = std::move(joined_[request]);
    joined_.erase(request);
    return joined;
  }

  FakeScheduler scheduler_;
  absl::Notification may_load_;
  absl::Status load_status_;
  FakeModel::Options model_;
  std::function<void()> on_forward_;
  std::unique_ptr<Replica> replica_;
  std::unique_ptr<LinkClient> client_;
  std::map<int64_t, AttemptReport> joined_;  // by request
  worker::v1::Credits credits_;
};

TEST_F(LinkClientTest, Handshake) {
  client_ = Dial(scheduler_);
  const AttachRequest hello = scheduler_.Take(AttachRequest::kHello);
  EXPECT_EQ(hello.hello().worker_id(), "worker-1");
  EXPECT_EQ(hello.hello().protocol_version(), 1);
  EXPECT_EQ(hello.hello().config_digest(), "");
  ASSERT_TRUE(scheduler_.Configure(1, MakeConfig()));
  // It beats while it loads.
  for (int i = 0; i < 3; ++i) {
    EXPECT_EQ(scheduler_.Take(AttachRequest::kHeartbeat).heartbeat().steps(),
              0);
  }
  may_load_.Notify();
  const AttachRequest message = scheduler_.Take(AttachRequest::kLoaded);
  const worker::v1::Loaded& loaded = message.loaded();
  EXPECT_EQ(loaded.capacity().sequences(), 8);
  EXPECT_EQ(loaded.capacity().kv_blocks(), 65536 / (64 * 4));
  EXPECT_EQ(loaded.capacity().block_tokens(), 64);
  EXPECT_EQ(loaded.credits().sequences(), 8);
  EXPECT_EQ(loaded.credits().kv_tokens(), 65536 / 4);
  EXPECT_EQ(loaded.vocab_size(), 97);
  EXPECT_EQ(loaded.numerics().fingerprint().size(), 64u);
  EXPECT_EQ(loaded.numerics().plan().entries(0).value(), "DETERMINISTIC");
}

TEST_F(LinkClientTest, AnswersAndGrantsAgain) {
  AttachLoaded();
  Send(SubmitOf(1, 5, 10, 3));
  const AttemptReport report = Finish(5);
  EXPECT_EQ(report.token_ids_size(), 3);
  EXPECT_EQ(report.terminal().reason(), Terminal::LENGTH);
  EXPECT_EQ(credits_.sequences(), 9);
  EXPECT_EQ(credits_.kv_tokens(), 65536 / 4 + 64);
}

TEST_F(LinkClientTest, JoinsPartsAndSplitsReports) {
  AttachLoaded();
  Submit submit = SubmitOf(1, 5, 3000, 0);
  submit.set_total_tokens(9000);
  submit.set_prompt_tokens(9000);
  submit.set_prompt_logprobs(true);
  Send(submit);
  AttachResponse part;
  *part.mutable_submit_part()->mutable_key() = submit.key();
  for (int i = 0; i < 3000; ++i) part.mutable_submit_part()->add_token_ids(8);
  ASSERT_TRUE(scheduler_.Send(part));
  ASSERT_TRUE(scheduler_.Send(part));
  // 8,192 positions of one step are 32 KiB: more than a message holds.
  const AttemptReport report = Finish(5);
  EXPECT_EQ(report.prompt_logprobs_size(), 8999);
  EXPECT_EQ(report.terminal().reason(), Terminal::LENGTH);
}

TEST_F(LinkClientTest, MorePartsThanAnnouncedAreInvalid) {
  AttachLoaded();
  Submit submit = SubmitOf(1, 5, 10, 4);
  submit.set_total_tokens(12);
  submit.set_prompt_tokens(12);
  Send(submit);
  AttachResponse part;
  *part.mutable_submit_part()->mutable_key() = submit.key();
  for (int i = 0; i < 3; ++i) part.mutable_submit_part()->add_token_ids(8);
  ASSERT_TRUE(scheduler_.Send(part));
  EXPECT_EQ(Finish(5).terminal().reason(), Terminal::INVALID);
}

TEST_F(LinkClientTest, CancelsWhatRunsAndWhatAwaitsParts) {
  AttachLoaded();
  Send(SubmitOf(1, 5, 10, 10000));
  Submit partial = SubmitOf(1, 6, 10, 4);
  partial.set_total_tokens(12);
  partial.set_prompt_tokens(12);
  Send(partial);
  AttachResponse cancel;
  *cancel.mutable_cancel()->mutable_key() = partial.key();
  ASSERT_TRUE(scheduler_.Send(cancel));
  EXPECT_EQ(Finish(6).terminal().reason(), Terminal::CANCELLED);
  cancel.mutable_cancel()->mutable_key()->set_request(5);
  ASSERT_TRUE(scheduler_.Send(cancel));
  EXPECT_EQ(Finish(5).terminal().reason(), Terminal::CANCELLED);
  EXPECT_TRUE(replica_->engine().WaitUntilIdle(absl::Seconds(20)));
  EXPECT_EQ(replica_->progress().Beat(0).kv_blocks_used(), 0);
}

TEST_F(LinkClientTest, StaleEpochIsDropped) {
  AttachLoaded(2);
  Send(SubmitOf(1, 5, 10, 3));
  Send(SubmitOf(2, 6, 10, 3));
  EXPECT_EQ(Finish(6).terminal().reason(), Terminal::LENGTH);
  EXPECT_EQ(credits_.sequences(), 9);  // The stale one cost nothing.
}

TEST_F(LinkClientTest, LossFreesTheCacheAndTheWorkerComesBack) {
  AttachLoaded(1);
  Send(SubmitOf(1, 5, 10, 10000));
  EXPECT_TRUE(scheduler_.Take(AttachRequest::kStepReport).has_step_report());
  scheduler_.Hang(grpc::Status(grpc::StatusCode::UNAVAILABLE, "test"));
  // It dials again, and holds the config.
  const AttachRequest hello = scheduler_.Take(AttachRequest::kHello);
  EXPECT_EQ(hello.hello().config_digest(), ConfigDigest(MakeConfig()));
  EXPECT_TRUE(replica_->engine().WaitUntilIdle(absl::Seconds(20)));
  EXPECT_EQ(replica_->progress().Beat(0).kv_blocks_used(), 0);
  ASSERT_TRUE(scheduler_.Configure(2, MakeConfig()));
  const AttachRequest loaded = scheduler_.Take(AttachRequest::kLoaded);
  EXPECT_EQ(loaded.loaded().credits().sequences(), 8);
  Send(SubmitOf(2, 5, 10, 3));
  EXPECT_EQ(Finish(5).terminal().reason(), Terminal::LENGTH);
}

TEST_F(LinkClientTest, AStuckStepKeepsItFromDialling) {
  absl::Notification unstick;
  on_forward_ = [&] { unstick.WaitForNotification(); };
  AttachLoaded(1);
  Send(SubmitOf(1, 5, 10, 3));
  const int64_t stall_ms = MakeConfig().limits().step_stall_ms();
  scheduler_.Take([&](const AttachRequest& request) {
    return request.heartbeat().step_age_ms() > stall_ms;
  });
  scheduler_.Hang(grpc::Status(grpc::StatusCode::UNAVAILABLE, "test"));
  ASSERT_TRUE(scheduler_.WaitEnd());
  // Several times its pause. That it does not dial can only be waited for.
  absl::SleepFor(absl::Milliseconds(500));
  EXPECT_FALSE(scheduler_.Has(AttachRequest::kHello));
  unstick.Notify();
  EXPECT_TRUE(scheduler_.Take(AttachRequest::kHello).has_hello());
}

TEST_F(LinkClientTest, DialsUntilTheSchedulerIsThere) {
  int port = 0;
  {
    FakeScheduler earlier;
    port = earlier.port();
  }
  client_ = std::make_unique<LinkClient>(
      LinkIdentity{absl::StrCat("127.0.0.1:", port), 0, "worker-1", "cpu"},
      replica_.get());
  FakeScheduler later(port);
  EXPECT_TRUE(later.Take(AttachRequest::kHello).has_hello());
  client_.reset();
}

TEST_F(LinkClientTest, AnotherConfigIsDeclinedByField) {
  AttachLoaded();
  FakeScheduler other;
  const std::unique_ptr<LinkClient> second = Dial(other);
  ASSERT_TRUE(other.Take(AttachRequest::kHello).has_hello());
  WorkerConfig config = MakeConfig();
  config.mutable_limits()->set_max_step_tokens(64);
  ASSERT_TRUE(other.Configure(1, config));
  const AttachRequest failed = other.Take(AttachRequest::kLoadFailed);
  EXPECT_THAT(failed.load_failed().message(),
              HasSubstr("limits.max_step_tokens"));
  EXPECT_EQ(failed.load_failed().reason(), "CONFIG_DIFFERS");
  EXPECT_FALSE(replica_->load_failure().has_value());
}

TEST_F(LinkClientTest, LoadFailureIsReported) {
  load_status_ = absl::NotFoundError("no checkpoint");
  client_ = Dial(scheduler_);
  ASSERT_TRUE(scheduler_.Take(AttachRequest::kHello).has_hello());
  ASSERT_TRUE(scheduler_.Configure(1, MakeConfig()));
  may_load_.Notify();
  const AttachRequest failed = scheduler_.Take(AttachRequest::kLoadFailed);
  EXPECT_EQ(failed.load_failed().message(), "no checkpoint");
  EXPECT_EQ(failed.load_failed().code(),
            static_cast<int>(absl::StatusCode::kNotFound));
  // Told to every scheduler before anyone else hears of it.
  while (!replica_->load_failure().has_value()) {
    absl::SleepFor(absl::Milliseconds(1));
  }
  EXPECT_EQ(replica_->load_failure()->message(), "no checkpoint");
}

TEST_F(LinkClientTest, MemoryThatAnotherWorkerTookIsALoadFailure) {
  model_.memory_is_taken = true;
  const LoadFailed failed = AttachFailing(MakeConfig());
  EXPECT_EQ(failed.code(),
            static_cast<int>(absl::StatusCode::kResourceExhausted));
  EXPECT_EQ(failed.message(),
            "kv_cache.memory_bytes is 65536, but the device has less room "
            "beside the model: lower it; workers that share a device share its "
            "memory");
}

TEST_F(LinkClientTest, ACacheThatDoesNotFitTheDeviceIsALoadFailure) {
  // A block takes 64 tokens of 4 bytes; the config asks for 256 of them.
  model_.max_kv_blocks = 255;
  const LoadFailed failed = AttachFailing(MakeConfig());
  EXPECT_EQ(failed.code(),
            static_cast<int>(absl::StatusCode::kResourceExhausted));
  EXPECT_EQ(failed.message(),
            "kv_cache.memory_bytes is 65536, but the device has room for 65280 "
            "beside the model: lower it; workers that share a device share its "
            "memory");
}

TEST_F(LinkClientTest, ACacheThatJustFitsIsServed) {
  model_.max_kv_blocks = 256;
  EXPECT_EQ(AttachLoaded().capacity().kv_blocks(), 256);
}

TEST_F(LinkClientTest, ACacheOfLessThanABlockIsALoadFailure) {
  WorkerConfig config = MakeConfig();
  config.mutable_kv_cache()->set_memory_bytes(255);
  const LoadFailed failed = AttachFailing(config);
  EXPECT_EQ(failed.code(),
            static_cast<int>(absl::StatusCode::kFailedPrecondition));
  EXPECT_EQ(failed.message(),
            "kv_cache.memory_bytes is 255, but one block of this model takes "
            "256: raise it");
}

TEST_F(LinkClientTest, AModeThatTheBackendCannotHonourHasAReason) {
  load_status_ = absl::FailedPreconditionError("no plan for DETERMINISTIC");
  client_ = Dial(scheduler_);
  ASSERT_TRUE(scheduler_.Take(AttachRequest::kHello).has_hello());
  ASSERT_TRUE(scheduler_.Configure(1, MakeConfig()));
  may_load_.Notify();
  const AttachRequest failed = scheduler_.Take(AttachRequest::kLoadFailed);
  EXPECT_EQ(failed.load_failed().reason(), "NUMERICS_NOT_HONOURED");
}

TEST_F(LinkClientTest, LeavingFinishesWhatRunsAndTakesNoMore) {
  AttachLoaded();
  Send(SubmitOf(1, 5, 10, 400));
  EXPECT_TRUE(scheduler_.Take(AttachRequest::kStepReport).has_step_report());
  client_->Leave();
  Send(SubmitOf(1, 6, 10, 3));
  const AttemptReport running = Finish(5);
  const AttemptReport late = Finish(6);
  EXPECT_EQ(running.terminal().reason(), Terminal::LENGTH);
  EXPECT_EQ(late.terminal().reason(), Terminal::REJECTED);
  EXPECT_TRUE(replica_->engine().WaitUntilIdle(absl::Seconds(20)));
  client_->Stop();
  EXPECT_TRUE(scheduler_.WaitEnd());
}

TEST_F(LinkClientTest, AnotherWorkerOfTheSameIdTakesOver) {
  // A server of its own, whose stream ends with the status and nothing else.
  class Superseding : public worker::v1::WorkerLinkService::Service {
    grpc::Status Attach(grpc::ServerContext* context,
                        grpc::ServerReaderWriter<AttachResponse, AttachRequest>*
                            stream) override {
      AttachRequest hello;
      stream->Read(&hello);
      ended.Notify();
      return grpc::Status(grpc::StatusCode::ABORTED, "a later attach");
    }

   public:
    absl::Notification ended;
  };
  Superseding service;
  int port = 0;
  grpc::ServerBuilder builder;
  builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(),
                           &port);
  builder.RegisterService(&service);
  const std::unique_ptr<grpc::Server> server = builder.BuildAndStart();
  LinkClient client({absl::StrCat("127.0.0.1:", port), 0, "worker-1", "cpu"},
                    replica_.get());
  service.ended.WaitForNotification();
  client.WaitUntilEnded();
  EXPECT_TRUE(client.superseded());
}

}  // namespace
}  // namespace invar
