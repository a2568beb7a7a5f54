// A server that writes made-up tokens as fast as it can: the other end for
// tests of the bench, and for measuring what the bench itself costs.
#ifndef INVAR_CLIENT_BENCH_TOKEN_SERVER_H_
#define INVAR_CLIENT_BENCH_TOKEN_SERVER_H_

#include <grpcpp/server.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "invar/v1/inference.pb.h"

namespace invar::bench {

struct TokenServerOptions {
  int32_t tokens_per_event = 1;
  // Called with each request and the count of those before it, from several
  // threads; other than OK is sent in place of the answer.
  std::function<grpc::Status(const v1::GenerateRequest&, int64_t)> refuse = {};
  // Likewise: the ids of the answer. Default: from the prompt's ids, and as
  // many as asked for.
  std::function<std::vector<int32_t>(const v1::GenerateRequest&, int64_t)>
      answer = {};
  // Of the receipt, in place of the true one.
  std::string output_digest = {};
};

// On a port of its own, through the callback API: any number of streams.
class TokenServer {
 public:
  explicit TokenServer(TokenServerOptions options);
  ~TokenServer();

  const std::string& address() const { return address_; }

 private:
  class Service;

  std::string address_;
  std::unique_ptr<Service> service_;
  std::unique_ptr<grpc::Server> server_;
};

}  // namespace invar::bench

#endif  // INVAR_CLIENT_BENCH_TOKEN_SERVER_H_
