// Runs MGSM against a server, and says in one score and one digest what came
// out.
#ifndef INVAR_CLIENT_EVALUATION_H_
#define INVAR_CLIENT_EVALUATION_H_

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "client/client.h"
#include "client/mgsm.h"
#include "client/request_pool.h"
#include "invar/v1/record.pb.h"

namespace invar {

struct EvaluationOptions {
  std::string model;
  std::string language = "en";
  // Holds `{input}`.
  std::string instruction;
  int max_tokens = 2048;
  // Keep a record of every answer, with log-probabilities: see record.h.
  bool keep_records = false;
  PoolOptions pool;
};

// What the model wrote to one problem.
struct Transcript {
  bool done = false;
  std::string text = {};
  std::vector<int32_t> token_ids = {};
  std::string finish_reason = {};
  std::string prediction = {};
  bool correct = false;
  std::string fingerprint = {};
};

struct Evaluation {
  // One a problem, in the order of the problems.
  std::vector<Transcript> transcripts;
  // Likewise, where they are kept; without numerics.
  std::vector<v1::GenerationRecord> records;
  int done = 0;
  int correct = 0;
  int64_t output_tokens = 0;
  // Of the transcripts: see TranscriptDigest. Empty if one is missing.
  std::string digest;
  // The fingerprints that wrote them, without repeats, in order of the
  // problems. More than one: the server changed under the evaluation.
  std::vector<std::string> fingerprints;
  absl::Duration elapsed;
  // How the run ended; index counts problems from 0.
  PoolResult result;

  double Score() const {
    return transcripts.empty()
               ? 0
               : static_cast<double>(correct) / transcripts.size();
  }
};

// SHA-256 (hex) over "invar transcripts 1\n" and, for each transcript in the
// order of the problems, the line
//   INDEX TOKENS REASON TEXT\n
// INDEX from 0 in decimal, TOKENS the receipt's output_digest (common/digest.h:
// TokenDigest), REASON "STOP" or "LENGTH", TEXT the SHA-256 (hex) of the text.
// Nothing that depends on time, concurrency or ids that the server makes up.
std::string TranscriptDigest(const std::vector<Transcript>& transcripts);

// Asks every problem once, greedily, and scores the answers. on_progress is
// called on this thread after each.
Evaluation EvaluateMgsm(
    Client& client, const std::vector<MgsmProblem>& problems,
    const EvaluationOptions& options,
    const std::function<void(const Evaluation&)>& on_progress);

}  // namespace invar

#endif  // INVAR_CLIENT_EVALUATION_H_
