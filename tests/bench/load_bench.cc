// How fast a checkpoint loads against how fast its storage reads, and what
// memory that takes.
//
//   load_bench FOLDER [ROUNDS]
//
// Writes a checkpoint of V2-Lite's shape with 4 layers (4.5 GB) into FOLDER,
// where none is, and leaves it there. In each round, with the files' pages
// dropped from the page cache (posix_fadvise, counted with mincore): a
// sequential read of every shard by one thread, through the page cache and past
// it (O_DIRECT), one past it with several blocks under way, and a load. The
// storage's rate is the fastest of the three.
//
// A virtual machine's host takes free memory back within seconds and gives it
// again, zeroed, where it is first touched, which can take longer than to read
// as much. So before each of the four most of the free memory is touched and
// freed: each then has memory of the same kind. What the first of these touches
// took is printed, since a load on a fresh machine pays it.
//
// Peak memory is that of the resident set (VmHWM, reset before the load); the
// loader reads through no mapping, so no file is in it.
#include <fcntl.h>
#include <malloc.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "worker/model/model.h"
#include "worker/model/testing/large_checkpoint.h"

namespace invar {
namespace {

// How the storage is read: blocks of so many bytes, so many under way.
struct ReadShape {
  int flags = 0;
  int threads = 1;
  int64_t block_bytes = int64_t{8} << 20;
};
// Small blocks: a virtual disk may serve several of them at once, but cut up a
// large one.
constexpr ReadShape kDeep = {O_DIRECT, 8, int64_t{1} << 20};

using Clock = std::chrono::steady_clock;
double Since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

[[noreturn]] void Die(const std::string& what) {
  std::perror(what.c_str());
  std::exit(1);
}

// In huge pages, as the loader's memory is: a virtual disk cuts a request up by
// the pages that it goes to.
class HugeBlock {
 public:
  explicit HugeBlock(int64_t bytes)
      : data_(std::aligned_alloc(kHugePage, std::max(bytes, kHugePage))) {
    madvise(data_, std::max(bytes, kHugePage), MADV_HUGEPAGE);
  }
  ~HugeBlock() { std::free(data_); }
  HugeBlock(const HugeBlock&) = delete;
  HugeBlock& operator=(const HugeBlock&) = delete;
  void* data() const { return data_; }

 private:
  static constexpr int64_t kHugePage = int64_t{2} << 20;
  void* data_;
};

class Shard {
 public:
  Shard(std::string path, int flags) : path_(std::move(path)) {
    descriptor_ = open(path_.c_str(), O_RDONLY | O_CLOEXEC | flags);
    struct stat status;
    if (descriptor_ < 0 || fstat(descriptor_, &status) != 0) Die(path_);
    bytes_ = status.st_size;
  }
  ~Shard() { close(descriptor_); }
  Shard(const Shard&) = delete;
  Shard& operator=(const Shard&) = delete;

  int64_t bytes() const { return bytes_; }

  // Bytes that the page cache still holds afterwards.
  int64_t DropPages() {
    fsync(descriptor_);
    posix_fadvise(descriptor_, 0, 0, POSIX_FADV_DONTNEED);
    void* map = mmap(nullptr, bytes_, PROT_READ, MAP_SHARED, descriptor_, 0);
    if (map == MAP_FAILED) Die(path_);
    const int64_t page = sysconf(_SC_PAGESIZE);
    std::vector<unsigned char> resident((bytes_ + page - 1) / page);
    if (mincore(map, bytes_, resident.data()) != 0) Die(path_);
    munmap(map, bytes_);
    return page * std::count_if(resident.begin(), resident.end(),
                                [](unsigned char r) { return r & 1; });
  }

  // By as many threads, each of which takes the next block in turn.
  void ReadAll(const ReadShape& shape) const {
    const int64_t block_bytes = shape.block_bytes;
    std::atomic<int64_t> next{0};
    const auto read = [&] {
      const HugeBlock block(block_bytes);
      for (int64_t at; (at = block_bytes * next++) < bytes_;) {
        const int64_t end = std::min(at + block_bytes, bytes_);
        while (at < end) {
          const ssize_t got = pread(descriptor_, block.data(), block_bytes, at);
          if (got <= 0) Die(path_);
          at += got;
        }
      }
    };
    std::vector<std::thread> helpers;
    for (int i = 1; i < shape.threads; ++i) helpers.emplace_back(read);
    read();
    for (std::thread& helper : helpers) helper.join();
  }

