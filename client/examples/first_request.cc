// A first request: asks one question and prints the answer.
//
//   build/bin/invar-first-request [HOST:PORT]
#include <iostream>

#include "client/client.h"

int main(int argc, char** argv) {
  auto client = invar::Client::Connect(argc > 1 ? argv[1] : "127.0.0.1:8470");
  if (!client.ok()) {
    std::cerr << client.status().message() << "\n";
    return 3;
  }
  invar::v1::GenerateRequest request;
  invar::v1::ChatMessage* message = request.mutable_chat()->add_messages();
  message->set_role("user");
  message->set_content(
      "A recipe for 3 people needs 5 eggs. Ada cooks for 12 people. "
      "How many eggs does Ada need?");
  request.mutable_stopping()->set_max_tokens(128);
  const grpc::Status status =
      (*client)->Generate(request, {}, [](const auto& event) {
        std::cout << event.delta().text() << std::flush;
        return true;  // false would cancel
      });
  std::cout << "\n";
  if (!status.ok()) std::cerr << status.error_message() << "\n";
  return status.ok() ? 0 : 1;
}
