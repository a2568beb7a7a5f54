#include "scheduler/core/core.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "common/config.h"
#include "common/numerics.h"
#include "common/version.h"

namespace invar::scheduler {
namespace {

using ::testing::HasSubstr;
using worker::v1::Terminal;

// Drives a Core by hand; time moves only when told to.
class CoreTest : public ::testing::Test {
 protected:
  explicit CoreTest(v1::Determinism::Mode mode = v1::Determinism::DETERMINISTIC)
      : mode_(mode), core_(MakeOptions(mode)) {}

  static Core::Options MakeOptions(v1::Determinism::Mode mode) {
    Core::Options options;
    options.limits =
        ParseServerConfig(
            "model { path: \"m\" } limits { max_queued_requests: 3 }", "c")
            ->limits();
    options.mode = mode;
    options.tokenizer_digest = "tokenizer";
    options.config_digest = "config";
    return options;
  }

  std::vector<Action> Step(const Event& event) {
    return core_.Step(event, now_);
  }

  static void SetMode(const std::string& mode, v1::Numerics* numerics) {
    auto* entry = numerics->mutable_plan()->add_entries();
    entry->set_name("mode");
    entry->set_value(mode);
  }

  // Attaches and loads a worker; `weights` makes the fingerprint.
  std::vector<Action> AddWorker(LinkNumber link, const std::string& id,
                                int64_t sequences = 2,
                                const std::string& weights = "w",
                                int64_t schedulers = 1) {
    worker::v1::Hello hello;
    hello.set_protocol_version(kLinkProtocolVersion);
    hello.set_worker_id(id);
    Step(WorkerAttached{link, hello});
    worker::v1::Loaded loaded;
    SetMode(v1::Determinism::Mode_Name(mode_), loaded.mutable_numerics());
    loaded.mutable_numerics()->set_weights_digest(weights);
    loaded.mutable_numerics()->set_tokenizer_digest("tokenizer");
    loaded.mutable_numerics()->set_fingerprint(Fingerprint(loaded.numerics()));
    loaded.mutable_capacity()->set_block_tokens(64);
    loaded.mutable_capacity()->set_sequences(sequences);
    loaded.mutable_capacity()->set_kv_blocks(sequences * 2);
    loaded.set_max_context_tokens(1024);
    loaded.set_config_digest("config");
    loaded.mutable_credits()->set_sequences(sequences);
    loaded.mutable_credits()->set_kv_tokens(sequences * 128 / schedulers);
    return Step(WorkerLoaded{link, loaded});
  }

  std::vector<Action> Arrive(RequestNumber number, int32_t max_tokens = 8,
                             size_t prompt = 4, int32_t answers = 1) {
    auto spec = std::make_shared<RequestSpec>();
    spec->number = number;
    spec->request_id = std::to_string(number);
    spec->prompt.assign(prompt, 1);
    spec->max_tokens = max_tokens;
    spec->answers = answers;
    spec->deadline = deadline_;
    return Step(RequestArrived{spec});
  }

  std::vector<Action> Report(
      LinkNumber link, const SendSubmit& submit, std::vector<int32_t> tokens,
      Terminal::Reason end = Terminal::REASON_UNSPECIFIED) {
    worker::v1::StepReport report;
    auto* attempt = report.add_attempts();
    *attempt->mutable_key() = submit.key;
    attempt->set_position(static_cast<int32_t>(submit.request->prompt.size() +
                                               submit.delivered.size()));
    attempt->mutable_token_ids()->Assign(tokens.begin(), tokens.end());
    if (end != Terminal::REASON_UNSPECIFIED) {
      attempt->mutable_terminal()->set_reason(end);
    }
    return Step(WorkerReported{link, report});
  }

  template <typename Kind>
  static std::vector<Kind> Only(const std::vector<Action>& actions) {
    std::vector<Kind> found;
    for (const Action& action : actions) {
      if (const Kind* one = std::get_if<Kind>(&action)) found.push_back(*one);
    }
    return found;
  }

