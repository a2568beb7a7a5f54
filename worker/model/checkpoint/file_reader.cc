#include "worker/model/checkpoint/file_reader.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"

namespace invar {

absl::StatusOr<std::unique_ptr<FileReader>> FileReader::Open(
    const std::string& path) {
  const int descriptor = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (descriptor < 0) {
    return absl::ErrnoToStatus(errno, absl::StrCat("cannot open ", path));
  }
  return std::unique_ptr<FileReader>(new FileReader(path, descriptor));
}

FileReader::FileReader(std::string path, int descriptor)
    : path_(std::move(path)), descriptor_(descriptor) {
  struct stat status;
  if (fstat(descriptor_, &status) != 0 || !S_ISREG(status.st_mode)) return;
  bytes_ = status.st_size;
  direct_ = open(path_.c_str(), O_RDONLY | O_CLOEXEC | O_DIRECT);
  if (direct_ < 0) return;
  // What is small is read through the cache, and has no large neighbours there.
  posix_fadvise(descriptor_, 0, 0, POSIX_FADV_RANDOM);
  // To others mincore(2) says that every page is there.
  const bool told = geteuid() == 0 || status.st_uid == geteuid() ||
                    access(path_.c_str(), W_OK) == 0;
  if (!told || bytes_ == 0) return;
  pages_ = mmap(nullptr, bytes_, PROT_NONE, MAP_SHARED, descriptor_, 0);
  if (pages_ == MAP_FAILED) pages_ = nullptr;
}

FileReader::~FileReader() {
  if (pages_ != nullptr) munmap(pages_, bytes_);
  if (direct_ >= 0) close(direct_);
  close(descriptor_);
}

bool FileReader::Cached(int64_t offset, int64_t size) const {
  if (pages_ == nullptr || size > bytes_ || offset > bytes_ - size) {
    return false;
  }
  const int64_t page = sysconf(_SC_PAGESIZE);
  const int64_t begin = offset / page * page;
  std::vector<unsigned char> there((offset + size - begin + page - 1) / page);
  return mincore(static_cast<char*>(pages_) + begin, offset + size - begin,
                 there.data()) == 0 &&
         std::all_of(there.begin(), there.end(),
                     [](unsigned char flags) { return (flags & 1) != 0; });
}

absl::Status FileReader::Read(int64_t offset, int64_t size, char* out) const {
  while (size > 0) {
    const ssize_t got = pread(descriptor_, out, size, offset);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) {
      return absl::ErrnoToStatus(errno, absl::StrCat("cannot read ", path_));
    }
    if (got == 0) {
      return absl::InvalidArgumentError(
          absl::StrCat(path_, ": became shorter while it was read"));
    }
    out += got;
    offset += got;
    size -= got;
  }
  return absl::OkStatus();
}

absl::Status FileReader::ReadBlocks(int64_t offset, int64_t size,
                                    char* out) const {
  if (direct_ < 0 || Cached(offset, size)) return Read(offset, size, out);
  const int64_t before = offset % kBlockBytes;
  const int64_t whole =
      (before + size + kBlockBytes - 1) / kBlockBytes * kBlockBytes;
  const ssize_t got = pread(direct_, out - before, whole, offset - before);
  // What it did not read, as at a file's end, or where the file system has
  // other blocks, the other way reads or says why it cannot.
  const int64_t done = std::clamp<int64_t>(got - before, 0, size);
  return Read(offset + done, size - done, out + done);
}

void FileReader::WillNeed(int64_t offset, int64_t size) const {
  if (direct_ >= 0) return;
  posix_fadvise(descriptor_, offset, size, POSIX_FADV_WILLNEED);
}

}  // namespace invar
