#include "scheduler/tokenizer/chat_format.h"

#include "absl/status/status.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "scheduler/tokenizer/utf8.h"

namespace invar {
namespace {

absl::Status CheckMessage(size_t index, const ChatMessage& message) {
  const std::string field = absl::StrCat("chat.messages[", index, "]");
  if (message.role != "system" && message.role != "user" &&
      message.role != "assistant") {
    return absl::InvalidArgumentError(absl::StrCat(
        field, ".role: \"", absl::CHexEscape(message.role.substr(0, 64)),
        "\" is not one of system, user, assistant"));
  }
  if (const std::optional<size_t> bad = FindInvalidUtf8(message.content)) {
    return absl::InvalidArgumentError(
        absl::StrCat(field, ".content: is not valid UTF-8 at byte ", *bad));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::vector<int32_t>> EncodeChat(
    const Tokenizer& tokenizer, std::span<const ChatMessage> messages,
    bool add_generation_prompt) {
  if (messages.empty()) {
    return absl::InvalidArgumentError(
        "chat.messages: is empty; a chat needs at least one message");
  }
  if (!tokenizer.bos_id().has_value() || !tokenizer.eos_id().has_value()) {
    return absl::FailedPreconditionError(
        "the model's tokenizer_config.json names no BOS or no EOS token, which "
        "its chat format needs; send text or token ids instead");
  }
  std::vector<int32_t> ids = {*tokenizer.bos_id()};
  std::string text;  // since the last special token
  const auto flush = [&]() -> absl::Status {
    const absl::StatusOr<std::vector<int32_t>> encoded = tokenizer.Encode(text);
    if (!encoded.ok()) {
      return absl::Status(
          encoded.status().code(),
          absl::StrCat("chat.messages: ", encoded.status().message()));
    }
    ids.insert(ids.end(), encoded->begin(), encoded->end());
    text.clear();
    return absl::OkStatus();
  };
  for (size_t i = 0; i < messages.size(); ++i) {
    const auto& [role, content] = messages[i];
    if (absl::Status status = CheckMessage(i, messages[i]); !status.ok()) {
      return status;
    }
    if (role == "system") {
      absl::StrAppend(&text, content, "\n\n");
    } else if (role == "user") {
      absl::StrAppend(&text, "User: ", content, "\n\n");
    } else {
      absl::StrAppend(&text, "Assistant: ", content);
      if (absl::Status status = flush(); !status.ok()) return status;
      ids.push_back(*tokenizer.eos_id());
    }
  }
  if (add_generation_prompt) text += "Assistant:";
  if (absl::Status status = flush(); !status.ok()) return status;
  return ids;
}

}  // namespace invar
