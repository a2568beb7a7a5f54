// The figures of a load.
#ifndef INVAR_CLIENT_BENCH_REPORT_H_
#define INVAR_CLIENT_BENCH_REPORT_H_

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "client/bench/load.h"
#include "client/bench/statistics.h"

namespace invar::bench {

// Bounds that a good answer keeps, in milliseconds.
struct ServiceLevel {
  // Time to the first token; the longest gap between two tokens; the mean gap;
  // time to the end.
  std::optional<double> ttft_ms = {};
  std::optional<double> itl_ms = {};
  std::optional<double> tpot_ms = {};
  std::optional<double> e2e_ms = {};

  bool empty() const { return !ttft_ms && !itl_ms && !tpot_ms && !e2e_ms; }
};

// "ttft:200,itl:50". INVALID_ARGUMENT for anything else.
absl::StatusOr<ServiceLevel> ParseServiceLevel(absl::string_view text);

// What two sendings of the same request gave that was not the same.
struct Difference {
  int64_t distinct = 0;
  // Places in the sequence at which the two stood.
  int64_t place_a = 0;
  int64_t place_b = 0;
  // The first output token, from 0, whose id or log-probability differs, if
  // the tokens were kept.
  std::optional<int64_t> token = {};
};

struct Determinism {
  // Requests sent more than once and answered each time, and their answers.
  int64_t requests = 0;
  int64_t answers = 0;
  // At most one a request.
  std::vector<Difference> differences;
};

// Latencies are seconds and of the answers that succeeded; so are tokens.
struct Report {
  int64_t sent = 0;
  int64_t succeeded = 0;
  // By code, "RESOURCE_EXHAUSTED"; the first message of each.
  std::map<std::string, int64_t> errors;
  std::map<std::string, std::string> error_examples;
  // From the first request's start to the last one's end, seconds.
  double elapsed = 0;
  int64_t input_tokens = 0;
  int64_t cached_tokens = 0;
  int64_t output_tokens = 0;
  // Events that carried tokens.
  int64_t deltas = 0;
  // Tokens a second while the closed loop was full: from the time at which
  // each place had its first token, to the end of the first request after
  // which none was left to send. Absent if that was never so.
  std::optional<double> full_output_tokens_per_second = {};
  Distribution ttft;  // Due to first token.
  Distribution itl;   // Token to token.
  Distribution tpot;  // An answer's mean gap.
  Distribution e2e;   // Due to end.
  // How much later than due a request was sent: what waited in this client.
  Distribution send_delay;
  // Answers that kept the service level; 0 without one.
  int64_t good = 0;
  std::vector<std::string> fingerprints;
  // SHA-256 (hex) over "invar bench 1\n" and, for each distinct request in
  // order, the line "INDEX OUTPUT_DIGEST\n": the same for every load that
  // sends the same requests, however fast. Empty unless all succeeded.
  std::string digest;
  std::optional<Determinism> determinism;
  // CPU seconds of this process.
  double client_cpu = 0;
};

struct ReportOptions {
  // Of the closed loop; 0 otherwise.
  int concurrency = 0;
  ServiceLevel service_level = {};
  bool check_determinism = false;
};

Report Summarize(const LoadResult& load, const ReportOptions& options);

}  // namespace invar::bench

#endif  // INVAR_CLIENT_BENCH_REPORT_H_
