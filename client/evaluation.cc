#include "client/evaluation.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "client/record.h"
#include "common/digest.h"

namespace invar {
namespace {

v1::GenerateRequest MakeRequest(const MgsmProblem& problem,
                                const EvaluationOptions& options) {
  v1::GenerateRequest request;
  request.set_model(options.model);
  v1::ChatMessage* message = request.mutable_chat()->add_messages();
  message->set_role("user");
  message->set_content(MgsmPrompt(options.instruction, problem.question));
  request.mutable_sampling()->set_temperature(0);
  request.mutable_stopping()->set_max_tokens(options.max_tokens);
  if (options.keep_records) request.mutable_output()->set_logprobs(true);
  return request;
}

Transcript ReadTranscript(const v1::GenerateOnceResponse& response,
                          const MgsmProblem& problem,
                          const std::string& answer_prefix) {
  Transcript transcript;
  transcript.done = true;
  if (response.answers().empty()) return transcript;
  const v1::Answer& answer = response.answers(0);
  const v1::Completion& completion = answer.completion();
  transcript.text = answer.text();
  transcript.token_ids.assign(answer.token_ids().begin(),
                              answer.token_ids().end());
  transcript.finish_reason =
      v1::Finish::Reason_Name(completion.finish().reason());
  transcript.prediction = ExtractMgsmAnswer(transcript.text, answer_prefix);
  transcript.correct = MgsmCorrect(problem.answer, transcript.prediction);
  transcript.fingerprint = completion.receipt().fingerprint();
  return transcript;
}

std::vector<std::string> DistinctFingerprints(
    const std::vector<Transcript>& transcripts) {
  std::vector<std::string> distinct;
  for (const Transcript& transcript : transcripts) {
    if (transcript.done &&
        std::find(distinct.begin(), distinct.end(), transcript.fingerprint) ==
            distinct.end()) {
      distinct.push_back(transcript.fingerprint);
    }
  }
  return distinct;
}

}  // namespace

std::string TranscriptDigest(const std::vector<Transcript>& transcripts) {
  Sha256 hash;
  hash.Update("invar transcripts 1\n");
  for (size_t i = 0; i < transcripts.size(); ++i) {
    const Transcript& transcript = transcripts[i];
    hash.Update(absl::StrCat(i, " ", TokenDigest(transcript.token_ids), " ",
                             transcript.finish_reason, " ",
                             Sha256Hex(transcript.text), "\n"));
  }
  return hash.HexDigest();
}

Evaluation EvaluateMgsm(
    Client& client, const std::vector<MgsmProblem>& problems,
    const EvaluationOptions& options,
    const std::function<void(const Evaluation&)>& on_progress) {
  Evaluation evaluation;
  const auto prefix = MgsmAnswerPrefix(options.language);
  if (!prefix.ok()) {
    evaluation.result.status = {grpc::StatusCode::INVALID_ARGUMENT,
                                std::string(prefix.status().message())};
    return evaluation;
  }
  std::vector<v1::GenerateRequest> requests;
  requests.reserve(problems.size());
  for (const MgsmProblem& problem : problems) {
    requests.push_back(MakeRequest(problem, options));
  }
  evaluation.transcripts.resize(problems.size());
  if (options.keep_records) evaluation.records.resize(problems.size());

  const absl::Time start = absl::Now();
  evaluation.result = RunRequests(
      client, requests, options.pool,
      [&](size_t index, const v1::GenerateOnceResponse& response) {
        Transcript& transcript = evaluation.transcripts[index];
        transcript = ReadTranscript(response, problems[index], *prefix);
        if (options.keep_records) {
          evaluation.records[index] = MakeRecord(requests[index], response);
        }
        ++evaluation.done;
        evaluation.correct += transcript.correct ? 1 : 0;
        evaluation.output_tokens += transcript.token_ids.size();
        evaluation.elapsed = absl::Now() - start;
        on_progress(evaluation);
      });
  evaluation.elapsed = absl::Now() - start;
  evaluation.fingerprints = DistinctFingerprints(evaluation.transcripts);
  if (evaluation.result.status.ok()) {
    evaluation.digest = TranscriptDigest(evaluation.transcripts);
  }
  return evaluation;
}

}  // namespace invar
