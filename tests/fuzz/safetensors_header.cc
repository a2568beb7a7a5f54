// A safetensors file, whole; then its header alone, in a file that ends where
// the input does, so that a mutation need not keep the length in step.
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "tests/fuzz/check.h"
#include "worker/model/checkpoint/safetensors.h"

namespace invar {
namespace {

// The tensors own every byte after the header once.
void CheckTensors(const SafetensorsFile::Tensors& tensors, int64_t file_bytes) {
  std::vector<std::pair<int64_t, int64_t>> spans;
  int64_t bytes = 0;
  for (const auto& [name, tensor] : tensors) {
    int64_t elements = 1;
    for (const int64_t size : tensor.shape) elements *= size;
    Check(elements * TensorElementBytes(tensor.dtype) == tensor.bytes,
          "a tensor has the bytes of its shape");
    spans.emplace_back(tensor.offset, tensor.offset + tensor.bytes);
    bytes += tensor.bytes;
  }
  std::sort(spans.begin(), spans.end());
  int64_t end = file_bytes - bytes;
  Check(end >= kSafetensorsPrefix, "data begins after the header's length");
  for (const auto& [begin, next] : spans) {
    Check(begin == end, "tensors lie back to back");
    end = next;
  }
  Check(end == file_bytes, "tensors end with the file");
}

void OpenWhole(absl::string_view input) {
  const int descriptor = memfd_create("fuzz", MFD_CLOEXEC);
  Check(descriptor >= 0 && write(descriptor, input.data(), input.size()) ==
                               static_cast<ssize_t>(input.size()),
        "the input can be written");
  const auto file =
      SafetensorsFile::Open(absl::StrCat("/proc/self/fd/", descriptor));
  close(descriptor);
  if (!file.ok()) return;
  CheckTensors((*file)->tensors(), static_cast<int64_t>(input.size()));
  for (const auto& [name, tensor] : (*file)->tensors()) {
    Check((*file)->ReadTensor(tensor).ok(), "a checked tensor can be read");
  }
}

}  // namespace
}  // namespace invar

int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const absl::string_view input = invar::Text(data, size);
  invar::OpenWhole(input);
  const size_t prefix = invar::kSafetensorsPrefix;
  const size_t close = input.rfind('}');
  if (close == input.npos || close < prefix) return 0;
  const absl::string_view header = input.substr(prefix, close + 1 - prefix);
  const auto tensors = invar::SafetensorsFile::ParseHeader(
      {header.data(), header.size()}, static_cast<int64_t>(size), "fuzz");
  if (tensors.ok()) {
    invar::CheckTensors(*tensors, static_cast<int64_t>(size));
  }
  return 0;
}
