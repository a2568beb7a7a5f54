#include "worker/model/checkpoint/safetensors.h"

#include <algorithm>
#include <array>
#include <bit>
#include <nlohmann/json.hpp>
#include <optional>
#include <tuple>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/digest.h"
#include "common/json_text.h"

namespace invar {
namespace {

using nlohmann::json;

static_assert(std::endian::native == std::endian::little,
              "safetensors are little endian, and are used in place");

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

// What a header says, in a message: never longer than a line or two.
std::string Shown(const json& value) {
  constexpr size_t kMostBytes = 200;
  std::string text = value.dump();
  if (text.size() > kMostBytes) text.replace(kMostBytes, text.npos, "...");
  return text;
}

// An unsigned integer that an int64 holds.
std::optional<int64_t> Size(const json& value) {
  if (!value.is_number_unsigned()) return std::nullopt;
  const uint64_t size = value.get<uint64_t>();
  if (size > static_cast<uint64_t>(INT64_MAX)) return std::nullopt;
  return static_cast<int64_t>(size);
}

// A tensor from its header entry; an error says what is wrong with it.
// The data begins at byte `data_begin` of the file and has `data_bytes`.
absl::StatusOr<Tensor> ParseTensor(const json& entry, int64_t data_begin,
                                   int64_t data_bytes) {
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
        absl::StrCat("has the unknown dtype ", Shown(dtype)));
  }
  Tensor tensor{row->dtype, {}};
  int64_t bytes = row->bytes;
  if (!entry["shape"].is_array()) {
    return absl::InvalidArgumentError("has a shape that is not a list");
  }
  for (const json& dimension : entry["shape"]) {
    const std::optional<int64_t> size = Size(dimension);
    if (!size.has_value() || __builtin_mul_overflow(bytes, *size, &bytes)) {
      return absl::InvalidArgumentError(
          absl::StrCat("has the impossible shape ", Shown(entry["shape"])));
    }
    tensor.shape.push_back(*size);
  }
  const json& offsets = entry["data_offsets"];
  const bool pair = offsets.is_array() && offsets.size() == 2;
  const std::optional<int64_t> begin = pair ? Size(offsets[0]) : std::nullopt;
  const std::optional<int64_t> end = pair ? Size(offsets[1]) : std::nullopt;
  if (!begin.has_value() || !end.has_value() || *begin > *end ||
      *end > data_bytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("has data_offsets ", Shown(offsets),
                     " outside the file's ", data_bytes, " bytes of data"));
  }
  if (*end - *begin != bytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("has ", *end - *begin, " bytes of data, but ", row->name,
                     " ", ShapeString(tensor.shape), " takes ", bytes));
  }
  tensor.offset = data_begin + *begin;
  tensor.bytes = bytes;
  return tensor;
}

// Refuses what overlaps, leaves a gap or leaves a rest.
absl::Status CheckLayout(const SafetensorsFile::Tensors& tensors,
                         int64_t data_begin, int64_t file_bytes,
                         const std::string& path) {
  // (first byte, byte past the last, name)
  std::vector<std::tuple<int64_t, int64_t, std::string>> order;
  for (const auto& [name, tensor] : tensors) {
    order.emplace_back(tensor.offset, tensor.offset + tensor.bytes, name);
  }
  std::sort(order.begin(), order.end());
  int64_t expected = data_begin;
  for (const auto& [begin, end, name] : order) {
    if (begin != expected) {
      return absl::InvalidArgumentError(
          absl::StrCat(path, ": tensor ", name, " begins at byte ",
                       begin - data_begin, " of the data, ",
                       begin < expected ? "inside the one before"
                                        : "after a gap that no tensor owns"));
    }
    expected = end;
  }
  if (expected != file_bytes) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": ", file_bytes - expected,
                     " bytes at the end belong to no tensor"));
  }
  return absl::OkStatus();
}

}  // namespace

const char* TensorDtypeName(TensorDtype dtype) { return Row(dtype).name; }

int64_t TensorElementBytes(TensorDtype dtype) { return Row(dtype).bytes; }

