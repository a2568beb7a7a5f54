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
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "worker/model/checkpoint/file_reader.h"

namespace invar {

// Bytes of the header's length, before the header.
inline constexpr int64_t kSafetensorsPrefix = 8;

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
  // Where its bytes are in the file; the file has them all.
  int64_t offset = 0;
  int64_t bytes = 0;
};

// Visible ASCII, at most 256 characters: what can stand in a message.
bool IsPlainName(std::string_view name);

// "[4, 16]"
std::string ShapeString(const std::vector<int64_t>& shape);

class SafetensorsFile {
 public:
  using Tensors = std::map<std::string, Tensor, std::less<>>;

  // Reads and checks the header alone. NOT_FOUND or INVALID_ARGUMENT, naming
  // file and tensor.
  static absl::StatusOr<std::unique_ptr<SafetensorsFile>> Open(
      const std::string& path);

  // The tensors of a header's text, which begins at byte kSafetensorsPrefix of
  // a file of `file_bytes`. `path` is for messages.
  static absl::StatusOr<Tensors> ParseHeader(std::string_view header,
                                             int64_t file_bytes,
                                             const std::string& path);

  const std::string& path() const { return reader_->path(); }
  const FileReader& reader() const { return *reader_; }
  const Tensors& tensors() const { return tensors_; }
  // SHA-256 (hex) of all that stands before the data.
  const std::string& header_digest() const { return header_digest_; }

  absl::StatusOr<std::string> ReadTensor(const Tensor& tensor) const;

 private:
  explicit SafetensorsFile(std::unique_ptr<FileReader> reader)
      : reader_(std::move(reader)) {}

  absl::Status ReadHeader();

  std::unique_ptr<FileReader> reader_;
  std::string header_digest_;
  Tensors tensors_;
};

}  // namespace invar

#endif  // INVAR_WORKER_MODEL_CHECKPOINT_SAFETENSORS_H_
