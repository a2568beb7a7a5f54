#ifndef INVAR_TESTS_FUZZ_CHECK_H_
#define INVAR_TESTS_FUZZ_CHECK_H_

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>

#include "absl/strings/string_view.h"

// What libFuzzer, or replay.cc, calls with each input.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

namespace invar {

// A property that must hold for every input: libFuzzer keeps the input that
// breaks it.
inline void Check(bool holds, const char* property) {
  if (holds) return;
  std::fprintf(stderr, "does not hold: %s\n", property);
  std::abort();
}

inline absl::string_view Text(const uint8_t* data, size_t size) {
  return {reinterpret_cast<const char*>(data), size};
}

}  // namespace invar

#endif  // INVAR_TESTS_FUZZ_CHECK_H_
