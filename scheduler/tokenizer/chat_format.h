#ifndef INVAR_SCHEDULER_TOKENIZER_CHAT_FORMAT_H_
#define INVAR_SCHEDULER_TOKENIZER_CHAT_FORMAT_H_

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "scheduler/tokenizer/tokenizer.h"

namespace invar {

struct ChatMessage {
  std::string role;  // "system", "user" or "assistant"
  std::string content;
};

// The token ids of a conversation in DeepSeek-V2's format:
//
//   BOS  then for each message
//          system      "{content}\n\n"
//          user        "User: {content}\n\n"
//          assistant   "Assistant: {content}" EOS
//        and, to let the model speak, "Assistant:" without a space after it.
//
// Text between two special tokens is tokenized as one. Content is never read
// as a special token. An error is INVALID_ARGUMENT, "FIELD: what is wrong",
// where FIELD is "chat.messages" or below, or FAILED_PRECONDITION for a
// tokenizer without the special tokens that the format needs.
absl::StatusOr<std::vector<int32_t>> EncodeChat(
    const Tokenizer& tokenizer, std::span<const ChatMessage> messages,
    bool add_generation_prompt = true);

}  // namespace invar

#endif  // INVAR_SCHEDULER_TOKENIZER_CHAT_FORMAT_H_
