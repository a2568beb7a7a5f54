#include "worker/flags.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace invar {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

TEST(WorkerFlagsTest, SchedulersRepeatAndList) {
  const auto flags = ParseWorkerFlags(
      {"--scheduler", "a:1,b:2", "--scheduler=c:3", "--threads", "2"});
  ASSERT_TRUE(flags.ok()) << flags.status();
  EXPECT_THAT(flags->schedulers, ElementsAre("a:1", "b:2", "c:3"));
  EXPECT_EQ(flags->threads, 2);
  EXPECT_EQ(flags->device, "cpu");
}

TEST(WorkerFlagsTest, DefaultIdsDifferByMetricsPort) {
  const auto first = ParseWorkerFlags({"--scheduler", "a:1"});
  const auto second =
      ParseWorkerFlags({"--scheduler", "a:1", "--metrics", "127.0.0.1:9472"});
  const auto without = ParseWorkerFlags({"--scheduler=a:1", "--metrics="});
  ASSERT_TRUE(first.ok() && second.ok() && without.ok());
  EXPECT_NE(first->worker_id, second->worker_id);
  EXPECT_THAT(first->worker_id, HasSubstr("/cpu/9471"));
  EXPECT_EQ(without->metrics, "");
}

TEST(WorkerFlagsTest, WrongOnesAreNamed) {
  const auto message = [](const std::vector<std::string>& arguments) {
    return std::string(ParseWorkerFlags(arguments).status().message());
  };
  EXPECT_THAT(message({}), HasSubstr("--scheduler HOST:PORT is missing"));
  EXPECT_THAT(message({"--sheduler", "a:1"}),
              HasSubstr("did you mean --scheduler?"));
  EXPECT_THAT(message({"--scheduler"}), HasSubstr("--scheduler"));
  EXPECT_THAT(message({"--scheduler", "a"}), HasSubstr("HOST:PORT"));
  EXPECT_THAT(message({"--scheduler", "a:0"}), HasSubstr("HOST:PORT"));
  EXPECT_THAT(message({"--scheduler=a:1", "--device=gpu"}),
              HasSubstr("cpu or cuda:N"));
  EXPECT_THAT(message({"--scheduler=a:1", "--threads=-1"}),
              HasSubstr("--threads"));
  EXPECT_THAT(message({"--scheduler=a:1", "--metrics=9471"}),
              HasSubstr("--metrics"));
}

}  // namespace
}  // namespace invar
