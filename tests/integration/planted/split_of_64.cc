// The attention, with its split of 64 tokens.
#include "tests/integration/planted/split_of_64.h"
// The product's, below the constant that it shall take.
#include "kernels/cpu/mla_attention.cc"
