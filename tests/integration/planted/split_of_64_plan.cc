// The plan, which says the split of 64 tokens.
#include "tests/integration/planted/split_of_64.h"
// The product's, below the constant that it shall take.
#include "worker/model/deepseek_v2_plan.cc"
