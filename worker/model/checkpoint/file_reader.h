#ifndef INVAR_WORKER_MODEL_CHECKPOINT_FILE_READER_H_
#define INVAR_WORKER_MODEL_CHECKPOINT_FILE_READER_H_

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace invar {

// A file of weights. What the page cache has of it comes from there; the rest
// of a large read goes from the storage to its place in memory past the cache
// (O_DIRECT): that saves a copy, and a page of cache for each page of weights.
class FileReader {
 public:
  // Where reads past the cache begin and end, in the file and in memory.
  static constexpr int64_t kBlockBytes = 4096;

  static absl::StatusOr<std::unique_ptr<FileReader>> Open(
      const std::string& path);
  ~FileReader();
  FileReader(const FileReader&) = delete;
  FileReader& operator=(const FileReader&) = delete;

  const std::string& path() const { return path_; }
  int64_t bytes() const { return bytes_; }  // 0: no regular file

  // Bytes [offset, offset + size). INVALID_ARGUMENT if the file has become
  // shorter. Thread-safe, as all that follows.
  absl::Status Read(int64_t offset, int64_t size, char* out) const;

  // The same where `out` lies in its block as `offset` does in the file's.
  // The rests of the first and last block are overwritten.
  absl::Status ReadBlocks(int64_t offset, int64_t size, char* out) const;

  // Has the storage begin to read them, if that is of use; only advice.
  void WillNeed(int64_t offset, int64_t size) const;

 private:
  FileReader(std::string path, int descriptor);

  // Whether the page cache has them all.
  bool Cached(int64_t offset, int64_t size) const;

  std::string path_;
  int descriptor_;
  int direct_ = -1;  // past the page cache; -1: the file system has no such
  int64_t bytes_ = 0;
  // Never read: it asks which pages are cached. Null where the system does
  // not say that to this user.
  void* pages_ = nullptr;
};

}  // namespace invar

#endif  // INVAR_WORKER_MODEL_CHECKPOINT_FILE_READER_H_
