// Text for prompts, made of the served vocabulary.
#ifndef INVAR_CLIENT_BENCH_TEXT_PIECES_H_
#define INVAR_CLIENT_BENCH_TEXT_PIECES_H_

#include <grpcpp/support/status.h>

#include <cstdint>
#include <string>
#include <vector>

#include "client/client.h"

namespace invar::bench {

// The texts of tokens drawn from [0, vocab_size), as the server writes them,
// without those that are no whole characters; repeats are left in.
// FAILED_PRECONDITION if there is none.
grpc::Status DrawTextPieces(Client& client, int32_t vocab_size, uint64_t seed,
                            std::vector<std::string>* pieces);

}  // namespace invar::bench

#endif  // INVAR_CLIENT_BENCH_TEXT_PIECES_H_
