// serve_tokens: a TokenServer as a process of its own, so that what `invar
// bench` costs can be told from what a server costs.
//
//   build/bin/serve_tokens [TOKENS_PER_EVENT] &   # prints HOST:PORT
//   build/bin/invar bench --address HOST:PORT ...  # see its "this client"
#include <cstdio>

#include "absl/strings/numbers.h"
#include "client/bench/token_server.h"
#include "common/stop_signals.h"

int main(int argc, char** argv) {
  invar::bench::TokenServerOptions options;
  if (argc > 2 ||
      (argc == 2 && (!absl::SimpleAtoi(argv[1], &options.tokens_per_event) ||
                     options.tokens_per_event < 1))) {
    std::fprintf(stderr, "usage: serve_tokens [TOKENS_PER_EVENT]\n");
    return 2;
  }
  invar::StopSignals signals;
  const invar::bench::TokenServer server(options);
  std::printf("%s\n", server.address().c_str());
  std::fflush(stdout);
  while (!signals.Wait(absl::Hours(1))) {
  }
  return 0;
}
