#include "scheduler/api/wire.h"

#include <google/protobuf/descriptor.h>

#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/status.h"
#include "scheduler/tokenizer/utf8.h"

namespace invar::scheduler {
namespace {

using google::protobuf::FieldDescriptor;
using google::protobuf::Message;

// The path of the first string that is not UTF-8, "chat.messages[0].content";
// empty if there is none. Looks at what a failed parse has left: strings are
// stored before they are checked.
std::string FindBadString(const Message& message) {
  const google::protobuf::Reflection& reflection = *message.GetReflection();
  std::vector<const FieldDescriptor*> fields;
  reflection.ListFields(message, &fields);
  for (const FieldDescriptor* field : fields) {
    const bool is_message =
        field->cpp_type() == FieldDescriptor::CPPTYPE_MESSAGE;
    if (field->is_map() ||
        (!is_message && field->type() != FieldDescriptor::TYPE_STRING)) {
      continue;
    }
    const int count =
        field->is_repeated() ? reflection.FieldSize(message, field) : 1;
    for (int i = 0; i < count; ++i) {
      const std::string name = field->is_repeated()
                                   ? absl::StrCat(field->name(), "[", i, "]")
                                   : field->name();
      if (is_message) {
        const std::string inner =
            FindBadString(field->is_repeated()
                              ? reflection.GetRepeatedMessage(message, field, i)
                              : reflection.GetMessage(message, field));
        if (!inner.empty()) return absl::StrCat(name, ".", inner);
        continue;
      }
      std::string scratch;
      const std::string& text =
          field->is_repeated()
              ? reflection.GetRepeatedStringReference(message, field, i,
                                                      &scratch)
              : reflection.GetStringReference(message, field, &scratch);
      if (FindInvalidUtf8(text).has_value()) return name;
    }
  }
  return "";
}

}  // namespace

grpc::Status ParseRequest(const grpc::ByteBuffer& bytes, Message* request) {
  grpc::Slice slice;
  if (grpc::Status status = bytes.DumpToSingleSlice(&slice); !status.ok()) {
    return status;
  }
  if (request->ParseFromArray(slice.begin(), static_cast<int>(slice.size()))) {
    return grpc::Status::OK;
  }
  if (const std::string path = FindBadString(*request); !path.empty()) {
    return BadField(path, "is not UTF-8; send text as UTF-8, or token ids");
  }
  return Error(absl::StatusCode::kInvalidArgument, "BAD_MESSAGE",
               absl::StrCat("the request's bytes are no ",
                            request->GetDescriptor()->full_name(),
                            "; make them with the proto of this version"));
}

grpc::ByteBuffer SerializeResponse(const Message& response) {
  const grpc::Slice slice(response.SerializeAsString());
  return grpc::ByteBuffer(&slice, 1);
}

}  // namespace invar::scheduler
