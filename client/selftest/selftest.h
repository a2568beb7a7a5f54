// The contract's matrix against a deployment that runs: whether its answers
// depend on what they must not, counted in bits.
#ifndef INVAR_CLIENT_SELFTEST_SELFTEST_H_
#define INVAR_CLIENT_SELFTEST_SELFTEST_H_

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "client/client.h"
#include "client/request_pool.h"

namespace invar {

struct SelfTestOptions {
  uint64_t seed = 1;
  // More and longer requests: minutes instead of seconds.
  bool full = false;
  // The beginning of the fingerprint whose workers are tested; empty: those
  // that new requests run on.
  std::string fingerprint;
  PoolOptions pool;
};

// One line of the table.
struct SelfTestRow {
  std::string dimension;
  std::string covers;
  int cells = 0;
  int64_t comparisons = 0;  // of single values
  int64_t differing_bits = 0;
  std::string first_difference;  // empty: none
  std::string note;              // what a cell could not show
};

struct SelfTest {
  // Of the request that failed; the rows are then those before it.
  grpc::Status status;
  std::string model;
  std::string fingerprint;
  std::string mode;  // of its plan
  std::vector<SelfTestRow> rows;

  bool Passed() const;
};

// Calls on_row after each. NOT_FOUND: no pool of that fingerprint.
SelfTest RunSelfTest(Client& client, const SelfTestOptions& options,
                     const std::function<void(const SelfTestRow&)>& on_row);

}  // namespace invar

#endif  // INVAR_CLIENT_SELFTEST_SELFTEST_H_
