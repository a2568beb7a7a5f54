// The real core in a simulated world: any order of starts and stops of
// schedulers and workers, for many seeds.
#include <gtest/gtest.h>

#include <cstdio>
#include <string>

#include "tests/simulation/world.h"

namespace invar::simulation {
namespace {

TEST(SimulationTest, NoRequestIsLostAnsweredTwiceOrMixedOverPools) {
  Tally sum;
  for (uint32_t seed = 0; seed < 1000; ++seed) {
    World world(seed, Plant::kNone);
    ASSERT_EQ(world.Run(), "") << "seed " << seed;
    const Tally& one = world.tally();
    sum.complete += one.complete;
    sum.refused += one.refused;
    sum.resubmitted += one.resubmitted;
    sum.resumed += one.resumed;
    sum.elsewhere += one.elsewhere;
    sum.worker_deaths += one.worker_deaths;
    sum.scheduler_deaths += one.scheduler_deaths;
  }
  std::printf(
      "%ld complete, %ld refused, %ld attempts and %ld streams taken up again, "
      "%ld of these at another scheduler; %ld workers and %ld schedulers "
      "died\n",
      sum.complete, sum.refused, sum.resubmitted, sum.resumed, sum.elsewhere,
      sum.worker_deaths, sum.scheduler_deaths);
  // It meets what it is for.
  EXPECT_GT(sum.complete, 40'000);
  EXPECT_LT(sum.refused, sum.complete / 10);
  EXPECT_GT(sum.resubmitted, 1'000);
  EXPECT_GT(sum.elsewhere, 1'000);
  EXPECT_GT(sum.worker_deaths, 5'000);
  EXPECT_GT(sum.scheduler_deaths, 5'000);
}

TEST(SimulationTest, APlantedMistakeIsFound) {
  for (const Plant plant :
       {Plant::kForgetsToken, Plant::kMixesPools, Plant::kFinishesTwice,
        Plant::kLosesRequest, Plant::kOverbooks, Plant::kResumesElsewhere}) {
    std::string found;
    for (uint32_t seed = 0; seed < 20 && found.empty(); ++seed) {
      found = World(seed, plant).Run();
    }
    EXPECT_NE(found, "") << "plant " << static_cast<int>(plant);
  }
}

}  // namespace
}  // namespace invar::simulation
