#include "client/bench/report.h"

#include <algorithm>
#include <cstring>
#include <numeric>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "common/digest.h"

namespace invar::bench {
namespace {

using Records = std::vector<RequestRecord>;

double Seconds(Clock::duration duration) {
  return std::chrono::duration<double>(duration).count();
}

std::string CodeName(const grpc::Status& status) {
  return absl::StatusCodeToString(
      static_cast<absl::StatusCode>(status.error_code()));
}

// Mean gap; meaningful from two tokens on.
float MeanGap(const RequestRecord& record) {
  return static_cast<float>(
      std::accumulate(record.gaps.begin(), record.gaps.end(), 0.0) /
      static_cast<double>(record.gaps.size()));
}

bool Keeps(const RequestRecord& record, const ServiceLevel& level) {
  const auto within = [](double seconds, const std::optional<double>& limit) {
    return !limit || seconds * 1e3 <= *limit;
  };
  if (!within(record.first_token, level.ttft_ms) ||
      !within(Seconds(record.ended - record.due), level.e2e_ms)) {
    return false;
  }
  if (record.gaps.empty()) return true;
  return within(*std::max_element(record.gaps.begin(), record.gaps.end()),
                level.itl_ms) &&
         within(MeanGap(record), level.tpot_ms);
}

void CountAnswers(const Records& records, Report& report) {
  for (const RequestRecord& record : records) {
    ++report.sent;
    if (!record.status.ok()) {
      const std::string code = CodeName(record.status);
      ++report.errors[code];
      report.error_examples.emplace(code, record.status.error_message());
      continue;
    }
    ++report.succeeded;
    report.input_tokens += record.input_tokens;
    report.cached_tokens += record.cached_tokens;
    report.output_tokens += record.output_tokens;
    report.deltas += record.deltas;
    if (std::find(report.fingerprints.begin(), report.fingerprints.end(),
                  record.fingerprint) == report.fingerprints.end()) {
      report.fingerprints.push_back(record.fingerprint);
    }
  }
}

void MeasureLatencies(const Records& records, Report& report) {
  std::vector<float> ttft, itl, tpot, e2e, send_delay;
  for (const RequestRecord& record : records) {
    send_delay.push_back(Seconds(record.sent - record.due));
    if (!record.status.ok()) continue;
    e2e.push_back(Seconds(record.ended - record.due));
    if (record.deltas > 0) ttft.push_back(record.first_token);
    if (record.gaps.empty()) continue;
    itl.insert(itl.end(), record.gaps.begin(), record.gaps.end());
    tpot.push_back(MeanGap(record));
  }
  report.ttft = Describe(std::move(ttft));
  report.itl = Describe(std::move(itl));
  report.tpot = Describe(std::move(tpot));
  report.e2e = Describe(std::move(e2e));
  report.send_delay = Describe(std::move(send_delay));
}

std::optional<double> FullTokensPerSecond(const LoadResult& load,
                                          size_t concurrency) {
  const Records& records = load.records;
  if (concurrency == 0 || records.size() < concurrency) return std::nullopt;
  Clock::time_point last_sent = load.start;
  for (const RequestRecord& record : records) {
    last_sent = std::max(last_sent, record.sent);
  }
  double from = 0;
  double to = Seconds(load.end - load.start);
  for (const RequestRecord& record : records) {
    const double due = Seconds(record.due - load.start);
    if (static_cast<size_t>(record.place) < concurrency) {
      from = std::max(from, due + record.first_token);
    }
    if (record.ended >= last_sent) {
      to = std::min(to, Seconds(record.ended - load.start));
    }
  }
  if (to <= from) return std::nullopt;
  int64_t tokens = 0;
  for (const RequestRecord& record : records) {
    if (record.deltas == 0) continue;
    double at = Seconds(record.due - load.start) + record.first_token;
    tokens += at > from && at <= to;
    for (const float gap : record.gaps) {
      at += gap;
      tokens += at > from && at <= to;
    }
  }
  return static_cast<double>(tokens) / (to - from);
}

// Answers to each distinct request, in order of their places.
using Answers = std::map<int64_t, std::vector<const RequestRecord*>>;

Answers ByRequest(const Records& records) {
  Answers answers;
  for (const RequestRecord& record : records) {
    if (record.status.ok()) answers[record.distinct].push_back(&record);
  }
  return answers;
}

std::string WholeDigest(const Answers& answers) {
  Sha256 hash;
  hash.Update("invar bench 1\n");
  for (const auto& [distinct, records] : answers) {
    hash.Update(
        absl::StrCat(distinct, " ", records.front()->output_digest, "\n"));
  }
  return hash.HexDigest();
}

// By their bits: -0 is not 0.
bool SameBits(float a, float b) { return std::memcmp(&a, &b, sizeof a) == 0; }

std::optional<int64_t> FirstDifference(const RequestRecord& a,
                                       const RequestRecord& b) {
  const size_t tokens = std::max(a.token_ids.size(), b.token_ids.size());
  for (size_t i = 0; i < tokens; ++i) {
    if (i >= a.token_ids.size() || i >= b.token_ids.size() ||
        a.token_ids[i] != b.token_ids[i]) {
      return i;
    }
    const bool has_a = i < a.logprobs.size();
    const bool has_b = i < b.logprobs.size();
    if (has_a != has_b || (has_a && !SameBits(a.logprobs[i], b.logprobs[i]))) {
      return i;
    }
  }
  return std::nullopt;
}

Determinism CompareAnswers(const Answers& answers) {
  Determinism determinism;
  for (const auto& [distinct, records] : answers) {
    if (records.size() < 2) continue;
    ++determinism.requests;
    determinism.answers += static_cast<int64_t>(records.size());
    const RequestRecord& first = *records.front();
    for (const RequestRecord* other : records) {
      const std::optional<int64_t> token = FirstDifference(first, *other);
      if (!token && other->output_digest == first.output_digest) continue;
      determinism.differences.push_back(
          {distinct, first.place, other->place, token});
      break;
    }
  }
  return determinism;
}

}  // namespace

absl::StatusOr<ServiceLevel> ParseServiceLevel(absl::string_view text) {
  ServiceLevel level;
  for (absl::string_view part : absl::StrSplit(text, ',')) {
    const std::vector<absl::string_view> pair = absl::StrSplit(part, ':');
    std::optional<double>* bound = pair[0] == "ttft"   ? &level.ttft_ms
                                   : pair[0] == "itl"  ? &level.itl_ms
                                   : pair[0] == "tpot" ? &level.tpot_ms
                                   : pair[0] == "e2e"  ? &level.e2e_ms
                                                       : nullptr;
    double milliseconds = 0;
    if (bound == nullptr || pair.size() != 2 ||
        !absl::SimpleAtod(pair[1], &milliseconds) || !(milliseconds > 0)) {
      return absl::InvalidArgumentError(absl::StrCat(
          "--slo must be NAME:MILLISECONDS with commas, of ttft, itl, tpot and "
          "e2e, for example ttft:200,itl:50; is \"",
          text, "\""));
    }
    *bound = milliseconds;
  }
  return level;
}

Report Summarize(const LoadResult& load, const ReportOptions& options) {
  Report report;
  CountAnswers(load.records, report);
  MeasureLatencies(load.records, report);
  report.elapsed = Seconds(load.end - load.start);
  report.full_output_tokens_per_second =
      FullTokensPerSecond(load, options.concurrency);
  if (!options.service_level.empty()) {
    for (const RequestRecord& record : load.records) {
      report.good += record.status.ok() && Keeps(record, options.service_level);
    }
  }
  const Answers answers = ByRequest(load.records);
  if (report.succeeded == report.sent) report.digest = WholeDigest(answers);
  if (options.check_determinism) report.determinism = CompareAnswers(answers);
  report.client_cpu = absl::ToDoubleSeconds(load.cpu_time);
  return report;
}

}  // namespace invar::bench
