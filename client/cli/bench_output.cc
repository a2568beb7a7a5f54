#include "client/cli/bench_output.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "common/version.h"

namespace invar {
namespace {

using Json = nlohmann::ordered_json;

double PerSecond(double amount, const bench::Report& report) {
  return report.elapsed > 0 ? amount / report.elapsed : 0;
}

double Share(int64_t part, int64_t whole) {
  return whole > 0 ? static_cast<double>(part) / static_cast<double>(whole) : 0;
}

// JSON in milliseconds, as the table.
Json MillisecondsJson(const bench::Distribution& seconds) {
  return {{"count", seconds.count},   {"mean", seconds.mean * 1e3},
          {"p50", seconds.p50 * 1e3}, {"p90", seconds.p90 * 1e3},
          {"p95", seconds.p95 * 1e3}, {"p99", seconds.p99 * 1e3},
          {"max", seconds.max * 1e3}};
}

Json ServerJson(const BenchRun& run) {
  Json plan = Json::object();
  Json architecture = nullptr;
  if (run.server.pools_size() > 0) {
    const v1::Numerics& numerics = run.server.pools(0).numerics();
    architecture = numerics.architecture();
    for (const v1::NumericsPlan::Entry& entry : numerics.plan().entries()) {
      plan[entry.name()] = entry.value();
    }
  }
  return {{"address", run.address},
          {"model", run.server.model()},
          {"version", run.server.version()},
          {"fingerprint", run.server.fingerprint()},
          {"config_digest", run.server.config_digest()},
          {"max_context_tokens", run.server.max_context_tokens()},
          {"vocab_size", run.server.vocab_size()},
          {"architecture", architecture},
          {"plan", plan}};
}

Json RequestsJson(const bench::Report& report) {
  Json errors = Json::object();
  for (const auto& [code, count] : report.errors) {
    errors[code] = {{"count", count},
                    {"example", report.error_examples.at(code)}};
  }
  return {{"sent", report.sent},
          {"succeeded", report.succeeded},
          {"errors", errors},
          {"per_second", PerSecond(report.succeeded, report)}};
}

Json TokensJson(const bench::Report& report) {
  const auto full = report.full_output_tokens_per_second;
  return {{"input", report.input_tokens},
          {"cached", report.cached_tokens},
          {"cached_share", Share(report.cached_tokens, report.input_tokens)},
          {"output", report.output_tokens},
          {"output_per_event", Share(report.output_tokens, report.deltas)},
          {"input_per_second", PerSecond(report.input_tokens, report)},
          {"output_per_second", PerSecond(report.output_tokens, report)},
          {"full_load_output_per_second", full ? Json(*full) : Json(nullptr)}};
}

Json GoodputJson(const BenchRun& run) {
  if (run.service_level.empty()) return nullptr;
  return {{"requests", run.report.good},
          {"share", Share(run.report.good, run.report.sent)},
          {"requests_per_second", PerSecond(run.report.good, run.report)}};
}

Json DeterminismJson(const bench::Report& report) {
  if (!report.determinism) return nullptr;
  Json differences = Json::array();
  for (const bench::Difference& one : report.determinism->differences) {
    differences.push_back(
        {{"request", one.distinct},
         {"places", {one.place_a, one.place_b}},
         {"first_token", one.token ? Json(*one.token) : Json(nullptr)}});
  }
  return {{"requests", report.determinism->requests},
          {"answers", report.determinism->answers},
          {"identical", differences.empty()},
          {"differences", differences}};
}

Json WorkersJson(const BenchRun& run) {
  if (!run.workers) return nullptr;
  const bench::WorkerActivity& workers = *run.workers;
  return {{"count", workers.workers},
          {"steps", workers.steps},
          {"output_tokens_per_step",
           Share(run.report.output_tokens, workers.steps)},
          {"mean_running_sequences", workers.mean_running},
          {"max_running_sequences", workers.max_running},
          {"max_queued_requests", workers.max_queued},
          {"max_kv_blocks_used", workers.max_kv_blocks_used},
          {"kv_blocks_total", workers.kv_blocks_total}};
}

void AppendRow(std::string& table, absl::string_view name,
               const bench::Distribution& seconds) {
  absl::StrAppendFormat(&table, "%-22s%10.2f%10.2f%10.2f%10.2f%10.2f%8.2f\n",
                        name, seconds.mean * 1e3, seconds.p50 * 1e3,
                        seconds.p90 * 1e3, seconds.p95 * 1e3, seconds.p99 * 1e3,
                        seconds.max * 1e3);
}

void AppendThroughput(std::string& table, const bench::Report& report) {
  absl::StrAppendFormat(&table,
                        "requests      %d of %d in %.2f s, %.2f a second\n",
                        report.succeeded, report.sent, report.elapsed,
                        PerSecond(report.succeeded, report));
  for (const auto& [code, count] : report.errors) {
    absl::StrAppendFormat(&table, "  %-28s%d, such as: %s\n", code, count,
                          report.error_examples.at(code));
  }
  absl::StrAppendFormat(
      &table, "input tokens  %d, %.0f a second, %.1f%% from the cache\n",
      report.input_tokens, PerSecond(report.input_tokens, report),
      100 * Share(report.cached_tokens, report.input_tokens));
  absl::StrAppendFormat(&table, "output tokens %d, %.0f a second",
                        report.output_tokens,
                        PerSecond(report.output_tokens, report));
  if (report.full_output_tokens_per_second) {
    absl::StrAppendFormat(&table, " (%.0f while the load was full)",
                          *report.full_output_tokens_per_second);
  }
  absl::StrAppend(&table, "\n");
}

void AppendChecks(std::string& table, const BenchRun& run) {
  const bench::Report& report = run.report;
  if (!run.service_level.empty()) {
    absl::StrAppendFormat(&table,
                          "goodput       %d of %d kept the service level, %.2f "
                          "a second\n",
                          report.good, report.sent,
                          PerSecond(report.good, report));
  }
  if (report.determinism) {
    const bench::Determinism& check = *report.determinism;
    absl::StrAppendFormat(&table, "determinism   %d answers to %d requests: ",
                          check.answers, check.requests);
    absl::StrAppend(&table, check.differences.empty()
                                ? "identical\n"
                                : absl::StrCat(check.differences.size(),
                                               " requests DIFFER\n"));
  }
  if (!report.digest.empty()) {
    absl::StrAppend(&table, "digest        ", report.digest, "\n");
  }
}

}  // namespace

nlohmann::ordered_json ToJson(const BenchRun& run) {
  const bench::Report& report = run.report;
  const double cpu_share =
      report.elapsed > 0 ? report.client_cpu / report.elapsed : 0;
  return {{"schema", "invar.bench.1"},
          {"version", kVersion},
          {"server", ServerJson(run)},
          {"parameters", run.parameters},
          {"elapsed_seconds", report.elapsed},
          {"requests", RequestsJson(report)},
          {"tokens", TokensJson(report)},
          {"ttft_ms", MillisecondsJson(report.ttft)},
          {"itl_ms", MillisecondsJson(report.itl)},
          {"tpot_ms", MillisecondsJson(report.tpot)},
          {"e2e_ms", MillisecondsJson(report.e2e)},
          {"goodput", GoodputJson(run)},
          {"digest", report.digest},
          {"fingerprints", report.fingerprints},
          {"determinism", DeterminismJson(report)},
          {"workers", WorkersJson(run)},
          {"client",
           {{"send_delay_ms", MillisecondsJson(report.send_delay)},
            {"cpu_seconds", report.client_cpu},
            {"cpu_cores", cpu_share}}}};
}

std::string BenchTable(const BenchRun& run) {
  const bench::Report& report = run.report;
  std::string table =
      absl::StrFormat("server        %s %s at %s\nfingerprint   %s\n",
                      run.server.model(), run.server.version(), run.address,
                      absl::StrJoin(report.fingerprints, ", "));
  AppendThroughput(table, report);
  absl::StrAppendFormat(&table, "\n%-22s%10s%10s%10s%10s%10s%8s\n",
                        "milliseconds", "mean", "p50", "p90", "p95", "p99",
                        "max");
  AppendRow(table, "to first token", report.ttft);
  AppendRow(table, "between tokens", report.itl);
  AppendRow(table, "a token, by answer", report.tpot);
  AppendRow(table, "to the end", report.e2e);
  absl::StrAppend(&table, "\n");
  AppendChecks(table, run);
  if (run.workers) {
    absl::StrAppendFormat(
        &table,
        "workers       %d; %d steps, %.1f output tokens a step, %.1f sequences "
        "on average\n",
        run.workers->workers, run.workers->steps,
        Share(report.output_tokens, run.workers->steps),
        run.workers->mean_running);
  }
  absl::StrAppendFormat(
      &table, "this client   %.2f cores; requests left %.2f ms late at p99\n",
      report.elapsed > 0 ? report.client_cpu / report.elapsed : 0,
      report.send_delay.p99 * 1e3);
  return table;
}

}  // namespace invar
