// Streams many requests at once through the C++ client, for tests that disturb
// the service meanwhile.
//
//   stream_many ADDRESSES IN OUT
//
// IN holds serialized GenerateRequests, OUT is given a serialized
// GenerateOnceResponse for each, in the same order: each after its length as 4
// bytes, little-endian. In OUT two more numbers stand before the length: the
// status's code and how often the stream was taken up again.
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <iterator>
#include <map>
#include <string>
#include <thread>
#include <vector>

#include "client/client.h"

namespace invar {
namespace {

struct Outcome {
  grpc::Status status;
  GenerateMetadata metadata;
  v1::GenerateOnceResponse whole;
};

// Whether a delta goes on where the one before it ended.
bool GoesOn(const v1::TokenDelta& delta, std::map<int32_t, int32_t>* next) {
  const auto [at, first] = next->try_emplace(delta.index(), delta.position());
  const bool goes_on = first || at->second == delta.position();
  at->second = delta.position() + delta.token_ids_size();
  return goes_on;
}

Outcome Stream(Client* client, const v1::GenerateRequest& request) {
  Outcome outcome;
  std::map<int32_t, int32_t> next;
  bool in_order = true;
  outcome.status = client->Generate(
      request, {.timeout = absl::Minutes(20)},
      [&](const v1::GenerateResponse& event) {
        if (event.has_delta()) in_order &= GoesOn(event.delta(), &next);
        AddEvent(event, outcome.whole);
        return true;
      },
      &outcome.metadata);
  if (!in_order) {
    outcome.status = grpc::Status(grpc::StatusCode::DATA_LOSS,
                                  "a delta does not follow the one before");
  }
  return outcome;
}

std::vector<v1::GenerateRequest> ReadRequests(const char* path) {
  std::ifstream file(path, std::ios::binary);
  std::vector<v1::GenerateRequest> requests;
  uint32_t size = 0;
  while (file.read(reinterpret_cast<char*>(&size), sizeof(size))) {
    std::string bytes(size, '\0');
    file.read(bytes.data(), size);
    if (!file || !requests.emplace_back().ParseFromString(bytes)) return {};
  }
  return requests;
}

int Run(const char* addresses, const char* in, const char* out) {
  const std::vector<v1::GenerateRequest> requests = ReadRequests(in);
  auto client = Client::Connect(addresses);
  if (!client.ok() || requests.empty()) {
    std::fprintf(stderr, "stream_many: no requests, or %s\n",
                 client.status().ToString().c_str());
    return 2;
  }
  std::vector<Outcome> outcomes(requests.size());
  std::vector<std::thread> threads;
  for (size_t i = 0; i < requests.size(); ++i) {
    threads.emplace_back(
        [&, i] { outcomes[i] = Stream(client->get(), requests[i]); });
  }
  for (std::thread& thread : threads) thread.join();
  std::ofstream file(out, std::ios::binary);
  for (const Outcome& outcome : outcomes) {
    if (!outcome.status.ok()) {
      std::fprintf(stderr, "stream_many: %s: %s\n",
                   outcome.metadata.request_id.c_str(),
                   outcome.status.error_message().c_str());
    }
    const std::string bytes = outcome.whole.SerializeAsString();
    const uint32_t head[] = {static_cast<uint32_t>(outcome.status.error_code()),
                             static_cast<uint32_t>(outcome.metadata.resumes),
                             static_cast<uint32_t>(bytes.size())};
    file.write(reinterpret_cast<const char*>(head), sizeof(head));
    file.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  }
  return file ? 0 : 2;
}

}  // namespace
}  // namespace invar

int main(int argc, char** argv) {
  return argc == 4 ? invar::Run(argv[1], argv[2], argv[3]) : 2;
}
