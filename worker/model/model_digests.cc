// Bisects two runs whose bits differ, by layer, operation and position:
//
//   model_digests MODEL_FOLDER IDS [THREADS [CHUNK [avx2]]] >A
//   model_digests --compare A B
//
// IDS: token ids, comma separated. THREADS: 0 is one per core. CHUNK: positions
// computed at once. A tool of its own rather than a flag of the worker: a run
// is repeated without sockets, from what a person has: a checkpoint and ids.
#include <cstdio>
#include <fstream>
#include <string>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_split.h"
#include "worker/model/digests.h"

namespace invar {
namespace {

int Usage() {
  std::fprintf(stderr,
               "usage: model_digests MODEL_FOLDER IDS [THREADS [CHUNK [avx2]]]"
               "\n       model_digests --compare A B\n");
  return 2;
}

bool ReadLines(const char* path, std::vector<std::string>* lines) {
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) lines->push_back(line);
  if (file.eof()) return true;
  std::fprintf(stderr, "cannot read %s\n", path);
  return false;
}

int Compare(const char* a, const char* b) {
  std::vector<std::string> left, right;
  if (!ReadLines(a, &left) || !ReadLines(b, &right)) return 2;
  const std::string difference = FirstDifference(left, right);
  std::printf("%s\n", difference.empty() ? "identical" : difference.c_str());
  return difference.empty() ? 0 : 1;
}

int Main(int argc, char** argv) {
  if (argc == 4 && std::string(argv[1]) == "--compare") {
    return Compare(argv[2], argv[3]);
  }
  if (argc < 3 || argc > 6) return Usage();
  Model::LoadOptions options = {.path = argv[1]};
  std::vector<int32_t> ids;
  for (const absl::string_view text : absl::StrSplit(argv[2], ',')) {
    if (!absl::SimpleAtoi(text, &ids.emplace_back())) return Usage();
  }
  int64_t chunk = static_cast<int64_t>(ids.size());
  if (argc > 3 && !absl::SimpleAtoi(argv[3], &options.threads)) return Usage();
  if (argc > 4 && (!absl::SimpleAtoi(argv[4], &chunk) || chunk < 1)) {
    return Usage();
  }
  if (argc > 5) {
    if (std::string(argv[5]) != "avx2") return Usage();
    options.isa = cpu::Isa::kAvx2;
  }
  auto model = Model::Load(options);
  if (!model.ok()) {
    std::fprintf(stderr, "%s\n", model.status().ToString().c_str());
    return 1;
  }
  for (const int32_t id : ids) {
    if (id >= 0 && id < (*model)->config().vocab_size) continue;
    std::fprintf(stderr, "token id %d is outside the vocabulary\n", id);
    return 1;
  }
  for (const std::string& line : DumpDigests(**model, ids, chunk)) {
    std::puts(line.c_str());
  }
  return 0;
}

}  // namespace
}  // namespace invar

int main(int argc, char** argv) { return invar::Main(argc, argv); }
