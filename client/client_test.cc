#include "client/client.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "client/fake_server.h"
#include "common/status.h"

namespace invar {
namespace {

using ::testing::ElementsAre;

std::unique_ptr<Client> ConnectTo(const FakeServer& server) {
  auto client = Client::Connect(server.address());
  EXPECT_TRUE(client.ok()) << client.status();
  return *std::move(client);
}

TEST(CheckAddress, WantsHostAndPort) {
  for (const char* good : {"127.0.0.1:8470", "host:1", "[::1]:65535"}) {
    EXPECT_TRUE(CheckAddress(good).ok()) << good;
  }
  for (const char* bad : {"", "host", ":8470", "host:", "host:0", "host:65536",
                          "host:http", "::1:8470"}) {
    EXPECT_EQ(CheckAddress(bad).code(), absl::StatusCode::kInvalidArgument)
        << bad;
  }
}

TEST(Connect, SaysThatThereIsNoServer) {
  std::string address;
  {
    FakeServer server({});
    address = server.address();
  }
  const auto client = Client::Connect(address);
  EXPECT_EQ(client.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(client.status().message(), "no server at " + address);
}

TEST(Generate, StreamsEventsAndMetadata) {
  FakeServer server({});
  v1::GenerateRequest request;
  request.set_text("hi");
  request.set_request_id("mine");
  request.mutable_output()->set_prompt_logprobs(true);
  v1::GenerateOnceResponse whole;
  GenerateMetadata metadata;
  std::string id_at_first_event;
  const grpc::Status status = ConnectTo(server)->Generate(
      request, {},
      [&](const v1::GenerateResponse& event) {
        if (id_at_first_event.empty()) id_at_first_event = metadata.request_id;
        AddEvent(event, whole);
        return true;
      },
      &metadata);
  ASSERT_TRUE(status.ok()) << status.error_message();
  EXPECT_EQ(id_at_first_event, "mine");
  EXPECT_EQ(metadata.seed, 18446744073709551615u);
  ASSERT_EQ(whole.answers_size(), 1);
  EXPECT_EQ(whole.answers(0).text(), "echo: hi");
  EXPECT_EQ(whole.answers(0).token_ids_size(), 8);
  EXPECT_EQ(whole.answers(0).completion().finish().reason(), v1::Finish::STOP);
  EXPECT_THAT(whole.prompt_logprobs(), ElementsAre(-0.1f, -1.0f / 3));
  EXPECT_EQ(whole.usage().prompt_tokens(), 3);
}

TEST(Generate, IsCancelledWhenItsCallbackSaysSo) {
  FakeServer server({.answer = [](const v1::GenerateRequest&) {
    return std::string(100'000, 'x');
  }});
  v1::GenerateRequest request;
  request.set_text("on and on");
  int events = 0;
  const grpc::Status status = ConnectTo(server)->Generate(
      request, {}, [&](const v1::GenerateResponse&) { return ++events < 3; });
  EXPECT_EQ(status.error_code(), grpc::StatusCode::CANCELLED);
  EXPECT_EQ(events, 3);
}

TEST(Generate, KeepsTheDetailsOfAnError) {
  FakeServer server({.refuse = [](const v1::GenerateRequest&, int) {
    return BadField("sampling.top_p", "must be in (0, 1], is 2").ToStatus();
  }});
  v1::GenerateOnceResponse response;
  const grpc::Status status =
      ConnectTo(server)->GenerateOnce({}, {}, &response);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(ErrorFields(status), "sampling.top_p");
}

TEST(Client, MakesTheOtherCalls) {
  FakeServer server({.ready = false});
  const auto client = ConnectTo(server);
  v1::TokenizeRequest tokenize;
  tokenize.set_text("AB");
  v1::TokenizeResponse tokens;
  ASSERT_TRUE(client->Tokenize(tokenize, {}, &tokens).ok());
  EXPECT_THAT(tokens.token_ids(), ElementsAre(65, 66));

  v1::DetokenizeRequest detokenize;
  detokenize.add_token_ids(65);
  v1::DetokenizeResponse text;
  ASSERT_TRUE(client->Detokenize(detokenize, {}, &text).ok());
  EXPECT_EQ(text.text(), "A");

  v1::GetServerInfoResponse info;
  ASSERT_TRUE(client->GetServerInfo({}, &info).ok());
  EXPECT_EQ(info.fingerprint(), "f00d");

  grpc::health::v1::HealthCheckResponse::ServingStatus serving;
  ASSERT_TRUE(client->CheckHealth("", {}, &serving).ok());
  EXPECT_EQ(serving, grpc::health::v1::HealthCheckResponse::SERVING);
  ASSERT_TRUE(client->CheckHealth(kInferenceServiceName, {}, &serving).ok());
  EXPECT_EQ(serving, grpc::health::v1::HealthCheckResponse::NOT_SERVING);
}

}  // namespace
}  // namespace invar
