#include "client/bench/text_pieces.h"

#include "absl/strings/match.h"
#include "client/bench/random.h"

namespace invar::bench {
namespace {

constexpr int kDraws = 256;
constexpr uint64_t kPieceStream = 0x7e87'91ec;
constexpr char kReplacement[] = "\xef\xbf\xbd";  // U+FFFD

}  // namespace

grpc::Status DrawTextPieces(Client& client, int32_t vocab_size, uint64_t seed,
                            std::vector<std::string>* pieces) {
  Random random(seed, kPieceStream);
  for (int i = 0; i < kDraws; ++i) {
    v1::DetokenizeRequest request;
    request.add_token_ids(
        static_cast<int32_t>(random.Between(0, vocab_size - 1)));
    v1::DetokenizeResponse response;
    const grpc::Status status =
        client.Detokenize(request, {.timeout = absl::Seconds(10)}, &response);
    if (!status.ok()) return status;
    if (response.text().empty() ||
        absl::StrContains(response.text(), kReplacement)) {
      continue;
    }
    pieces->push_back(response.text());
  }
  if (!pieces->empty()) return grpc::Status::OK;
  return {grpc::StatusCode::FAILED_PRECONDITION,
          "the server's vocabulary gave no text for --text"};
}

}  // namespace invar::bench
