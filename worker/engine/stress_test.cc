// Many requests of all kinds from two schedulers that cancel, let deadlines
// pass, preempt and disconnect at random: nothing leaks, each attempt ends
// once, and no answer differs from a calm run's. INVAR_FULL=1: 10,000 requests.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <functional>
#include <iterator>
#include <map>
#include <memory>
#include <random>
#include <set>
#include <thread>
#include <utility>
#include <vector>

#include "absl/synchronization/mutex.h"
#include "worker/engine/engine_thread.h"
#include "worker/engine/testing/engine_fixture.h"

namespace invar {
namespace {

using worker::v1::AttemptKey;
using worker::v1::StepReport;
using worker::v1::Submit;
using worker::v1::Terminal;

int Requests() {
  const char* full = std::getenv("INVAR_FULL");
  return full != nullptr && full[0] == '1' ? 10000 : 1000;
}

Engine::Options Options(int64_t kv_blocks) {
  Engine::Options options = SmallEngineOptions();
  options.kv_blocks = kv_blocks;
  options.max_running_sequences = 24;
  options.max_step_tokens = 64;
  options.schedulers = 2;
  return options;
}

std::unique_ptr<Engine> NewEngine(int64_t kv_blocks) {
  return std::make_unique<Engine>(Options(kv_blocks), NewFakeModel());
}

// Without a deadline. A function of its number.
Submit Request(int number) {
  std::minstd_rand random(number + 1);
  const auto below = [&random](int limit) {
    return static_cast<int>(random() % limit);
  };
  // Few salts, so that prompts share their beginnings.
  Submit submit =
      MakeSubmit(number, Prompt(1 + below(150), below(4)), below(200));
  auto* sampling = submit.mutable_sampling();
  sampling->set_temperature(below(3) * 0.6f);
  sampling->set_top_k(below(3) * 10);
  sampling->set_top_p(1.0f - below(3) * 0.2f);
  sampling->set_min_p(below(2) * 0.05f);
  sampling->set_min_tokens(below(10));
  if (below(3) == 0) {
    sampling->set_presence_penalty(below(5) - 2.0f);
    sampling->set_frequency_penalty(below(5) * 0.5f - 1.0f);
    sampling->set_repetition_penalty(0.5f + below(4) * 0.5f);
    (*sampling->mutable_logit_bias())[below(97)] = below(200) - 100.0f;
  }
  if (below(3) == 0) sampling->add_stop_token_ids(below(90));
  submit.set_seed(random());
  submit.set_logprobs(below(2) == 0);
  submit.set_top_logprobs(below(3));
  submit.set_prompt_logprobs(below(4) == 0);
  return submit;
}

// What a scheduler can ask of a worker in one session.
struct Session {
  std::function<void(const Submit&)> submit;
  std::function<void(const AttemptKey&)> cancel;
  std::function<void(const AttemptKey&)> preempt;
  std::function<void()> close;
};

// Submits every second request within its credits, and disturbs. Thread-safe.
class RandomScheduler {
 public:
  using OpenSession = std::function<Session(ReportSink)>;

  RandomScheduler(int place, const CreditAmount& share, OpenSession open)
      : next_(place), share_(share), open_(std::move(open)), random_(place) {
    Connect();
  }

  // One random action. False: all requests have come to their end.
  bool Act() {
    const int requests = Requests();
    const int dice = Below(100);
    if (dice == 0) {
      session_.close();
      Connect();
    } else if (dice < 6) {
      session_.cancel(SomeKey());
    } else if (dice < 20) {
      session_.preempt(SomeKey());
    } else if (next_ < requests) {
      Submit submit = Request(next_);
      if (Below(12) == 0) submit.set_deadline_ms(1 + Below(30));
      if (Spend(submit)) {
        session_.submit(submit);
        next_ += 2;
      }
    }
    absl::MutexLock lock(&mutex_);
    return next_ < requests || !in_flight_.empty();
  }

