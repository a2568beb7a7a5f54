// What an answer must not depend on: a row of the self-test each. What is
// compared with is always what the same request was answered alone.
#ifndef INVAR_CLIENT_SELFTEST_DIMENSIONS_H_
#define INVAR_CLIENT_SELFTEST_DIMENSIONS_H_

#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "client/client.h"
#include "client/request_pool.h"
#include "client/selftest/comparison.h"
#include "client/selftest/probes.h"

namespace invar {

// Sends requests; after a failure sends none and answers nothing.
class Asker {
 public:
  Asker(Client& client, PoolOptions options)
      : client_(client), options_(std::move(options)) {}

  // Answers, in the order of the requests. Empty after a failure.
  std::vector<v1::GenerateOnceResponse> Ask(
      const std::vector<v1::GenerateRequest>& requests, int concurrency);
  // One by one.
  std::vector<v1::GenerateOnceResponse> AskAlone(
      const std::vector<v1::GenerateRequest>& requests) {
    return Ask(requests, 1);
  }
  // As a stream.
  v1::GenerateOnceResponse Stream(const v1::GenerateRequest& request);

  const grpc::Status& status() const { return status_; }

 private:
  Client& client_;
  const PoolOptions options_;
  grpc::Status status_;
};

struct DimensionResult {
  int cells = 0;  // ways of asking that were compared
  Comparison comparison;
  std::string note;  // where a cell could not do what it is there for
};

struct Dimension {
  const char* name;
  const char* covers;
  DimensionResult (*run)(Asker& asker, Probes& probes);
};

// All of them, in the order of the table.
std::span<const Dimension> Dimensions();

}  // namespace invar

#endif  // INVAR_CLIENT_SELFTEST_DIMENSIONS_H_
