// A probe among strangers: what a kBatch cell runs.
#ifndef INVAR_TESTS_CONTRACT_CROWD_H_
#define INVAR_TESTS_CONTRACT_CROWD_H_

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "tests/contract/cell.h"
#include "tests/contract/comparison.h"
#include "tests/contract/random.h"
#include "tests/contract/references.h"
#include "tests/contract/requests.h"
#include "worker/engine/testing/engine_harness.h"

namespace invar::contract {

// Blocks, sequences and step tokens that an engine needs for `cell`.
int64_t CrowdBlocks(const Cell& cell);
int64_t CrowdStepTokens(const Cell& cell);

// Strangers before the probe keep their rows until it ends; those behind it
// come and go, each place taken again at once; under pressure they stay too.
// Everybody's answer is compared.
class Crowd {
 public:
  // `draw` seeds who the strangers are, how long they stay and, with
  // kNeighbours, who is preempted when.
  Crowd(const Cell& cell, uint64_t draw, EngineHarness* engine,
        References* references);

  Comparison Run();

 private:
  struct Guest {
    Request request;
    const Answer* alone;
    bool cancelled = false;
  };

  void Admit(Request request, const Answer& alone, int64_t id);
  // False, and nobody comes, if the engine has no credit for its prompt.
  bool AdmitStranger(bool stays);
  // Whether the blocks cover its prompt beside those of all who are there:
  // what a scheduler may send. They do, but under pressure.
  bool IsAffordable(const Request& request) const;
  void FillPrefixCache();
  // Steps until every stranger so far writes.
  void StartStrangers();
  void Step();
  void TakePlacesAgain();
  // Preempts whom the cell says, if it is time.
  void PreemptSomebody();
  bool TimeToPreemptProbe();
  void Finish();
  void CheckSituation();
  void Wrong(const std::string& finding) {
    result_.findings.push_back(finding);
  }

  const Cell cell_;
  Random random_;
  EngineHarness* const engine_;
  References* const references_;
  std::map<int64_t, Guest> guests_;  // by request id
  std::vector<int> strangers_;       // those who have not come yet, by turns
  int64_t next_id_ = 0;
  int64_t next_stranger_ = 0;
  int64_t steps_ = 0;  // since the probe came
  int64_t most_running_ = 0;
  size_t preempted_at_ = 0;  // tokens of the probe
  Comparison result_;
};

}  // namespace invar::contract

#endif  // INVAR_TESTS_CONTRACT_CROWD_H_
