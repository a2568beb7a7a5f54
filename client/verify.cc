#include "client/verify.h"

#include <algorithm>
#include <bit>
#include <cstdint>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "client/message_difference.h"
#include "client/record.h"
#include "common/digest.h"
#include "common/numerics.h"
#include "common/status.h"

namespace invar {
namespace {

Verdict Differs(std::string detail) {
  return {Verdict::Kind::kDiffers, std::move(detail)};
}

Verdict CannotTell(std::string detail) {
  return {Verdict::Kind::kCannotTell, std::move(detail)};
}

std::string Short(const std::string& digest) { return digest.substr(0, 12); }

std::string Text(const std::string& prefix, const FieldDifference& one) {
  return absl::StrCat(prefix, one.path, ": ", one.left, " recorded, ",
                      one.right, " replayed");
}

// "token 17 with log-probability -0.25", or what of it there is.
std::string TokenText(const v1::Answer& answer, int i) {
  if (i >= answer.token_ids_size()) return "no token";
  std::string text = absl::StrCat("token ", answer.token_ids(i));
  if (i < answer.logprobs_size()) {
    absl::StrAppendFormat(&text, " with log-probability %.9g",
                          answer.logprobs(i));
  }
  return text;
}

bool SameToken(const v1::Answer& recorded, const v1::Answer& replayed, int i) {
  if (i >= recorded.token_ids_size() || i >= replayed.token_ids_size() ||
      recorded.token_ids(i) != replayed.token_ids(i)) {
    return false;
  }
  const bool both =
      i < recorded.logprobs_size() && i < replayed.logprobs_size();
  return !both || std::bit_cast<uint32_t>(recorded.logprobs(i)) ==
                      std::bit_cast<uint32_t>(replayed.logprobs(i));
}

// Where the first token or log-probability of an answer differs; nothing:
// nowhere.
std::optional<std::string> TokenDifference(int index, int first_position,
                                           const v1::Answer& recorded,
                                           const v1::Answer& replayed) {
  const int size =
      std::max(recorded.token_ids_size(), replayed.token_ids_size());
  for (int i = 0; i < size; ++i) {
    if (SameToken(recorded, replayed, i)) continue;
    return absl::StrCat("answers[", index, "] at position ", first_position + i,
                        " (output token ", i, "): ", TokenText(recorded, i),
                        " recorded, ", TokenText(replayed, i), " replayed");
  }
  return std::nullopt;
}

std::string ReceiptPath(int index) {
  return absl::StrCat("answers[", index, "].completion.receipt.");
}

// Why a server of other fingerprints cannot tell.
std::string OtherFingerprint(const v1::GenerationRecord& record,
                             const v1::GetServerInfoResponse& info) {
  const std::string ours = Short(FingerprintOf(record));
  if (info.pools().empty()) {
    return absl::StrCat("fingerprint ", ours, " wrote it; no worker is ready");
  }
  const v1::Numerics& served = info.pools(0).numerics();
  const std::string both =
      absl::StrCat("fingerprint ", ours, " wrote it, this server's is ",
                   Short(served.fingerprint()));
  if (!record.has_numerics()) {
    return absl::StrCat(both,
                        "; the record has no numerics that would say in "
                        "which field they differ");
  }
  return absl::StrCat(both, ", which differs in ",
                      FirstDifference(record.numerics(), served));
}

Verdict WhyNoReplay(Client& client, const v1::GenerationRecord& record,
                    const grpc::Status& status) {
  if (ErrorReason(status) == "NO_SUCH_FINGERPRINT") {
    v1::GetServerInfoResponse info;
    if (client.GetServerInfo({.timeout = absl::Seconds(10)}, &info).ok()) {
      return CannotTell(OtherFingerprint(record, info));
    }
  }
  return CannotTell(
      absl::StrCat(absl::StatusCodeToString(
                       static_cast<absl::StatusCode>(status.error_code())),
                   ": ", status.error_message()));
}

}  // namespace

v1::GenerateRequest ReplayRequest(const v1::GenerationRecord& record) {
  v1::GenerateRequest request = record.request();
  // An id may be in flight once only, and the record's may be: another replay.
  request.clear_request_id();
  request.mutable_resume()->set_expected_fingerprint(FingerprintOf(record));
  request.mutable_output()->set_logprobs(true);
  return request;
}

Verdict CheckNumerics(const v1::GenerationRecord& record) {
  if (!record.has_numerics()) return {};
  const std::string& stated = record.numerics().fingerprint();
  if (const std::string given = Fingerprint(record.numerics());
      given != stated) {
    return Differs(absl::StrCat("numerics.fingerprint: ", stated,
                                " recorded, the numerics give ", given));
  }
  for (int i = 0; i < record.response().answers_size(); ++i) {
    const std::string& fingerprint =
        record.response().answers(i).completion().receipt().fingerprint();
    if (fingerprint == stated) continue;
    return Differs(absl::StrCat(ReceiptPath(i), "fingerprint: ", fingerprint,
                                " recorded, the record's numerics give ",
                                stated));
  }
  return {};
}

Verdict CheckDigests(const v1::GenerationRecord& record) {
  const auto& resumed = record.request().resume().token_ids();
  for (int i = 0; i < record.response().answers_size(); ++i) {
    const v1::Answer& answer = record.response().answers(i);
    std::vector<int32_t> output(resumed.begin(), resumed.end());
    output.insert(output.end(), answer.token_ids().begin(),
                  answer.token_ids().end());
    const std::string& stated = answer.completion().receipt().output_digest();
    if (const std::string given = TokenDigest(output); given != stated) {
      return Differs(absl::StrCat(ReceiptPath(i), "output_digest: ", stated,
                                  " recorded, the recorded tokens give ",
                                  given));
    }
  }
  return {};
}

Verdict CompareReplay(const v1::GenerationRecord& record,
                      v1::GenerateOnceResponse replayed) {
  const v1::GenerateOnceResponse& recorded = record.response();
  // The replay has an id of its own; the record must agree with itself.
  const std::string& id = record.request().request_id();
  replayed.set_request_id(id);
  for (v1::Answer& answer : *replayed.mutable_answers()) {
    answer.mutable_completion()->mutable_receipt()->set_request_id(id);
    if (!record.request().output().logprobs()) answer.clear_logprobs();
  }
  const int answers =
      std::min(recorded.answers_size(), replayed.answers_size());
  for (int i = 0; i < answers; ++i) {
    if (const auto difference =
            FirstFieldDifference(recorded.answers(i).completion().receipt(),
                                 replayed.answers(i).completion().receipt(),
                                 {"invar.v1.Receipt.output_digest"})) {
      return Differs(Text(ReceiptPath(i), *difference));
    }
  }
  const int first_position = recorded.usage().prompt_tokens() +
                             record.request().resume().token_ids_size();
  for (int i = 0; i < answers; ++i) {
    if (const auto difference = TokenDifference(
            i, first_position, recorded.answers(i), replayed.answers(i))) {
      return Differs(*difference);
    }
  }
  if (const auto difference = FirstFieldDifference(
          recorded, replayed, {"invar.v1.Usage.cached_tokens"})) {
    return Differs(Text("", *difference));
  }
  return {};
}

void VerifyRecords(
    Client& client, const std::vector<v1::GenerationRecord>& records,
    PoolOptions options,
    const std::function<void(size_t, const Verdict&)>& on_verdict) {
  std::vector<size_t> asked;  // records whose numerics hold
  std::vector<v1::GenerateRequest> requests;
  for (size_t i = 0; i < records.size(); ++i) {
    const Verdict verdict = CheckNumerics(records[i]);
    if (verdict.kind != Verdict::Kind::kIdentical) {
      on_verdict(i, verdict);
      continue;
    }
    asked.push_back(i);
    requests.push_back(ReplayRequest(records[i]));
  }
  options.on_failure = [&](size_t i, const grpc::Status& status) {
    const v1::GenerationRecord& record = records[asked[i]];
    const Verdict verdict = CheckDigests(record);
    on_verdict(asked[i], verdict.kind == Verdict::Kind::kIdentical
                             ? WhyNoReplay(client, record, status)
                             : verdict);
  };
  RunRequests(client, requests, options,
              [&](size_t i, const v1::GenerateOnceResponse& response) {
                on_verdict(asked[i],
                           CompareReplay(records[asked[i]], response));
              });
}

}  // namespace invar
