#ifndef INVAR_WORKER_MODEL_CHECKPOINT_MODULE_PATTERN_H_
#define INVAR_WORKER_MODEL_CHECKPOINT_MODULE_PATTERN_H_

#include <string_view>

namespace invar {

// Patterns of module names in `ignore` lists, "re:.*mlp.gate$": the part of
// regular expressions that such lists are written in. Literal characters, '.',
// '\.', '\d', each with '*' or '+' behind it or not, '^' in front and '$' at
// the end. Anchored at the name's begin, not at its end. Linear in the name.

// Whether `pattern`, without its "re:", is of that part.
bool IsModulePattern(std::string_view pattern);

// Whether it matches; false if it is not of that part.
bool ModulePatternMatches(std::string_view pattern, std::string_view name);

}  // namespace invar

#endif  // INVAR_WORKER_MODEL_CHECKPOINT_MODULE_PATTERN_H_
