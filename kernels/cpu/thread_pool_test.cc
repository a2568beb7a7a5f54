#include "kernels/cpu/thread_pool.h"

#include <gtest/gtest.h>

#include <vector>

namespace invar::cpu {
namespace {

TEST(ThreadPoolTest, RunsEveryIterationOnce) {
  for (const int threads : {1, 2, 5}) {
    ThreadPool pool(threads);
    EXPECT_EQ(pool.threads(), threads);
    for (const int64_t count : {0, 1, 7, 1000}) {
      for (const int64_t grain : {1, 3, 1000}) {
        std::vector<int> runs(count, 0);
        pool.ParallelFor(count, grain, [&](int64_t begin, int64_t end) {
          for (int64_t i = begin; i < end; ++i) ++runs[i];
        });
        EXPECT_EQ(runs, std::vector<int>(count, 1));
      }
    }
  }
}

TEST(ThreadPoolTest, ManyShortLoopsAndPoolsNeverHang) {
  for (int pools = 0; pools < 200; ++pools) {
    ThreadPool pool(3);
    int64_t sum = 0;
    for (int loop = 0; loop < 50; ++loop) {
      std::vector<int64_t> parts(8, 0);
      pool.ParallelFor(8, 1, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) parts[i] = i;
      });
      for (const int64_t part : parts) sum += part;
    }
    ASSERT_EQ(sum, 50 * 28);
  }
}

// Each team's loops run whole, at once with the other teams' and again and
// again: whoever helps, no iteration is lost, run twice or run by a loop's
// successor.
TEST(ThreadPoolTest, TeamsRunTheirLoopsAtOnce) {
  for (const int threads : {1, 2, 6}) {
    ThreadPool pool(threads);
    for (const int teams : {1, 2, 3, 6}) {
      if (threads % teams != 0) continue;
      for (int step = 0; step < 100; ++step) {
        std::vector<std::vector<int>> runs(teams);
        pool.ForTeams(teams, [&](int64_t i, ThreadPool& team) {
          EXPECT_EQ(team.threads(), threads / teams);
          EXPECT_EQ(team.isa(), pool.isa());
          runs[i].assign(40, 0);
          for (int loop = 0; loop < 20; ++loop) {
            team.ParallelFor(40, 3, [&](int64_t begin, int64_t end) {
              for (int64_t k = begin; k < end; ++k) ++runs[i][k];
            });
          }
        });
        ASSERT_EQ(runs, std::vector(teams, std::vector<int>(40, 20)));
        // And the threads are the pool's again.
        std::vector<int> all(50, 0);
        pool.ParallelFor(50, 1, [&](int64_t begin, int64_t end) {
          for (int64_t k = begin; k < end; ++k) ++all[k];
        });
        ASSERT_EQ(all, std::vector<int>(50, 1));
      }
    }
  }
}

}  // namespace
}  // namespace invar::cpu
