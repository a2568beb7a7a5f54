#include "worker/model/checkpoint/safetensors.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cerrno>
#include <cstring>
#include <nlohmann/json.hpp>
#include <optional>
#include <tuple>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace invar {
namespace {

using nlohmann::json;

static_assert(std::endian::native == std::endian::little,
              "safetensors are little endian, and are used in place");

constexpr uint64_t kLengthBytes = 8;
// The format's own limit on a header.
constexpr uint64_t kMaxHeaderBytes = 100'000'000;

struct DtypeRow {
  TensorDtype dtype;
  const char* name;
  int64_t bytes;
};
constexpr std::array<DtypeRow, 15> kDtypes = {{
    {TensorDtype::kBool, "BOOL", 1},
    {TensorDtype::kU8, "U8", 1},
    {TensorDtype::kI8, "I8", 1},
    {TensorDtype::kF8E5m2, "F8_E5M2", 1},
    {TensorDtype::kF8E4m3, "F8_E4M3", 1},
    {TensorDtype::kI16, "I16", 2},
    {TensorDtype::kU16, "U16", 2},
    {TensorDtype::kF16, "F16", 2},
    {TensorDtype::kBf16, "BF16", 2},
    {TensorDtype::kI32, "I32", 4},
    {TensorDtype::kU32, "U32", 4},
    {TensorDtype::kF32, "F32", 4},
    {TensorDtype::kI64, "I64", 8},
    {TensorDtype::kU64, "U64", 8},
    {TensorDtype::kF64, "F64", 8},
}};

const DtypeRow* FindDtype(std::string_view name) {
  const auto* row = std::find_if(
      kDtypes.begin(), kDtypes.end(),
      [name](const DtypeRow& candidate) { return name == candidate.name; });
  return row == kDtypes.end() ? nullptr : row;
}

const DtypeRow& Row(TensorDtype dtype) {
  return kDtypes[static_cast<size_t>(dtype)];
}

// An unsigned integer that an int64 holds.
std::optional<int64_t> Size(const json& value) {
  if (!value.is_number_unsigned()) return std::nullopt;
  const uint64_t size = value.get<uint64_t>();
  if (size > static_cast<uint64_t>(INT64_MAX)) return std::nullopt;
  return static_cast<int64_t>(size);
}

// A tensor from its header entry; an error says what is wrong with it.
absl::StatusOr<Tensor> ParseTensor(const json& entry, std::string_view data) {
  if (!entry.is_object() || entry.size() != 3 || !entry.contains("dtype") ||
      !entry.contains("shape") || !entry.contains("data_offsets")) {
    return absl::InvalidArgumentError(
        "is not an object of dtype, shape and data_offsets");
  }
  const json& dtype = entry["dtype"];
  const DtypeRow* row = dtype.is_string()
                            ? FindDtype(dtype.get_ref<const std::string&>())
                            : nullptr;
  if (row == nullptr) {
    return absl::InvalidArgumentError(
        absl::StrCat("has the unknown dtype ", dtype.dump()));
  }
  Tensor tensor{row->dtype, {}, {}};
  int64_t bytes = row->bytes;
  if (!entry["shape"].is_array()) {
    return absl::InvalidArgumentError("has a shape that is not a list");
  }
  for (const json& dimension : entry["shape"]) {
    const std::optional<int64_t> size = Size(dimension);
    if (!size.has_value() || __builtin_mul_overflow(bytes, *size, &bytes)) {
      return absl::InvalidArgumentError(
          absl::StrCat("has the impossible shape ", entry["shape"].dump()));
    }
    tensor.shape.push_back(*size);
  }
  const json& offsets = entry["data_offsets"];
  const bool pair = offsets.is_array() && offsets.size() == 2;
  const std::optional<int64_t> begin = pair ? Size(offsets[0]) : std::nullopt;
  const std::optional<int64_t> end = pair ? Size(offsets[1]) : std::nullopt;
  if (!begin.has_value() || !end.has_value() || *begin > *end ||
      static_cast<uint64_t>(*end) > data.size()) {
    return absl::InvalidArgumentError(
        absl::StrCat("has data_offsets ", offsets.dump(),
                     " outside the file's ", data.size(), " bytes of data"));
  }
  if (*end - *begin != bytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("has ", *end - *begin, " bytes of data, but ", row->name,
                     " ", ShapeString(tensor.shape), " takes ", bytes));
  }
  tensor.bytes = data.substr(*begin, bytes);
  return tensor;
}

}  // namespace

