// The command over the matrix: which cells run, and what is printed.
#ifndef INVAR_TESTS_CONTRACT_MATRIX_H_
#define INVAR_TESTS_CONTRACT_MATRIX_H_

#include <string>
#include <vector>

#include "tests/contract/backend.h"

namespace invar::contract {

// `program` is how a person starts it. Returns the exit code: 0 if all bits
// were equal, 1 if one was not, 2 for a wrong argument.
int MatrixMain(const Backend& backend, const std::string& program,
               const std::vector<std::string>& arguments);

}  // namespace invar::contract

#endif  // INVAR_TESTS_CONTRACT_MATRIX_H_
