#include "scheduler/tokenizer/regex.h"

#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "scheduler/tokenizer/oniguruma_pattern.h"

namespace invar {
namespace {

constexpr uint32_t kMatchSteps = 10'000'000;
constexpr uint32_t kHeapKibibytes = 64 * 1024;
constexpr size_t kJitStackBytesMin = 32 * 1024;
constexpr size_t kJitStackBytesMax = 1024 * 1024;

std::string Describe(int error) {
  PCRE2_UCHAR buffer[256] = {};
  pcre2_get_error_message(error, buffer, sizeof buffer);
  return reinterpret_cast<const char*>(buffer);
}

}  // namespace

RegexScratch::RegexScratch()
    : match_(pcre2_match_data_create(1, nullptr)),
      context_(pcre2_match_context_create(nullptr)),
      jit_stack_(pcre2_jit_stack_create(kJitStackBytesMin, kJitStackBytesMax,
                                        nullptr)) {
  pcre2_set_match_limit(context_.get(), kMatchSteps);
  pcre2_set_heap_limit(context_.get(), kHeapKibibytes);
  pcre2_jit_stack_assign(context_.get(), nullptr, jit_stack_.get());
}

absl::StatusOr<Regex> Regex::Compile(absl::string_view oniguruma_pattern) {
  absl::StatusOr<std::string> pattern =
      TranslateOnigurumaPattern(oniguruma_pattern);
  if (!pattern.ok()) return pattern.status();
  const std::unique_ptr<pcre2_compile_context,
                        decltype(&pcre2_compile_context_free)>
      context(pcre2_compile_context_create(nullptr),
              &pcre2_compile_context_free);
  pcre2_set_newline(context.get(), PCRE2_NEWLINE_LF);
  int error = 0;
  PCRE2_SIZE offset = 0;
  Regex regex;
  regex.code_.reset(pcre2_compile(
      reinterpret_cast<PCRE2_SPTR>(pattern->data()), pattern->size(),
      PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C, &error,
      &offset, context.get()));
  if (regex.code_ == nullptr) {
    return absl::InvalidArgumentError(
        absl::StrCat("PCRE2 cannot compile it: ", Describe(error)));
  }
  // Where there is no JIT, matching interprets: slower, the same matches.
  pcre2_jit_compile(regex.code_.get(), PCRE2_JIT_COMPLETE);
  return regex;
}

absl::StatusOr<std::optional<Span>> Regex::Find(absl::string_view text,
                                                size_t start,
                                                RegexScratch* scratch) const {
  const auto match = [&](uint32_t options) {
    return pcre2_match(code_.get(), reinterpret_cast<PCRE2_SPTR>(text.data()),
                       text.size(), start, PCRE2_NO_UTF_CHECK | options,
                       scratch->match_.get(), scratch->context_.get());
  };
  int result = match(0);
  // The interpreter keeps its backtracking points on the heap instead.
  if (result == PCRE2_ERROR_JIT_STACKLIMIT) result = match(PCRE2_NO_JIT);
  if (result == PCRE2_ERROR_NOMATCH) return std::nullopt;
  if (result < 0) {
    return absl::ResourceExhaustedError(
        absl::StrCat("the pre-tokenizer's pattern gave up at byte ", start,
                     " of a piece of ", text.size(), ": ", Describe(result)));
  }
  const PCRE2_SIZE* const ends =
      pcre2_get_ovector_pointer(scratch->match_.get());
  return Span{ends[0], ends[1]};
}

}  // namespace invar
