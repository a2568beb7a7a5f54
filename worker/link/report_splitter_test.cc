#include "worker/link/report_splitter.h"

#include <gtest/gtest.h>

namespace invar {
namespace {

using worker::v1::AttachRequest;
using worker::v1::AttemptReport;
using worker::v1::StepReport;
using worker::v1::Terminal;

constexpr int64_t kLeastBytes = 16 << 10;

StepReport Report(int attempts) {
  StepReport report;
  report.set_step(9);
  report.mutable_credits()->set_sequences(int64_t{1} << 60);
  report.mutable_credits()->set_kv_tokens(int64_t{1} << 60);
  for (int i = 0; i < attempts; ++i) {
    AttemptReport* attempt = report.add_attempts();
    attempt->mutable_key()->set_epoch(int64_t{1} << 60);
    attempt->mutable_key()->set_request((int64_t{1} << 60) + i);
    attempt->mutable_key()->set_attempt(1 << 30);
    attempt->set_position(1 << 30);
    attempt->add_token_ids(i);
  }
  return report;
}

TEST(SplitReportTest, ASmallOneStaysWhole) {
  const StepReport report = Report(3);
  const std::vector<AttachRequest> parts = SplitReport(report, kLeastBytes);
  ASSERT_EQ(parts.size(), 1u);
  EXPECT_EQ(parts[0].step_report().SerializeAsString(),
            report.SerializeAsString());
}

TEST(SplitReportTest, ManyAttemptsFillSeveralParts) {
  const std::vector<AttachRequest> parts =
      SplitReport(Report(4096), kLeastBytes);
  EXPECT_GT(parts.size(), 2u);
  int next = 0;
  for (const AttachRequest& part : parts) {
    EXPECT_LE(part.ByteSizeLong(), static_cast<size_t>(kLeastBytes));
    EXPECT_EQ(part.step_report().step(), 9);
    EXPECT_EQ(part.step_report().credits().sequences(), int64_t{1} << 60);
    for (const AttemptReport& attempt : part.step_report().attempts()) {
      EXPECT_EQ(attempt.token_ids(0), next++);
    }
  }
  EXPECT_EQ(next, 4096);
}

TEST(SplitReportTest, OneLargeAttemptIsPaged) {
  StepReport report = Report(1);
  AttemptReport* attempt = report.mutable_attempts(0);
  attempt->set_prompt_position(1);
  for (int i = 0; i < 20000; ++i) attempt->add_prompt_logprobs(-i);
  attempt->mutable_terminal()->set_reason(Terminal::LENGTH);
  const std::vector<AttachRequest> parts = SplitReport(report, kLeastBytes);
  int next = 0;
  bool token = false;
  bool ended = false;
  for (const AttachRequest& part : parts) {
    EXPECT_LE(part.ByteSizeLong(), static_cast<size_t>(kLeastBytes));
    for (const AttemptReport& piece : part.step_report().attempts()) {
      EXPECT_FALSE(ended);
      if (piece.prompt_logprobs_size() > 0) {
        EXPECT_FALSE(token);
        EXPECT_EQ(piece.prompt_position(), next + 1);
      }
      for (const float value : piece.prompt_logprobs()) {
        EXPECT_EQ(value, -next);
        ++next;
      }
      token |= piece.token_ids_size() > 0;
      ended |= piece.has_terminal();
    }
  }
  EXPECT_EQ(next, 20000);
  EXPECT_TRUE(token);
  EXPECT_TRUE(ended);
}

TEST(SplitReportTest, TheMostAlternativesFitAPart) {
  StepReport report = Report(2);
  for (AttemptReport& attempt : *report.mutable_attempts()) {
    worker::v1::Alternatives* alternatives = attempt.add_alternatives();
    for (int i = 0; i < 1024; ++i) {  // the most that limits allow
      alternatives->add_token_ids(2'000'000'000 + i);
      alternatives->add_logprobs(-1.5f);
    }
  }
  const std::vector<AttachRequest> parts = SplitReport(report, kLeastBytes);
  EXPECT_EQ(parts.size(), 2u);
  for (const AttachRequest& part : parts) {
    EXPECT_LE(part.ByteSizeLong(), static_cast<size_t>(kLeastBytes));
  }
}

}  // namespace
}  // namespace invar