  // Until something was reported since the last call, or nothing can be.
  void AwaitReport() {
    const auto ready = [this]() ABSL_SHARED_LOCKS_REQUIRED(mutex_) {
      return reports_ > reports_seen_ || in_flight_.empty();
    };
    absl::MutexLock lock(&mutex_, absl::Condition(&ready));
    reports_seen_ = reports_;
  }

  const std::map<int64_t, Answer>& answers() const { return answers_; }
  const std::set<int64_t>& dropped() const { return dropped_; }

 private:
  int Below(int limit) { return static_cast<int>(random_() % limit); }

  void Connect() {
    int generation;
    {
      absl::MutexLock lock(&mutex_);
      generation = ++generation_;
      dropped_.insert(in_flight_.begin(), in_flight_.end());
      in_flight_.clear();
      granted_ = share_;
      spent_ = CreditAmount();
    }
    session_ = open_(
        [this, generation](StepReport report) { Collect(generation, report); });
  }

  bool Spend(const Submit& submit) {
    absl::MutexLock lock(&mutex_);
    CreditAmount wanted = spent_;
    wanted += SubmitCost(submit);
    if (!granted_.Covers(wanted)) return false;
    spent_ = wanted;
    in_flight_.insert(submit.key().request());
    return true;
  }

  // Mostly of a request in flight.
  AttemptKey SomeKey() {
    absl::MutexLock lock(&mutex_);
    int64_t request = Below(Requests());
    if (!in_flight_.empty() && Below(10) > 0) {
      request = *std::next(in_flight_.begin(),
                           Below(static_cast<int>(in_flight_.size())));
    }
    return MakeSubmit(request, {}, 0).key();
  }

  void Collect(int generation, const StepReport& report) {
    absl::MutexLock lock(&mutex_);
    if (generation != generation_) return;
    ++reports_;
    granted_ = {report.credits().sequences(), report.credits().kv_tokens()};
    for (const auto& attempt : report.attempts()) {
      const int64_t request = attempt.key().request();
      EXPECT_TRUE(in_flight_.contains(request));
      AddTo(attempt, &answers_[request]);
      if (attempt.has_terminal()) in_flight_.erase(request);
    }
  }

