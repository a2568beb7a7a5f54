#include "scheduler/api/wire.h"

#include <gtest/gtest.h>

#include "common/status.h"
#include "invar/v1/inference.pb.h"

namespace invar::scheduler {
namespace {

grpc::Status Parse(const std::string& bytes, v1::GenerateRequest* request) {
  // In two slices, as a long message comes.
  const size_t half = bytes.size() / 2;
  const grpc::Slice slices[] = {grpc::Slice(bytes.substr(0, half)),
                                grpc::Slice(bytes.substr(half))};
  return ParseRequest(grpc::ByteBuffer(slices, 2), request);
}

// Writes bytes that protobuf's own setters would let pass with a log line.
std::string Replace(std::string bytes, const std::string& from,
                    const std::string& to) {
  bytes.replace(bytes.find(from), from.size(), to);
  return bytes;
}

TEST(ParseRequest, ReadsWhatParses) {
  v1::GenerateRequest request;
  request.set_text("na\xc3\xafve");
  v1::GenerateRequest read;
  EXPECT_TRUE(Parse(request.SerializeAsString(), &read).ok());
  EXPECT_EQ(read.text(), request.text());
  EXPECT_TRUE(Parse("", &read).ok());
}

TEST(ParseRequest, NamesTheStringThatIsNotUtf8) {
  v1::GenerateRequest text, chat, stops;
  text.set_text("AB");
  chat.mutable_chat()->add_messages()->set_content("fine");
  chat.mutable_chat()->add_messages()->set_content("AB");
  stops.mutable_stopping()->add_stop_strings("AB");
  const std::pair<v1::GenerateRequest, std::string> cases[] = {
      {text, "text"},
      {chat, "chat.messages[1].content"},
      {stops, "stopping.stop_strings[0]"}};
  for (const auto& [request, path] : cases) {
    v1::GenerateRequest read;
    const grpc::Status status =
        Parse(Replace(request.SerializeAsString(), "AB", "\xff\xfe"), &read);
    EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
    EXPECT_EQ(ErrorFields(status), path);
    EXPECT_EQ(ErrorReason(status), "BAD_FIELD");
  }
}

TEST(ParseRequest, RefusesWhatIsNoSuchMessage) {
  v1::GenerateRequest read;
  const grpc::Status status = Parse(
      "\x12\x7f"
      "cut",
      &read);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(ErrorReason(status), "BAD_MESSAGE");
}

TEST(SerializeResponse, WritesWhatParses) {
  v1::GenerateRequest request;
  request.set_text("x");
  v1::GenerateRequest read;
  EXPECT_TRUE(ParseRequest(SerializeResponse(request), &read).ok());
  EXPECT_EQ(read.text(), "x");
}

}  // namespace
}  // namespace invar::scheduler
