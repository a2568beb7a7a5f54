#ifndef INVAR_SCHEDULER_TOKENIZER_STREAM_DECODER_H_
#define INVAR_SCHEDULER_TOKENIZER_STREAM_DECODER_H_

#include <cstdint>
#include <string>

#include "scheduler/tokenizer/tokenizer.h"
#include "scheduler/tokenizer/utf8.h"

namespace invar {

// Turns token ids into text as they arrive. The texts joined, Finish()
// included, equal Tokenizer::Decode of all the ids; none holds half a
// character. Borrows the tokenizer. One stream, one thread.
class StreamDecoder {
 public:
  StreamDecoder(const Tokenizer& tokenizer, bool skip_special_tokens)
      : tokenizer_(tokenizer), skip_special_tokens_(skip_special_tokens) {}

  // The text that `id` completes: empty while a character is unfinished, for
  // a skipped special token and for an id outside the vocabulary.
  std::string Append(int32_t id) {
    const bool silent = !tokenizer_.IsKnown(id) ||
                        (skip_special_tokens_ && tokenizer_.IsSpecial(id));
    return silent ? std::string() : stream_.Append(tokenizer_.TokenBytes(id));
  }

  // What no further id will complete: nothing, or one U+FFFD.
  std::string Finish() { return stream_.Finish(); }

 private:
  const Tokenizer& tokenizer_;
  bool skip_special_tokens_;
  Utf8Stream stream_;
};

}  // namespace invar

#endif  // INVAR_SCHEDULER_TOKENIZER_STREAM_DECODER_H_
