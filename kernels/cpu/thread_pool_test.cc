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

}  // namespace
}  // namespace invar::cpu
