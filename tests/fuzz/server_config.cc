// The deployment's textproto.
#include <google/protobuf/text_format.h>

#include <string>

#include "common/config.h"
#include "tests/fuzz/check.h"

int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using invar::Check;
  const auto config =
      invar::ParseServerConfig(invar::Text(data, size), "config");
  if (!config.ok()) {
    Check(config.status().message().substr(0, 6) == "config",
          "a refusal names the file");
    return 0;
  }
  // What is resolved is written out and read again: nothing moves.
  std::string text;
  Check(google::protobuf::TextFormat::PrintToString(*config, &text),
        "a config can be printed");
  const auto again = invar::ParseServerConfig(text, "config");
  Check(again.ok(), "a resolved config is a config");
  const auto worker = invar::MakeWorkerConfig(*config);
  const auto worker_again = invar::MakeWorkerConfig(*again);
  Check(invar::DifferingField(worker, worker_again).empty(),
        "resolving twice changes no field");
  Check(invar::ConfigDigest(worker) == invar::ConfigDigest(worker_again),
        "resolving twice changes no digest");
  return 0;
}