 private:
  std::string path_;
  int descriptor_;
  int64_t bytes_ = 0;
};

std::vector<std::string> ShardPaths(const std::string& folder) {
  std::vector<std::string> paths;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    if (entry.path().extension() == ".safetensors") {
      paths.push_back(entry.path());
    }
  }
  std::sort(paths.begin(), paths.end());
  return paths;
}

void DropPages(const std::vector<std::string>& paths) {
  int64_t resident = 0;
  for (const std::string& path : paths) {
    resident += Shard(path, 0).DropPages();
  }
  if (resident > 0) {
    std::printf("  %lld bytes stayed in the page cache\n",
                static_cast<long long>(resident));
  }
}

// Bytes a second.
double SequentialRate(const std::vector<std::string>& paths,
                      const ReadShape& shape) {
  int64_t bytes = 0;
  const auto start = Clock::now();
  for (const std::string& path : paths) {
    const Shard shard(path, shape.flags);
    shard.ReadAll(shape);
    bytes += shard.bytes();
  }
  return bytes / Since(start);
}

// The number after `field` in a file of /proc, in KiB there; bytes.
int64_t ProcBytes(const std::string& path, const std::string& field) {
  std::ifstream file(path);
  std::string word;
  while (file >> word) {
    if (word != field) continue;
    int64_t kib = 0;
    file >> kib;
    return kib << 10;
  }
  return 0;
}

// Bytes a second at which all processors touch three quarters of the memory
// that is free, and free it.
double TouchFreeMemory() {
  const int64_t bytes = ProcBytes("/proc/meminfo", "MemFree:") / 4 * 3;
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) Die("memory");
  madvise(memory, bytes, MADV_HUGEPAGE);
  const auto start = Clock::now();
  std::vector<std::thread> threads;
  const int64_t count = std::max(1u, std::thread::hardware_concurrency());
  for (int64_t i = 0; i < count; ++i) {
    threads.emplace_back([=] {
      constexpr int64_t kPage = 4096;
      volatile char* data = static_cast<char*>(memory);
      const int64_t end = bytes * (i + 1) / count;
      for (int64_t at = bytes * i / count; at < end; at += kPage) data[at] = 1;
    });
  }
  for (std::thread& thread : threads) thread.join();
  const double seconds = Since(start);
  munmap(memory, bytes);
  return bytes / seconds;
}

// In fresh conditions: what each measure of a round begins with. How fast
// memory came at first is returned.
double Prepare(const std::vector<std::string>& paths) {
  DropPages(paths);
  return TouchFreeMemory();
}

int64_t PeakBytes() { return ProcBytes("/proc/self/status", "VmHWM:"); }

// Of all threads of this process.
double CpuSeconds() {
  struct rusage usage;
  getrusage(RUSAGE_SELF, &usage);
  const auto seconds = [](const timeval& t) {
    return static_cast<double>(t.tv_sec) + t.tv_usec * 1e-6;
  };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

int Main(const std::string& folder, int rounds) {
  if (!std::filesystem::exists(folder + "/config.json")) {
    const auto start = Clock::now();
    const absl::Status status = testing::WriteLargeCheckpoint(
        folder, testing::V2LiteModelConfig(/*layers=*/4), 1);
    if (!status.ok()) {
      std::fprintf(stderr, "%s\n", status.ToString().c_str());
      return 1;
    }
    std::printf("checkpoint written in %.1f s\n", Since(start));
  }
  const std::vector<std::string> paths = ShardPaths(folder);
  int64_t bytes = 0;
  for (const std::string& path : paths) {
    bytes += static_cast<int64_t>(std::filesystem::file_size(path));
  }
  std::printf("%.2f GB in %zu shards\n", bytes / 1e9, paths.size());
  std::vector<double> shares;
  for (int round = 0; round < rounds; ++round) {
    const double touch = Prepare(paths);
    const double cached = SequentialRate(paths, {});
    Prepare(paths);
    const double direct = SequentialRate(paths, {.flags = O_DIRECT});
    Prepare(paths);
    const double deep = SequentialRate(paths, kDeep);
    const double storage = std::max({cached, direct, deep});
    Prepare(paths);
    malloc_trim(0);
    std::ofstream("/proc/self/clear_refs") << 5;  // resets VmHWM
    const int64_t before = PeakBytes();
    const double cpu = CpuSeconds();
    const auto start = Clock::now();
    const auto model = Model::Load({.path = folder});
    const double seconds = Since(start);
    if (!model.ok()) {
      std::fprintf(stderr, "%s\n", model.status().ToString().c_str());
      return 1;
    }
    const double rate = bytes / seconds;
    shares.push_back(rate / storage);
    std::printf(
        "storage %.2f GB/s (page cache %.2f, direct %.2f, %d deep %.2f)  load "
        "%.2f s (%.2f s of processors), %.2f GB/s, %.0f%%  peak %.2f GiB over "
        "weights  first touch %.2f GB/s\n",
        storage / 1e9, cached / 1e9, direct / 1e9, kDeep.threads, deep / 1e9,
        seconds, CpuSeconds() - cpu, rate / 1e9, 100 * shares.back(),
        static_cast<double>(PeakBytes() - before - bytes) / (1 << 30),
        touch / 1e9);
    std::fflush(stdout);
  }
  std::sort(shares.begin(), shares.end());
  std::printf("median: %.0f%% of the storage's sequential rate\n",
              100 * shares[shares.size() / 2]);
  return 0;
}

}  // namespace
}  // namespace invar

int main(int argc, char** argv) {
  if (argc < 2 || argc > 3) {
    std::fprintf(stderr, "usage: load_bench FOLDER [ROUNDS]\n");
    return 2;
  }
  return invar::Main(argv[1], argc < 3 ? 5 : std::max(1, std::atoi(argv[2])));
}
