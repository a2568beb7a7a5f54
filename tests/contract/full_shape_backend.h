// DeepSeek-V2-Lite's full shape on the CUDA backend: fewer cells, since a step
// takes milliseconds and a model takes most of the GPU's memory.
#ifndef INVAR_TESTS_CONTRACT_FULL_SHAPE_BACKEND_H_
#define INVAR_TESTS_CONTRACT_FULL_SHAPE_BACKEND_H_

#include <string>

#include "tests/contract/backend.h"

namespace invar::contract {

// Of the checkpoints FOLDER/bf16 and FOLDER/fp8 (full_shape_checkpoint writes
// them). Variants share a model, so cells of one setting fit a process.
Backend FullShapeBackend(const std::string& folder);

}  // namespace invar::contract

#endif  // INVAR_TESTS_CONTRACT_FULL_SHAPE_BACKEND_H_
