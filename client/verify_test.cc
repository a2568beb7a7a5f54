#include "client/verify.h"

#include <gmock/gmock.h>
#include <google/protobuf/util/message_differencer.h>
#include <gtest/gtest.h>

#include <atomic>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "client/message_difference.h"
#include "client/record.h"
#include "client/toy_model.h"
#include "common/numerics.h"
#include "common/status.h"

namespace invar {
namespace {

using google::protobuf::FieldDescriptor;
using google::protobuf::Message;
using ::testing::HasSubstr;
using ::testing::StartsWith;
using Kind = Verdict::Kind;

std::unique_ptr<Client> ConnectTo(const FakeServer& server) {
  auto client = Client::Connect(server.address());
  EXPECT_TRUE(client.ok()) << client.status();
  return *std::move(client);
}

v1::GenerateRequest MakeRequest() {
  v1::GenerateRequest request;
  request.set_text("Once upon a time");
  request.set_request_id("recorded");
  request.mutable_sampling()->set_temperature(0.7f);
  request.mutable_sampling()->set_seed(7);
  request.mutable_sampling()->set_n(2);
  (*request.mutable_sampling()->mutable_logit_bias())[5] = 0.25f;
  request.mutable_stopping()->set_max_tokens(9);
  request.mutable_stopping()->add_stop_strings("never");
  request.mutable_stopping()->add_stop_token_ids(3);
  request.mutable_output()->set_logprobs(true);
  request.mutable_output()->set_top_logprobs(2);
  request.mutable_output()->set_prompt_logprobs(true);
  return request;
}

std::vector<v1::GenerationRecord> MakeRecords(Client& client) {
  v1::GenerateOnceResponse response;
  const v1::GenerateRequest request = MakeRequest();
  EXPECT_TRUE(client.GenerateOnce(request, {}, &response).ok());
  std::vector<v1::GenerationRecord> records = {MakeRecord(request, response)};
  EXPECT_TRUE(AddNumerics(client, {}, records).ok());
  return records;
}

Verdict VerifyOne(Client& client, const v1::GenerationRecord& record) {
  Verdict result;
  int verdicts = 0;
  PoolOptions options;
  options.outage_patience = absl::ZeroDuration();
  VerifyRecords(client, {record}, options, [&](size_t, const Verdict& verdict) {
    result = verdict;
    ++verdicts;
  });
  EXPECT_EQ(verdicts, 1);
  return result;
}

// Changes one scalar value; index: of a repeated field, else -1.
void ChangeScalar(Message* message, const FieldDescriptor* field, int index) {
  const auto* reflection = message->GetReflection();
  const auto change = [&](auto get, auto get_one, auto set, auto set_one,
                          auto changed) {
    if (index < 0) {
      (reflection->*set)(message, field,
                         changed((reflection->*get)(*message, field)));
    } else {
      (reflection->*set_one)(
          message, field, index,
          changed((reflection->*get_one)(*message, field, index)));
    }
  };
  using R = google::protobuf::Reflection;
  switch (field->cpp_type()) {
    case FieldDescriptor::CPPTYPE_INT32:
      return change(&R::GetInt32, &R::GetRepeatedInt32, &R::SetInt32,
                    &R::SetRepeatedInt32, [](int32_t x) { return x ^ 1; });
    case FieldDescriptor::CPPTYPE_UINT64:
      return change(&R::GetUInt64, &R::GetRepeatedUInt64, &R::SetUInt64,
                    &R::SetRepeatedUInt64, [](uint64_t x) { return x ^ 1; });
    case FieldDescriptor::CPPTYPE_FLOAT:
      // The least change there is.
      return change(&R::GetFloat, &R::GetRepeatedFloat, &R::SetFloat,
                    &R::SetRepeatedFloat, [](float x) {
                      return std::nextafter(
                          x, std::numeric_limits<float>::infinity());
                    });
    case FieldDescriptor::CPPTYPE_ENUM:
      return change(&R::GetEnumValue, &R::GetRepeatedEnumValue,
                    &R::SetEnumValue, &R::SetRepeatedEnumValue,
                    [](int x) { return x ^ 1; });
    case FieldDescriptor::CPPTYPE_STRING: {
      std::string text =
          index < 0 ? reflection->GetString(*message, field)
                    : reflection->GetRepeatedString(*message, field, index);
      text = text.empty() ? "altered" : text.substr(1);
      return index < 0
                 ? reflection->SetString(message, field, text)
                 : reflection->SetRepeatedString(message, field, index, text);
    }
    default:
      FAIL() << "teach this test to alter a " << field->cpp_type_name() << ": "
             << field->full_name();
  }
}

// Calls check(path) once for each value of `message`, which is then altered;
// `root` is restored afterwards. Adds an entry to what has none.
void AlterEach(const std::string& path, Message* root, Message* message,
               const std::function<void(const std::string&)>& check) {
  const auto* descriptor = message->GetDescriptor();
  const auto* reflection = message->GetReflection();
  for (int i = 0; i < descriptor->field_count(); ++i) {
    const FieldDescriptor* field = descriptor->field(i);
    const bool is_message =
        field->cpp_type() == FieldDescriptor::CPPTYPE_MESSAGE;
    const std::string name = absl::StrCat(path, field->name());
    std::unique_ptr<Message> before(message->New());
    before->CopyFrom(*message);
    const auto restore = [&] { message->CopyFrom(*before); };
    if (!field->is_repeated() && !is_message) {
      ChangeScalar(message, field, -1);
      check(name);
      restore();
    } else if (!field->is_repeated()) {
      AlterEach(name + ".", root, reflection->MutableMessage(message, field),
                check);
      restore();
    } else {
      // One entry less, or one where there was none.
      if (reflection->FieldSize(*message, field) > 0) {
        reflection->RemoveLast(message, field);
      } else if (is_message) {
        reflection->AddMessage(message, field);
      } else if (field->cpp_type() == FieldDescriptor::CPPTYPE_STRING) {
        reflection->AddString(message, field, "added");
      } else if (field->cpp_type() == FieldDescriptor::CPPTYPE_INT32) {
        reflection->AddInt32(message, field, 1);
      } else if (field->cpp_type() == FieldDescriptor::CPPTYPE_FLOAT) {
        reflection->AddFloat(message, field, 1);
      } else {
        FAIL() << "teach this test to add to " << field->full_name();
      }
      check(name);
      restore();
      const int size = reflection->FieldSize(*message, field);
      if (size == 0) continue;
      // The last value: what is compared must be compared to the end.
      if (is_message && field->is_map()) {
        Message* entry =
            reflection->MutableRepeatedMessage(message, field, size - 1);
        ChangeScalar(entry, field->message_type()->map_value(), -1);
        check(name);
        restore();
      } else if (is_message) {
        AlterEach(absl::StrCat(name, "[", size - 1, "]."), root,
                  reflection->MutableRepeatedMessage(message, field, size - 1),
                  check);
        restore();
      } else {
        ChangeScalar(message, field, size - 1);
        check(name);
        restore();
      }
    }
  }
}

TEST(Verify, FindsEveryAlteredFieldOfAReceipt) {
  ToyModel model;
  FakeServer server(model.Behaviour());
  const auto client = ConnectTo(server);
  const auto original = MakeRecords(*client);
  ASSERT_EQ(VerifyOne(*client, original[0]).detail, "");
  for (int answer = 0; answer < 2; ++answer) {
    v1::GenerationRecord record = original[0];
    v1::Receipt* receipt = record.mutable_response()
                               ->mutable_answers(answer)
                               ->mutable_completion()
                               ->mutable_receipt();
    int fields = 0;
    AlterEach("", &record, receipt, [&](const std::string& path) {
      ++fields;
      const Verdict verdict = VerifyOne(*client, record);
      EXPECT_EQ(verdict.kind, Kind::kDiffers) << path;
      EXPECT_THAT(verdict.detail,
                  StartsWith(absl::StrCat("answers[", answer,
                                          "].completion.receipt.", path)));
    });
    EXPECT_GE(fields, v1::Receipt::descriptor()->field_count() +
                          v1::EffectiveSampling::descriptor()->field_count());
    EXPECT_FALSE(FirstFieldDifference(original[0], record).has_value());
  }
}

TEST(Verify, FindsEveryAlteredFieldOfAnAnswerAndOfTheNumerics) {
  ToyModel model;
  FakeServer server(model.Behaviour());
  const auto client = ConnectTo(server);
  v1::GenerationRecord record = MakeRecords(*client)[0];
  const auto differs = [&](const std::string& path) {
    const Verdict verdict = VerifyOne(*client, record);
    const bool expected = path != "usage.cached_tokens";
    EXPECT_EQ(verdict.kind, expected ? Kind::kDiffers : Kind::kIdentical)
        << path << " " << verdict.detail;
  };
  // A response without any answer is no record: see ParseRecords.
  AlterEach("", &record, record.mutable_response(), differs);
  AlterEach("", &record, record.mutable_numerics(), differs);
}

TEST(Verify, NamesThePositionWithBothTokensAndLogProbabilities) {
  ToyModel model;
  FakeServer server(model.Behaviour());
  const auto client = ConnectTo(server);
  const auto original = MakeRecords(*client);
  v1::GenerationRecord record = original[0];
  v1::Answer& answer = *record.mutable_response()->mutable_answers(1);
  const int32_t token = answer.token_ids(4);
  answer.set_token_ids(4, 'z' + 1);
  Verdict verdict = VerifyOne(*client, record);
  EXPECT_THAT(verdict.detail,
              HasSubstr(absl::StrCat("answers[1] at position ", 16 + 4,
                                     " (output token 4): token ", 'z' + 1,
                                     " with log-probability ")));
  EXPECT_THAT(verdict.detail, HasSubstr(absl::StrCat("recorded, token ", token,
                                                     " with log-prob")));
  // The least bit of one log-probability.
  record = original[0];
  float* logprob = record.mutable_response()
                       ->mutable_answers(0)
                       ->mutable_logprobs()
                       ->Mutable(8);
  *logprob = std::nextafter(*logprob, 1.0f);
  verdict = VerifyOne(*client, record);
  EXPECT_EQ(verdict.kind, Kind::kDiffers);
  EXPECT_THAT(verdict.detail, StartsWith("answers[0] at position 24 "));
}

TEST(Verify, FindsAnAlteredRequest) {
  ToyModel model;
  FakeServer server(model.Behaviour());
  const auto client = ConnectTo(server);
  const auto original = MakeRecords(*client);
  v1::GenerationRecord record = original[0];
  record.mutable_request()->set_text("Twice upon a time");
  EXPECT_THAT(VerifyOne(*client, record).detail, HasSubstr("prompt_digest"));
  record = original[0];
  record.mutable_request()->mutable_sampling()->set_seed(8);
  EXPECT_THAT(VerifyOne(*client, record).detail, HasSubstr("receipt.seed"));
  record = original[0];
  record.mutable_request()->mutable_sampling()->set_n(3);
  EXPECT_THAT(VerifyOne(*client, record).detail,
              HasSubstr("answers: 2 entries recorded, 3 entries replayed"));
}

TEST(Verify, SaysWhyItCannotTell) {
  ToyModel model;
  FakeBehaviour behaviour = model.Behaviour();
  std::vector<v1::GenerationRecord> records;
  {
    FakeServer before(behaviour);
    records = MakeRecords(*ConnectTo(before));
  }
  // The same deployment with other weights.
  v1::Numerics& numerics = *behaviour.info.mutable_pools(0)->mutable_numerics();
  numerics.set_weights_digest("other");
  numerics.set_fingerprint(Fingerprint(numerics));
  behaviour.refuse = [](const v1::GenerateRequest& request, int) {
    EXPECT_NE(request.resume().expected_fingerprint(), "");
    return Error(absl::StatusCode::kFailedPrecondition, "NO_SUCH_FINGERPRINT",
                 "served by no worker")
        .ToStatus();
  };
  std::unique_ptr<Client> client;
  {
    FakeServer after(behaviour);
    client = ConnectTo(after);
    Verdict verdict = VerifyOne(*client, records[0]);
    EXPECT_EQ(verdict.kind, Kind::kCannotTell);
    EXPECT_THAT(verdict.detail,
                HasSubstr("differs in weights_digest: toy against other"));
    v1::GenerationRecord bare = records[0];
    bare.clear_numerics();
    EXPECT_THAT(VerifyOne(*client, bare).detail,
                HasSubstr("the record has no numerics"));
    // What needs no server is told all the same.
    bare.mutable_response()->mutable_answers(0)->set_token_ids(0, 9);
    EXPECT_THAT(VerifyOne(*client, bare).detail, HasSubstr("output_digest"));
  }
  const Verdict verdict = VerifyOne(*client, records[0]);
  EXPECT_EQ(verdict.kind, Kind::kCannotTell);
  EXPECT_THAT(verdict.detail, StartsWith("UNAVAILABLE: "));
}

TEST(Verify, FindsAServerThatAnswersDifferently) {
  std::atomic<bool> broken = false;
  ToyModel model([&](const ToySituation&) { return broken.load(); });
  FakeServer server(model.Behaviour());
  const auto client = ConnectTo(server);
  const auto records = MakeRecords(*client);
  EXPECT_EQ(VerifyOne(*client, records[0]).kind, Kind::kIdentical);
  broken = true;
  EXPECT_THAT(VerifyOne(*client, records[0]).detail,
              StartsWith("answers[0] at position 16 (output token 0): token "));
}

TEST(Record, SurvivesAFileBitForBit) {
  ToyModel model;
  FakeServer server(model.Behaviour());
  v1::GenerationRecord record = MakeRecords(*ConnectTo(server))[0];
  auto* logprobs = record.mutable_response()->mutable_answers(0);
  logprobs->set_logprobs(0, 0.0f);
  logprobs->set_logprobs(1, std::numeric_limits<float>::denorm_min());
  logprobs->set_logprobs(2, -std::numeric_limits<float>::infinity());
  logprobs->set_logprobs(3, -0.1f - 1e-8f);
  logprobs->set_text("a\nb\"\xc3\xa9");
  record.mutable_request()->mutable_sampling()->set_seed(~uint64_t{0});
  const std::string line = RecordLine(record);
  EXPECT_EQ(std::count(line.begin(), line.end(), '\n'), 1);
  const auto file = ParseRecords("\n" + line + "\n" + line, "f");
  ASSERT_TRUE(file.ok()) << file.status();
  ASSERT_EQ(file->records.size(), 2u);
  EXPECT_EQ(file->lines, (std::vector<int>{2, 4}));
  const auto difference = FirstFieldDifference(record, file->records[1]);
  EXPECT_FALSE(difference.has_value())
      << difference->path << " " << difference->left << " "
      << difference->right;
}

TEST(Record, RefusesWhatIsNoRecord) {
  for (const auto& [text, problem] :
       std::vector<std::pair<std::string, std::string>>{
           {"{", "f:1: not a record"},
           {"\n{}", "f:2: not a record of an answer: request has no prompt"},
           {R"({"request":{"text":"x"}})", "request.sampling.seed"},
           {R"({"request":{"text":"x","sampling":{"seed":"1"}}})",
            "response has no answers"},
           {R"({"other":1})", "other"}}) {
    const auto file = ParseRecords(text, "f");
    EXPECT_EQ(file.status().code(), absl::StatusCode::kInvalidArgument) << text;
    EXPECT_THAT(std::string(file.status().message()), HasSubstr(problem));
  }
}

}  // namespace
}  // namespace invar