const char* TensorDtypeName(TensorDtype dtype) { return Row(dtype).name; }

int64_t TensorElementBytes(TensorDtype dtype) { return Row(dtype).bytes; }

std::string ShapeString(const std::vector<int64_t>& shape) {
  return absl::StrCat("[", absl::StrJoin(shape, ", "), "]");
}

absl::StatusOr<std::unique_ptr<SafetensorsFile>> SafetensorsFile::Open(
    const std::string& path) {
  const int descriptor = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (descriptor < 0) {
    return absl::ErrnoToStatus(errno, absl::StrCat("cannot open ", path));
  }
  struct stat status;
  const bool regular =
      fstat(descriptor, &status) == 0 && S_ISREG(status.st_mode);
  const size_t size = regular ? static_cast<size_t>(status.st_size) : 0;
  if (size < kLengthBytes) {
    close(descriptor);
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": is no safetensors file, it has ", size,
                     " bytes; download it again"));
  }
  void* mapping = mmap(nullptr, size, PROT_READ, MAP_PRIVATE, descriptor, 0);
  const int error = errno;
  close(descriptor);
  if (mapping == MAP_FAILED) {
    return absl::ErrnoToStatus(error, absl::StrCat("cannot map ", path));
  }
  std::unique_ptr<SafetensorsFile> file(
      new SafetensorsFile(path, {static_cast<const char*>(mapping), size}));
  if (absl::Status read = file->ReadHeader(); !read.ok()) return read;
  return file;
}

SafetensorsFile::~SafetensorsFile() {
  munmap(const_cast<char*>(mapping_.data()), mapping_.size());
}

absl::Status SafetensorsFile::ReadHeader() {
  uint64_t header_bytes;
  std::memcpy(&header_bytes, mapping_.data(), kLengthBytes);
  if (header_bytes > kMaxHeaderBytes ||
      header_bytes > mapping_.size() - kLengthBytes) {
    return absl::InvalidArgumentError(absl::StrCat(
        path_, ": its header claims ", header_bytes, " bytes of a file of ",
        mapping_.size(), "; the file is cut short or no safetensors file"));
  }
  const std::string_view text = mapping_.substr(kLengthBytes, header_bytes);
  const std::string_view data = mapping_.substr(kLengthBytes + header_bytes);
  const json header = json::parse(text.begin(), text.end(), nullptr,
                                  /*allow_exceptions=*/false);
  if (!header.is_object()) {
    return absl::InvalidArgumentError(
        absl::StrCat(path_, ": its header is not a JSON object"));
  }
  for (const auto& [name, entry] : header.items()) {
    if (name == "__metadata__") continue;
    absl::StatusOr<Tensor> tensor = ParseTensor(entry, data);
    if (!tensor.ok()) {
      return absl::InvalidArgumentError(absl::StrCat(
          path_, ": tensor ", name, " ", tensor.status().message()));
    }
    tensors_.emplace(name, *std::move(tensor));
  }
  return CheckLayout(data);
}

absl::Status SafetensorsFile::CheckLayout(std::string_view data) const {
  // (first byte, byte past the last, name)
  std::vector<std::tuple<int64_t, int64_t, std::string>> order;
  for (const auto& [name, tensor] : tensors_) {
    const int64_t begin = tensor.bytes.data() - data.data();
    order.emplace_back(begin, begin + tensor.bytes.size(), name);
  }
  std::sort(order.begin(), order.end());
  int64_t expected = 0;
  for (const auto& [begin, end, name] : order) {
    if (begin != expected) {
      return absl::InvalidArgumentError(absl::StrCat(
          path_, ": tensor ", name, " begins at byte ", begin, " of the data, ",
          begin < expected ? "inside the one before"
                           : "after a gap that no tensor owns"));
    }
    expected = end;
  }
  const int64_t size = static_cast<int64_t>(data.size());
  if (expected != size) {
    return absl::InvalidArgumentError(absl::StrCat(
        path_, ": ", size - expected, " bytes at the end belong to no tensor"));
  }
  return absl::OkStatus();
}

}  // namespace invar
