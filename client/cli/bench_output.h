// How `invar bench` tells its figures: client/bench/README.md has the schema.
#ifndef INVAR_CLIENT_CLI_BENCH_OUTPUT_H_
#define INVAR_CLIENT_CLI_BENCH_OUTPUT_H_

#include <nlohmann/json.hpp>
#include <optional>
#include <string>

#include "client/bench/load.h"
#include "client/bench/report.h"
#include "client/bench/worker_watch.h"
#include "invar/v1/inference.pb.h"

namespace invar {

// What was measured, and what it was measured on.
struct BenchRun {
  std::string address;
  v1::GetServerInfoResponse server;
  // The effective parameters, as JSON has them.
  nlohmann::ordered_json parameters;
  bench::ServiceLevel service_level;
  bench::Report report;
  std::optional<bench::WorkerActivity> workers;
};

nlohmann::ordered_json ToJson(const BenchRun& run);

// Lines of at most 80 columns, but for what the server named.
std::string BenchTable(const BenchRun& run);

}  // namespace invar

#endif  // INVAR_CLIENT_CLI_BENCH_OUTPUT_H_