std::string ShapeString(const std::vector<int64_t>& shape) {
  return absl::StrCat("[", absl::StrJoin(shape, ", "), "]");
}

bool IsPlainName(std::string_view name) {
  constexpr size_t kMostBytes = 256;
  return !name.empty() && name.size() <= kMostBytes &&
         std::all_of(name.begin(), name.end(), absl::ascii_isgraph);
}

absl::StatusOr<std::unique_ptr<SafetensorsFile>> SafetensorsFile::Open(
    const std::string& path) {
  absl::StatusOr<std::unique_ptr<FileReader>> reader = FileReader::Open(path);
  if (!reader.ok()) return reader.status();
  std::unique_ptr<SafetensorsFile> file(
      new SafetensorsFile(*std::move(reader)));
  if (absl::Status read = file->ReadHeader(); !read.ok()) return read;
  return file;
}

absl::Status SafetensorsFile::ReadHeader() {
  const int64_t file_bytes = reader_->bytes();
  if (file_bytes < kSafetensorsPrefix) {
    return absl::InvalidArgumentError(
        absl::StrCat(path(), ": is no safetensors file, it has ", file_bytes,
                     " bytes; download it again"));
  }
  uint64_t header_bytes;
  absl::Status read = reader_->Read(0, kSafetensorsPrefix,
                                    reinterpret_cast<char*>(&header_bytes));
  if (!read.ok()) return read;
  if (header_bytes > kMaxHeaderBytes ||
      header_bytes > static_cast<uint64_t>(file_bytes - kSafetensorsPrefix)) {
    return absl::InvalidArgumentError(absl::StrCat(
        path(), ": its header claims ", header_bytes, " bytes of a file of ",
        file_bytes, "; the file is cut short or no safetensors file"));
  }
  std::string begin(kSafetensorsPrefix + header_bytes, '\0');
  read = reader_->Read(0, static_cast<int64_t>(begin.size()), begin.data());
  if (!read.ok()) return read;
  header_digest_ = Sha256Hex(begin);
  absl::StatusOr<Tensors> tensors = ParseHeader(
      std::string_view(begin).substr(kSafetensorsPrefix), file_bytes, path());
  if (!tensors.ok()) return tensors.status();
  tensors_ = *std::move(tensors);
  return absl::OkStatus();
}

absl::StatusOr<SafetensorsFile::Tensors> SafetensorsFile::ParseHeader(
    std::string_view text, int64_t file_bytes, const std::string& path) {
  const int64_t data_begin =
      kSafetensorsPrefix + static_cast<int64_t>(text.size());
  const absl::StatusOr<json> parsed =
      ParseJson({text.data(), text.size()}, absl::StrCat(path, ": its header"));
  if (!parsed.ok()) return parsed.status();
  const json& header = *parsed;
  if (!header.is_object()) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": its header is not a JSON object"));
  }
  Tensors tensors;
  for (const auto& [name, entry] : header.items()) {
    if (name == "__metadata__") continue;
    if (!IsPlainName(name)) {
      return absl::InvalidArgumentError(
          absl::StrCat(path, ": a tensor is named ", Shown(name),
                       ", which no checkpoint's is"));
    }
    absl::StatusOr<Tensor> tensor =
        ParseTensor(entry, data_begin, file_bytes - data_begin);
    if (!tensor.ok()) {
      return absl::InvalidArgumentError(absl::StrCat(
          path, ": tensor ", name, " ", tensor.status().message()));
    }
    tensors.emplace(name, *std::move(tensor));
  }
  absl::Status layout = CheckLayout(tensors, data_begin, file_bytes, path);
  if (!layout.ok()) return layout;
  return tensors;
}

absl::StatusOr<std::string> SafetensorsFile::ReadTensor(
    const Tensor& tensor) const {
  std::string bytes(tensor.bytes, '\0');
  absl::Status read = reader_->Read(tensor.offset, tensor.bytes, bytes.data());
  if (!read.ok()) return read;
  return bytes;
}

}  // namespace invar
