#include "scheduler/tokenizer/test_tokenizer.h"

#include <gtest/gtest.h>
#include <stdlib.h>

#include <filesystem>
#include <fstream>

#include "scheduler/tokenizer/byte_alphabet.h"

namespace invar {
namespace {

nlohmann::json Added(int id, const std::string& content, bool special) {
  return {{"id", id}, {"content", content}, {"special", special}};
}

}  // namespace

TestModel::TestModel() {
  path_ = testing::TempDir() + "/tokenizer_XXXXXX";
  if (mkdtemp(path_.data()) == nullptr) ADD_FAILURE() << "no " << path_;
  nlohmann::json vocabulary;
  for (int byte = 0; byte < 256; ++byte) {
    vocabulary[ByteSymbol(static_cast<uint8_t>(byte))] = byte;
  }
  vocabulary["he"] = 256;
  vocabulary["ll"] = 257;
  vocabulary["hell"] = 258;
  vocabulary["hello"] = 259;
  const nlohmann::json byte_level = {
      {"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", false}};
  tokenizer = {
      {"version", "1.0"},
      {"added_tokens",
       {Added(260, "<bos>", true), Added(261, "<eos>", true),
        Added(262, "<tool>", false)}},
      {"normalizer", nullptr},
      {"pre_tokenizer", byte_level},
      {"decoder", byte_level},
      {"model",
       {{"type", "BPE"},
        {"vocab", vocabulary},
        {"merges", {"h e", "l l", "he ll", "hell o"}}}},
  };
  config = {{"bos_token", "<bos>"}, {"eos_token", {{"content", "<eos>"}}}};
}

TestModel::~TestModel() { std::filesystem::remove_all(path_); }

void TestModel::Write(const std::string& name, const std::string& text) const {
  std::ofstream(path_ + "/" + name, std::ios::binary) << text;
}

absl::StatusOr<std::unique_ptr<Tokenizer>> TestModel::Load() const {
  Write("tokenizer.json",
        tokenizer_text.empty() ? tokenizer.dump() : tokenizer_text);
  Write("tokenizer_config.json", config.dump());
  return Tokenizer::Load(path_);
}

nlohmann::json ReadJsonFile(const std::string& path) {
  std::ifstream file(path);
  if (!file) ADD_FAILURE() << "cannot read " << path;
  return nlohmann::json::parse(file, nullptr, false);
}

}  // namespace invar