  const v1::Determinism::Mode mode_;
  absl::Time now_ = absl::UnixEpoch();
  absl::Time deadline_ = absl::InfiniteFuture();
  Core core_;
};

class FastCoreTest : public CoreTest {
 protected:
  FastCoreTest() : CoreTest(v1::Determinism::FAST) {}
};

TEST_F(CoreTest, WithoutAWorkerARequestIsUnavailableWithARetry) {
  const auto finished = Only<Finish>(Arrive(1));
  ASSERT_EQ(finished.size(), 1u);
  EXPECT_TRUE(absl::IsUnavailable(finished[0].status));
  EXPECT_GT(finished[0].retry_after, absl::ZeroDuration());
}

TEST_F(CoreTest, AdmissionMakesReadyAndLossMakesUnready) {
  const auto actions = AddWorker(1, "a");
  EXPECT_EQ(Only<SendAdmitted>(actions).size(), 1u);
  ASSERT_EQ(Only<SetReady>(actions).size(), 1u);
  EXPECT_TRUE(Only<SetReady>(actions)[0].ready);
  const auto lost = Only<SetReady>(Step(WorkerLost{1, "x"}));
  ASSERT_EQ(lost.size(), 1u);
  EXPECT_FALSE(lost[0].ready);
}

TEST_F(CoreTest, RoutesToTheLeastLoaded) {
  AddWorker(1, "a");
  AddWorker(2, "b");
  EXPECT_EQ(Only<SendSubmit>(Arrive(1))[0].link, 1);
  EXPECT_EQ(Only<SendSubmit>(Arrive(2))[0].link, 2);
  EXPECT_EQ(Only<SendSubmit>(Arrive(3))[0].link, 1);
}

TEST_F(CoreTest, CreditsBoundWhatIsSentAndTheQueueIsFirstComeFirstServed) {
  AddWorker(1, "a", /*sequences=*/1);
  const auto first = Only<SendSubmit>(Arrive(1));
  ASSERT_EQ(first.size(), 1u);
  EXPECT_TRUE(Only<SendSubmit>(Arrive(2)).empty());
  EXPECT_TRUE(Only<SendSubmit>(Arrive(3)).empty());
  EXPECT_EQ(core_.queued(), 2);
  worker::v1::StepReport report;
  auto* attempt = report.add_attempts();
  *attempt->mutable_key() = first[0].key;
  attempt->mutable_terminal()->set_reason(Terminal::LENGTH);
  report.mutable_credits()->set_sequences(2);
  report.mutable_credits()->set_kv_tokens(256);
  const auto actions = Step(WorkerReported{1, report});
  EXPECT_EQ(Only<Finish>(actions).size(), 1u);
  ASSERT_EQ(Only<SendSubmit>(actions).size(), 1u);
  EXPECT_EQ(Only<SendSubmit>(actions)[0].key.request(), SequenceOf(2, 0));
}

TEST_F(CoreTest, AFullQueueAnswersWithAComputedRetry) {
  AddWorker(1, "a", 1);
  for (RequestNumber number = 1; number <= 4; ++number) Arrive(number);
  const auto finished = Only<Finish>(Arrive(5));
  ASSERT_EQ(finished.size(), 1u);
  EXPECT_TRUE(absl::IsResourceExhausted(finished[0].status));
  // Three wait for one place at a mean of a second each.
  EXPECT_EQ(finished[0].retry_after, absl::Seconds(3));
}

TEST_F(CoreTest, RefusesWhatCannotFit) {
  AddWorker(1, "a");
  auto finished = Only<Finish>(Arrive(1, /*max_tokens=*/1021, /*prompt=*/4));
  ASSERT_EQ(finished.size(), 1u);
  EXPECT_TRUE(absl::IsOutOfRange(finished[0].status));
  EXPECT_EQ(finished[0].error_reason, "TOO_LONG");
  finished = Only<Finish>(Arrive(2, 500, 4));
  ASSERT_EQ(finished.size(), 1u);
  EXPECT_EQ(finished[0].error_reason, "KV_CACHE_TOO_SMALL");
  EXPECT_THAT(std::string(finished[0].status.message()),
              HasSubstr("504 tokens of KV cache; a whole worker has 256"));
  Arrive(3);
  finished = Only<Finish>(Arrive(3));
  ASSERT_EQ(finished.size(), 1u);
  EXPECT_TRUE(absl::IsAlreadyExists(finished[0].status));
}

TEST_F(CoreTest, ASubmitCostsItsPromptAndWhatWasDelivered) {
  AddWorker(1, "a");  // 2 sequences, 256 tokens
  // Each could grow to 204 tokens; the worker preempts if both do.
  const auto first = Only<SendSubmit>(Arrive(1, 200, 4));
  ASSERT_EQ(first.size(), 1u);
  ASSERT_EQ(Only<SendSubmit>(Arrive(2, 200, 4)).size(), 1u);
  EXPECT_EQ(core_.Workers(now_)[0].free_kv_tokens(), 128);
  Report(1, first[0], std::vector<int32_t>(100, 7));
  Step(WorkerLost{1, "killed"});
  // Resubmitted with 104 tokens, which are two blocks, and with 4: one.
  EXPECT_EQ(Only<SendSubmit>(AddWorker(2, "b")).size(), 2u);
  EXPECT_EQ(core_.Workers(now_)[0].free_kv_tokens(), 64);
}

TEST_F(CoreTest, APromptBeyondTheSharedCacheEndsAndDoesNotBlockTheQueue) {
  AddWorker(1, "a", 2, "w", /*schedulers=*/2);  // A share of 128 of 256.
  EXPECT_EQ(Only<SendSubmit>(Arrive(1, 100, 100)).size(), 1u);
  const auto finished = Only<Finish>(Arrive(2, 10, 130));
  ASSERT_EQ(finished.size(), 1u);
  EXPECT_TRUE(absl::IsOutOfRange(finished[0].status));
  EXPECT_EQ(finished[0].error_reason, "KV_SHARE_TOO_SMALL");
}

TEST_F(CoreTest, ALostWorkersRequestGoesOnElsewhereWhereItStopped) {
  AddWorker(1, "a");
  AddWorker(2, "b");
  const auto first = Only<SendSubmit>(Arrive(7));
  Report(1, first[0], {10, 11});
  const auto second = Only<SendSubmit>(Step(WorkerLost{1, "killed"}));
  ASSERT_EQ(second.size(), 1u);
  EXPECT_EQ(second[0].link, 2);
  EXPECT_EQ(second[0].key.attempt(), 2);
  EXPECT_EQ(second[0].delivered, (std::vector<int32_t>{10, 11}));
  // What the dead worker still says is stale.
  EXPECT_TRUE(Report(1, first[0], {99}).empty());
  const auto delivered = Only<Deliver>(Report(2, second[0], {12}));
  ASSERT_EQ(delivered.size(), 1u);
  EXPECT_EQ(delivered[0].report.position(), 6);
  // It got on at the second worker, and so did not kill that one as well.
  EXPECT_TRUE(Only<Finish>(Step(WorkerLost{2, "killed"})).empty());
  EXPECT_EQ(Only<SendSubmit>(AddWorker(3, "c"))[0].delivered,
            (std::vector<int32_t>{10, 11, 12}));
}

TEST_F(CoreTest, ARequestThatKillsTwoWorkersIsNotPassedOn) {
  AddWorker(1, "a");
  AddWorker(2, "b");
  AddWorker(3, "c");
  const auto first = Only<SendSubmit>(Arrive(7));
  Report(1, first[0], {10, 11});
  EXPECT_TRUE(Only<Finish>(Step(WorkerLost{1, "killed"})).empty());
  const auto actions = Step(WorkerLost{2, "killed"});
  ASSERT_EQ(Only<Finish>(actions).size(), 1u);
  EXPECT_TRUE(absl::IsAborted(Only<Finish>(actions)[0].status));
  EXPECT_EQ(Only<Finish>(actions)[0].error_reason, "WORKERS_LOST");
  EXPECT_TRUE(Only<SendSubmit>(actions).empty());
}

TEST_F(CoreTest, ARequestThatItsWorkersNeverCameToKilledNone) {
  AddWorker(1, "a", 40);
  for (RequestNumber number = 1; number <= 4; ++number) {
    Arrive(number, 8, 600);  // Steps are of 512 tokens.
  }
  Step(WorkerLost{1, "killed"});
  AddWorker(2, "b", 40);
  const auto finished = Only<Finish>(Step(WorkerLost{2, "killed"}));
  ASSERT_EQ(finished.size(), 3u);
  for (const Finish& one : finished) EXPECT_LT(one.request, 4);
  EXPECT_EQ(Only<SendSubmit>(AddWorker(3, "c", 40)).size(), 1u);
}

TEST_F(CoreTest, AWorkerThatLeavesIsHeldAgainstNoRequest) {
  AddWorker(1, "a", 1);
  Arrive(7);
  for (LinkNumber link = 1; link < 5; ++link) {
    Step(WorkerLeaving{link});
    EXPECT_TRUE(Only<Finish>(Step(WorkerLost{link, "left"})).empty());
    EXPECT_EQ(Only<SendSubmit>(AddWorker(link + 1, "b", 1)).size(), 1u);
  }
}

TEST_F(CoreTest, AScoredPromptKeepsItsPool) {
  AddWorker(1, "a");
  AddWorker(2, "b", 2, "other weights");
  auto spec = std::make_shared<RequestSpec>();
  spec->number = 7;
  spec->request_id = "7";
  spec->prompt.assign(9, 1);
  spec->max_tokens = 4;
  spec->prompt_logprobs = true;
  const auto submit = Only<SendSubmit>(Step(RequestArrived{spec}));
  worker::v1::StepReport report;
  *report.add_attempts()->mutable_key() = submit[0].key;
  report.mutable_attempts(0)->set_prompt_position(1);
  report.mutable_attempts(0)->add_prompt_logprobs(-1);
  EXPECT_EQ(Only<Deliver>(Step(WorkerReported{1, report})).size(), 1u);
  EXPECT_TRUE(Only<SendSubmit>(Step(WorkerLost{1, "killed"})).empty());
  EXPECT_EQ(Only<SendSubmit>(AddWorker(3, "c")).size(), 1u);
}

TEST_F(CoreTest, AResumeWaitsForItsPoolOnlyWhileWorkersMayStillCome) {
  AddWorker(1, "a", 2, "new weights");
  auto spec = std::make_shared<RequestSpec>();
  spec->number = 7;
  spec->request_id = "7";
  spec->prompt = {1};
  spec->resume_tokens = {5};
  spec->expected_fingerprint = "gone";
  EXPECT_TRUE(Only<Finish>(Step(RequestArrived{spec})).empty());
  now_ += absl::Seconds(5);
  Step(WorkerBeat{1, {}});
  const auto finished = Only<Finish>(Step(Tick{}));
  ASSERT_EQ(finished.size(), 1u);
  EXPECT_TRUE(absl::IsFailedPrecondition(finished[0].status));
  const auto later = Only<Finish>(Step(RequestArrived{spec}));
  ASSERT_EQ(later.size(), 1u);
  EXPECT_EQ(later[0].error_reason, "NO_SUCH_FINGERPRINT");
}

TEST_F(CoreTest, ABegunRequestNeverChangesItsPool) {
  AddWorker(1, "a");
  AddWorker(2, "b", 2, "other weights");
  const auto first = Only<SendSubmit>(Arrive(7));
  ASSERT_EQ(first[0].link, 1);
  Report(1, first[0], {10});
  EXPECT_TRUE(Only<SendSubmit>(Step(WorkerLost{1, "killed"})).empty());
  // One that has not begun may go to any.
  ASSERT_EQ(Only<SendSubmit>(Arrive(8)).size(), 1u);
  Step(Tick{});
  now_ += absl::Seconds(31);
  worker::v1::Heartbeat beat;
  Step(WorkerBeat{2, beat});
  const auto finished = Only<Finish>(Step(Tick{}));
  ASSERT_EQ(finished.size(), 1u);
  EXPECT_EQ(finished[0].request, 7);
  EXPECT_TRUE(absl::IsUnavailable(finished[0].status));
}

TEST_F(FastCoreTest, AClientResumesOnlyWhereItAcceptsAnotherRest) {
  AddWorker(1, "a");
  auto spec = std::make_shared<RequestSpec>();
  spec->number = 7;
  spec->request_id = "7";
  spec->prompt = {1};
  spec->max_tokens = 4;
  spec->resume_tokens = {5};
  spec->expected_fingerprint = core_.PrimaryFingerprint();
  const auto finished = Only<Finish>(Step(RequestArrived{spec}));
  ASSERT_EQ(finished.size(), 1u);
  EXPECT_EQ(finished[0].error_reason, "DIVERGENT_RESUME");
  spec->allow_divergent_resume = true;
  EXPECT_EQ(Only<SendSubmit>(Step(RequestArrived{spec})).size(), 1u);
}

TEST_F(FastCoreTest, ABegunRequestEndsWithItsWorker) {
  AddWorker(1, "a");
  AddWorker(2, "b");
  const auto first = Only<SendSubmit>(Arrive(7));
  Report(1, first[0], {10});
  const auto finished = Only<Finish>(Step(WorkerLost{1, "killed"}));
  ASSERT_EQ(finished.size(), 1u);
  EXPECT_TRUE(absl::IsAborted(finished[0].status));
  EXPECT_THAT(std::string(finished[0].status.message()),
              HasSubstr("allow_divergent_resume"));
}

TEST_F(CoreTest, SilenceAndAStalledStepAreDeath) {
  AddWorker(1, "a");
  AddWorker(2, "b");
  worker::v1::Heartbeat beat;
  for (int i = 0; i < 4; ++i) {
    now_ += absl::Milliseconds(500);
    Step(WorkerBeat{2, beat});
    EXPECT_TRUE(Only<CloseLink>(Step(Tick{})).empty());
  }
  now_ += absl::Milliseconds(50);
  auto closed = Only<CloseLink>(Step(Tick{}));
  ASSERT_EQ(closed.size(), 1u);
  EXPECT_EQ(closed[0].link, 1);
  beat.set_step_age_ms(60'001);
  Step(WorkerBeat{2, beat});
  closed = Only<CloseLink>(Step(Tick{}));
  ASSERT_EQ(closed.size(), 1u);
  EXPECT_EQ(closed[0].link, 2);
  // It may come back, but not with the same step.
  EXPECT_TRUE(absl::IsUnavailable(closed[0].status));
  worker::v1::Hello hello;
  hello.set_protocol_version(kLinkProtocolVersion);
  hello.set_worker_id("b");
  Step(WorkerAttached{3, hello});
  Step(WorkerBeat{3, beat});
  const auto actions = Step(WorkerLoaded{3, {}});
  EXPECT_EQ(Only<CloseLink>(actions).size(), 1u);
  EXPECT_TRUE(Only<SendAdmitted>(actions).empty());
}

TEST_F(CoreTest, SleepOfTheSchedulerIsNoSilenceOfItsWorkers) {
  AddWorker(1, "a");
  Step(Tick{});
  now_ += absl::Seconds(30);
  EXPECT_TRUE(Only<CloseLink>(Step(Tick{})).empty());
}

TEST_F(CoreTest, DeadlinesEvictWhatWaits) {
  AddWorker(1, "a", 1);
  Arrive(1);
  deadline_ = now_ + absl::Seconds(1);
  Arrive(2);
  now_ += absl::Milliseconds(1500);
  const auto finished = Only<Finish>(Step(Tick{}));
  ASSERT_EQ(finished.size(), 1u);
  EXPECT_EQ(finished[0].request, 2);
  EXPECT_TRUE(absl::IsDeadlineExceeded(finished[0].status));
}

TEST_F(CoreTest, AnAbandonedRequestIsCancelledAtItsWorker) {
  AddWorker(1, "a", 1);
  const auto submit = Only<SendSubmit>(Arrive(1));
  Arrive(2);
  auto actions = Step(RequestAbandoned{2});
  EXPECT_TRUE(Only<SendCancel>(actions).empty());
  EXPECT_EQ(Only<Finish>(actions).size(), 1u);
  actions = Step(RequestAbandoned{1});
  ASSERT_EQ(Only<SendCancel>(actions).size(), 1u);
  EXPECT_EQ(Only<SendCancel>(actions)[0].key.attempt(), 1);
  EXPECT_EQ(core_.queued() + core_.running(), 0);
  EXPECT_TRUE(Step(RequestAbandoned{1}).empty());
}

TEST_F(CoreTest, ASecondAttachTakesOver) {
  AddWorker(1, "a");
  worker::v1::Hello hello;
  hello.set_protocol_version(kLinkProtocolVersion);
  hello.set_worker_id("a");
  const auto actions = Step(WorkerAttached{2, hello});
  ASSERT_EQ(Only<CloseLink>(actions).size(), 1u);
  EXPECT_EQ(Only<CloseLink>(actions)[0].link, 1);
  EXPECT_TRUE(absl::IsAborted(Only<CloseLink>(actions)[0].status));
  ASSERT_EQ(Only<SendConfigure>(actions).size(), 1u);
  EXPECT_EQ(Only<SendConfigure>(actions)[0].epoch, 2);
}

TEST_F(CoreTest, RefusesAnotherTokenizerAndALyingFingerprint) {
  worker::v1::Hello hello;
  hello.set_protocol_version(kLinkProtocolVersion);
  hello.set_worker_id("a");
  Step(WorkerAttached{1, hello});
  worker::v1::Loaded loaded;
  loaded.set_config_digest("config");
  SetMode("DETERMINISTIC", loaded.mutable_numerics());
  loaded.mutable_numerics()->set_tokenizer_digest("another");
  auto refused = Only<SendRefused>(Step(WorkerLoaded{1, loaded}));
  ASSERT_EQ(refused.size(), 1u);
  EXPECT_THAT(refused[0].refusal.text, HasSubstr("tokenizer"));
  hello.set_worker_id("b");
  Step(WorkerAttached{2, hello});
  loaded.mutable_numerics()->set_tokenizer_digest("tokenizer");
  loaded.mutable_numerics()->set_fingerprint("made up");
  refused = Only<SendRefused>(Step(WorkerLoaded{2, loaded}));
  ASSERT_EQ(refused.size(), 1u);
  EXPECT_THAT(refused[0].refusal.text, HasSubstr("fingerprint"));
  hello.set_protocol_version(99);
  refused = Only<SendRefused>(Step(WorkerAttached{3, hello}));
  ASSERT_EQ(refused.size(), 1u);
  EXPECT_EQ(core_.PrimaryFingerprint(), "");
}

TEST_F(CoreTest, RefusesAnotherConfigAndAModeThatIsNotHonoured) {
  worker::v1::Hello hello;
  hello.set_protocol_version(kLinkProtocolVersion);
  hello.set_worker_id("a");
  worker::v1::Loaded loaded;
  loaded.mutable_numerics()->set_tokenizer_digest("tokenizer");
  SetMode("FAST", loaded.mutable_numerics());
  loaded.set_config_digest("an older one");
  Step(WorkerAttached{1, hello});
  auto actions = Step(WorkerLoaded{1, loaded});
  ASSERT_EQ(Only<SendRefused>(actions).size(), 1u);
  EXPECT_EQ(Only<SendRefused>(actions)[0].refusal.error_reason,
            "CONFIG_DIFFERS");
  Step(WorkerLost{1, "refused"});
  EXPECT_TRUE(absl::IsUnavailable(Only<Finish>(Arrive(1))[0].status));

  loaded.set_config_digest("config");
  Step(WorkerAttached{2, hello});
  actions = Step(WorkerLoaded{2, loaded});
  ASSERT_EQ(Only<SendRefused>(actions).size(), 1u);
  EXPECT_EQ(Only<SendRefused>(actions)[0].refusal.error_reason,
            "NUMERICS_NOT_HONOURED");
  EXPECT_THAT(Only<SendRefused>(actions)[0].refusal.text,
              HasSubstr("plan.mode: DETERMINISTIC against FAST"));
  EXPECT_EQ(Only<Log>(actions).size(), 1u);
  Step(WorkerLost{2, "refused"});
  // It is shown when it is gone, and says why no request can be served.
  ASSERT_EQ(core_.Workers(now_).size(), 1u);
  EXPECT_EQ(core_.Workers(now_)[0].state(), v1::WorkerInfo::REFUSED);
  auto finished = Only<Finish>(Arrive(2));
  EXPECT_TRUE(absl::IsFailedPrecondition(finished[0].status));
  EXPECT_EQ(finished[0].error_reason, "NUMERICS_NOT_HONOURED");
  // Dialling again is no news, and one that loads gives hope.
  EXPECT_TRUE(Only<Log>(Step(WorkerAttached{3, hello})).empty());
  EXPECT_TRUE(Only<Log>(Step(WorkerLoaded{3, loaded})).empty());
  hello.set_worker_id("b");
  Step(WorkerAttached{4, hello});
  EXPECT_TRUE(absl::IsUnavailable(Only<Finish>(Arrive(3))[0].status));
}

TEST_F(CoreTest, ThePoolsNameTheFieldInWhichTheyDiffer) {
  AddWorker(1, "a");
  const auto admitted = AddWorker(2, "b", 2, "v");
  EXPECT_THAT(Only<Log>(admitted)[1].text,
              HasSubstr("weights_digest: w against v"));
  AddWorker(3, "c");
  auto pools = core_.Pools();
  ASSERT_EQ(pools.size(), 2u);
  EXPECT_EQ(pools[0].workers(), 2);
  EXPECT_EQ(pools[0].first_difference(), "");
  EXPECT_EQ(pools[1].first_difference(), "weights_digest: w against v");
  EXPECT_EQ(core_.Workers(now_)[1].first_difference(),
            "weights_digest: w against v");
  // What the old pool's drain leaves is the pool of new requests.
  Step(WorkerDrained{"a"});
  Step(WorkerDrained{"c"});
  pools = core_.Pools();
  EXPECT_EQ(pools[0].numerics().weights_digest(), "v");
  EXPECT_EQ(pools[1].first_difference(), "weights_digest: v against w");
}

TEST_F(CoreTest, DrainStopsRoutingAndResumeStartsIt) {
  AddWorker(1, "a");
  EXPECT_EQ(Only<SendDrain>(Step(WorkerDrained{"a"})).size(), 1u);
  EXPECT_TRUE(absl::IsUnavailable(Only<Finish>(Arrive(1))[0].status));
  Step(WorkerResumed{"a"});
  EXPECT_EQ(Only<SendSubmit>(Arrive(2)).size(), 1u);
}

TEST_F(CoreTest, SeveralAnswersAreSequencesOfOneRequest) {
  AddWorker(1, "a");
  AddWorker(2, "b");
  const auto arrived = Arrive(1, 8, 4, /*answers=*/3);
  const auto submits = Only<SendSubmit>(arrived);
  ASSERT_EQ(submits.size(), 3u);
  EXPECT_EQ(Only<Begin>(arrived).size(), 1u);
  EXPECT_EQ(submits[1].index, 1);
  EXPECT_NE(submits[0].key.request(), submits[1].key.request());
  const auto delivered =
      Only<Deliver>(Report(submits[2].link, submits[2], {7}));
  ASSERT_EQ(delivered.size(), 1u);
  EXPECT_EQ(delivered[0].index, 2);
  auto actions = Report(submits[2].link, submits[2], {}, Terminal::LENGTH);
  ASSERT_EQ(Only<AnswerEnded>(actions).size(), 1u);
  EXPECT_EQ(Only<AnswerEnded>(actions)[0].index, 2);
  EXPECT_TRUE(Only<Finish>(actions).empty());
  // A stop string ends one answer, at its worker too; the last ends it all.
  actions = Step(AnswerStopped{1, 0});
  EXPECT_EQ(Only<SendCancel>(actions).size(), 1u);
  EXPECT_TRUE(Only<Finish>(actions).empty());
  actions = Report(submits[1].link, submits[1], {}, Terminal::STOP);
  ASSERT_EQ(Only<Finish>(actions).size(), 1u);
  EXPECT_TRUE(Only<Finish>(actions)[0].status.ok());
}

TEST_F(CoreTest, AnErrorOrACancelEndsEveryAnswer) {
  AddWorker(1, "a", 3);
  const auto first = Only<SendSubmit>(Arrive(1, 8, 4, 3));
  auto actions = Report(1, first[1], {}, Terminal::NOT_FINITE);
  EXPECT_EQ(Only<Finish>(actions).size(), 1u);
  EXPECT_EQ(Only<SendCancel>(actions).size(), 2u);
  worker::v1::StepReport report;
  report.mutable_credits()->set_sequences(6);
  report.mutable_credits()->set_kv_tokens(1000);
  Step(WorkerReported{1, report});
  EXPECT_EQ(Only<SendSubmit>(Arrive(2, 8, 4, 3)).size(), 3u);
  EXPECT_EQ(Only<SendCancel>(Step(RequestAbandoned{2})).size(), 3u);
  EXPECT_EQ(core_.queued() + core_.running(), 0);
}

TEST_F(CoreTest, AnswersThatFindNoRoomWaitAndStayInTheirPool) {
  AddWorker(1, "a");
  AddWorker(2, "b", 2, "other weights");
  const auto some = Only<SendSubmit>(Arrive(1, 8, 4, /*answers=*/3));
  ASSERT_EQ(some.size(), 2u);
  EXPECT_TRUE(Only<SendSubmit>(Arrive(2)).empty());
  EXPECT_EQ(core_.queued(), 2);
  // Their pool drains: the other one's free places are not theirs.
  EXPECT_EQ(Only<SendSubmit>(Step(WorkerDrained{"a"})).size(), 1u);
  // Lost before it wrote anything, the request may change its pool.
  const auto again = Step(WorkerLost{1, "killed"});
  ASSERT_EQ(Only<Begin>(again).size(), 1u);
  EXPECT_EQ(Only<Begin>(again)[0].request, 1);
  EXPECT_EQ(Only<SendSubmit>(again).size(), 1u);
}

TEST_F(CoreTest, ARejectedAttemptIsQueuedAgain) {
  AddWorker(1, "a");
  const auto first = Only<SendSubmit>(Arrive(1));
  const auto again =
      Only<SendSubmit>(Report(1, first[0], {}, Terminal::REJECTED));
  ASSERT_EQ(again.size(), 1u);
  EXPECT_EQ(again[0].key.attempt(), 2);
}

}  // namespace
}  // namespace invar::scheduler
