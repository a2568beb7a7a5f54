// Reading tests/goldens.
#ifndef INVAR_WORKER_MODEL_TESTING_GOLDEN_H_
#define INVAR_WORKER_MODEL_TESTING_GOLDEN_H_

#include <cstring>
#include <string>
#include <vector>

#include "worker/model/checkpoint/safetensors.h"

namespace invar::testing {

// The tensor `name`, which the file must have, as elements of T.
template <typename T>
std::vector<T> Values(const SafetensorsFile& file, const std::string& name) {
  const std::string bytes = file.ReadTensor(file.tensors().at(name)).value();
  std::vector<T> values(bytes.size() / sizeof(T));
  std::memcpy(values.data(), bytes.data(), bytes.size());
  return values;
}

}  // namespace invar::testing

#endif  // INVAR_WORKER_MODEL_TESTING_GOLDEN_H_