  int next_;
  const CreditAmount share_;
  const OpenSession open_;
  std::minstd_rand random_;
  Session session_;
  absl::Mutex mutex_;
  int generation_ = 0;
  CreditAmount granted_;
  CreditAmount spent_;
  int64_t reports_ = 0;
  int64_t reports_seen_ = 0;
  std::set<int64_t> in_flight_;
  std::set<int64_t> dropped_;
  std::map<int64_t, Answer> answers_;
};

// Every request, alone with friends in a cache that is large enough.
std::vector<Answer> CalmAnswers() {
  EngineHarness calm(Options(4000),
                     std::make_unique<FakeModel>(FakeModel::Options{}));
  std::vector<Answer> answers;
  for (int number = 0; number < Requests(); ++number) {
    answers.push_back(calm.Run(Request(number)));
  }
  EXPECT_EQ(calm.engine().preemptions(), 0);
  return answers;
}

template <typename T>
bool BeginsWith(const std::vector<T>& whole, const std::vector<T>& part) {
  return part.size() <= whole.size() &&
         std::equal(part.begin(), part.end(), whole.begin());
}

// Returns how many ended undisturbed.
int ExpectAsCalm(const RandomScheduler& scheduler,
                 const std::vector<Answer>& calm) {
  int undisturbed = 0;
  for (const auto& [request, answer] : scheduler.answers()) {
    SCOPED_TRACE(request);
    const Answer& expected = calm[request];
    EXPECT_TRUE(BeginsWith(expected.token_ids, answer.token_ids));
    EXPECT_TRUE(BeginsWith(expected.logprobs, answer.logprobs));
    EXPECT_TRUE(BeginsWith(expected.prompt_logprobs, answer.prompt_logprobs));
    if (scheduler.dropped().contains(request)) continue;
    EXPECT_EQ(answer.terminals, 1);
    if (answer.reason() == Terminal::CANCELLED ||
        answer.reason() == Terminal::DEADLINE) {
      continue;
    }
    EXPECT_EQ(answer.reason(), expected.reason());
    EXPECT_EQ(answer.token_ids, expected.token_ids);
    EXPECT_EQ(answer.logprobs, expected.logprobs);
    EXPECT_EQ(answer.prompt_logprobs, expected.prompt_logprobs);
    ++undisturbed;
  }
  return undisturbed;
}

constexpr int64_t kSmallPool = 32;

TEST(StressTest, StepByStep) {
  const std::unique_ptr<Engine> engine = NewEngine(kSmallPool);
  absl::Time now = absl::UnixEpoch() + absl::Hours(1);
  SessionId last = 0;
  const auto open = [&](int place) {
    return [&, place](ReportSink sink) {
      const SessionId id = ++last;
      engine->Open(id, place, std::move(sink));
      return Session{[&, id](const Submit& s) { engine->Submit(id, s, now); },
                     [&, id](const AttemptKey& k) { engine->Cancel(id, k); },
                     [&, id](const AttemptKey& k) { engine->Preempt(id, k); },
                     [&, id] { engine->Close(id); }};
    };
  };
  RandomScheduler first(0, engine->Share(0), open(0));
  RandomScheduler second(1, engine->Share(1), open(1));
  bool busy = true;
  for (int step = 0; busy && step < 200 * Requests(); ++step) {
    busy = first.Act() | second.Act();
    const StepSummary summary = engine->Step(now);
    ASSERT_EQ(summary.kv_blocks_used + engine->kv_blocks_available(),
              kSmallPool);
    now += absl::Milliseconds(1);
  }
  EXPECT_FALSE(busy);
  EXPECT_TRUE(engine->idle());
  EXPECT_EQ(engine->kv_blocks_used(), 0);
  EXPECT_GT(engine->preemptions(), Requests() / 20);
  const std::vector<Answer> calm = CalmAnswers();
  EXPECT_GT(ExpectAsCalm(first, calm) + ExpectAsCalm(second, calm),
            Requests() / 4);
}

TEST(StressTest, ThroughTheThread) {
  Progress progress;
  std::vector<std::unique_ptr<RandomScheduler>> schedulers;
  int64_t used = -1;
  int64_t preemptions = 0;
  auto thread =
      std::make_unique<EngineThread>(NewEngine(kSmallPool), &progress,
                                     [&](const StepSummary& summary, double) {
                                       used = summary.kv_blocks_used;
                                       preemptions += summary.preemptions;
                                     });
  EngineThread& worker = *thread;
  for (int place = 0; place < 2; ++place) {
    schedulers.push_back(std::make_unique<RandomScheduler>(
        place, worker.facts().Share(place), [&worker, place](ReportSink sink) {
          const SessionId id = worker.Open(place, std::move(sink));
          return Session{
              [&, id](const Submit& s) { worker.Submit(id, s); },
              [&, id](const AttemptKey& k) { worker.Cancel(id, k); },
              [&, id](const AttemptKey& k) { worker.Preempt(id, k); },
              [&, id] { worker.Close(id); }};
        }));
  }
  std::vector<std::thread> posting;
  for (const auto& scheduler : schedulers) {
    posting.emplace_back([&scheduler] {
      while (scheduler->Act()) scheduler->AwaitReport();
    });
  }
  for (std::thread& poster : posting) poster.join();
  EXPECT_TRUE(worker.WaitUntilIdle(absl::Minutes(5)));
  thread.reset();
  EXPECT_EQ(used, 0);
  EXPECT_GT(preemptions, 0);
  const std::vector<Answer> calm = CalmAnswers();
  EXPECT_GT(
      ExpectAsCalm(*schedulers[0], calm) + ExpectAsCalm(*schedulers[1], calm),
      0);
}

}  // namespace
}  // namespace invar
