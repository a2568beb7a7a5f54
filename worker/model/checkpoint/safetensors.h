// A safetensors file, checked before a byte of it is used.
//
// Layout: header length (8 bytes, little endian), header (JSON: name ->
// {dtype, shape, data_offsets}), data. The data is exactly the tensors, back to
// back: what overlaps, leaves a gap or runs past the end is refused.
#ifndef INVAR_WORKER_MODEL_CHECKPOINT_SAFETENSORS_H_
#define INVAR_WORKER_MODEL_CHECKPOINT_SAFETENSORS_H_

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace invar {

enum class TensorDtype {
  kBool,
  kU8,
  kI8,
  kF8E5m2,
  kF8E4m3,
  kI16,
  kU16,
  kF16,
  kBf16,
  kI32,
  kU32,
  kF32,
  kI64,
  kU64,
  kF64,
};

// As the format writes it: "F8_E4M3".
const char* TensorDtypeName(TensorDtype dtype);
int64_t TensorElementBytes(TensorDtype dtype);

struct Tensor {
  TensorDtype dtype;
  std::vector<int64_t> shape;
  // In the file's mapping: valid while the file is.
  std::string_view bytes;
};

// "[4, 16]"
std::string ShapeString(const std::vector<int64_t>& shape);

class SafetensorsFile {
 public:
  // NOT_FOUND or INVALID_ARGUMENT, naming file and tensor.
  static absl::StatusOr<std::unique_ptr<SafetensorsFile>> Open(
      const std::string& path);
  ~SafetensorsFile();
  SafetensorsFile(const SafetensorsFile&) = delete;
  SafetensorsFile& operator=(const SafetensorsFile&) = delete;

  const std::string& path() const { return path_; }
  const std::map<std::string, Tensor, std::less<>>& tensors() const {
    return tensors_;
  }

 private:
  SafetensorsFile(std::string path, std::string_view mapping)
      : path_(std::move(path)), mapping_(mapping) {}

  absl::Status ReadHeader();
  absl::Status CheckLayout(std::string_view data) const;

  std::string path_;
  std::string_view mapping_;
  std::map<std::string, Tensor, std::less<>> tensors_;
};

}  // namespace invar

#endif  // INVAR_WORKER_MODEL_CHECKPOINT_SAFETENSORS_H_
