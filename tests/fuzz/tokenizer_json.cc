// A checkpoint's tokenizer.json; what loads must tokenize.
#include <cstdint>
#include <string>
#include <vector>

#include "scheduler/tokenizer/stream_decoder.h"
#include "scheduler/tokenizer/tokenizer.h"
#include "tests/fuzz/check.h"

int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using invar::Check;
  const auto tokenizer =
      invar::Tokenizer::Parse(invar::Text(data, size), "{}", "model");
  if (!tokenizer.ok()) {
    const auto code = tokenizer.status().code();
    Check(code == absl::StatusCode::kInvalidArgument ||
              code == absl::StatusCode::kUnimplemented,
          "a file is damaged or of another kind");
    Check(tokenizer.status().message().substr(0, 6) == "model/",
          "a refusal names the file");
    return 0;
  }
  for (const absl::string_view text :
       {"",
        "hello <eos> 12,345.6\r\n\n  x \xC3\xA9\xE4\xB8\x80\xF0\x9F\x98\x80",
        "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa      'll\t<tool>"}) {
    for (const bool parse_special : {false, true}) {
      const auto ids = (*tokenizer)->Encode(text, {parse_special});
      if (!ids.ok()) {
        Check(ids.status().code() == absl::StatusCode::kResourceExhausted,
              "valid text fails only where a pattern gives up");
        continue;
      }
      const auto decoded = (*tokenizer)->Decode(*ids, parse_special);
      Check(decoded.ok(), "what was encoded can be decoded");
      invar::StreamDecoder stream(**tokenizer, parse_special);
      std::string streamed;
      for (const int32_t id : *ids) streamed += stream.Append(id);
      Check(streamed + stream.Finish() == *decoded,
            "streamed text equals decoded text");
    }
  }
  return 0;
}
