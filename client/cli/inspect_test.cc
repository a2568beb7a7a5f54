// invar inspect, as a person or a script meets it.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "client/cli/command.h"
#include "worker/model/testing/random_checkpoint.h"

namespace invar {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

// Shipped: a tokenizer and all.
constexpr char kShipped[] = "deploy/models/invar-gsm-20m";

struct Outcome {
  int code;
  std::string out;
  std::string err;
};

Outcome Inspect(std::vector<std::string> arguments) {
  arguments.insert(arguments.begin(), "inspect");
  std::istringstream in;
  std::ostringstream out, err;
  Terminal terminal{in, out, err};
  const int code = RunInvar(arguments, terminal);
  return {code, out.str(), err.str()};
}

nlohmann::json InspectJson(std::vector<std::string> arguments) {
  arguments.push_back("--json");
  return nlohmann::json::parse(Inspect(arguments).out);
}

std::string Folder(const std::string& name) {
  const std::string folder = ::testing::TempDir() + "/inspect_" + name;
  std::filesystem::remove_all(folder);
  std::filesystem::create_directories(folder);
  return folder;
}

// A tiny model in block FP8, with a tokenizer.
ModelConfig BlockModel() {
  ModelConfig config = testing::TinyModelConfig();
  config.vocab_size = 704;
  config.quantization = {.format = CheckpointFormat::kBlockFp8,
                         .weights = WeightScaling::kBlock,
                         .inputs = InputScaling::kGroup};
  return config;
}

std::string Folder(const std::string& name, const ModelConfig& config) {
  const std::string folder = Folder(name);
  EXPECT_TRUE(testing::WriteRandomCheckpoint(folder, config, 1).ok());
  for (const char* file : {"tokenizer.json", "tokenizer_config.json"}) {
    std::filesystem::copy_file(
        std::string("scheduler/tokenizer/testdata/") + file,
        folder + "/" + file);
  }
  return folder;
}

TEST(Inspect, SaysWhatAFolderHolds) {
  const ModelConfig config = BlockModel();
  const std::vector<std::string> arguments = {
      Folder("holds", config), "--context", "100", "--sequences", "2"};
  const Outcome good = Inspect(arguments);
  EXPECT_EQ(good.code, 0) << good.out << good.err;
  const int64_t token = config.layers * config.kv_row_elements();
  EXPECT_THAT(
      good.out,
      AllOf(HasSubstr("DeepseekV2ForCausalLM, 2 layers"),
            HasSubstr("one a block of 128 x 128"), HasSubstr("704 ids"),
            HasSubstr("2 sequences of 100 tokens"),
            HasSubstr(absl::StrCat("FP8_E4M3     ", token, " bytes a token")),
            HasSubstr(absl::StrCat("FP32         ", 4 * token, " bytes")),
            HasSubstr("on a CPU       a step of 512 tokens"),
            Not(HasSubstr("does not load"))));
  const auto fields = InspectJson(arguments);
  EXPECT_EQ(fields["kv_cache"]["BF16"]["bytes_per_token"], 2 * token);
  // A sequence takes two blocks of 64 tokens.
  EXPECT_EQ(fields["kv_cache"]["FP8_E5M2"]["bytes"], 2 * 128 * token);
  // A prompt of a whole step may be scored.
  EXPECT_EQ(fields["cpu_step"]["logit_bytes"], 512 * 704 * 4);
  EXPECT_EQ(fields["kv_cache"]["FP8_E5M2"]["cpu_bytes_in_all"],
            2 * 128 * token + fields["weight_bytes"].get<int64_t>() +
                fields["cpu_step"]["logit_bytes"].get<int64_t>() +
                fields["cpu_step"]["activation_bytes"].get<int64_t>());
  EXPECT_EQ(fields["loads"], true);
}

TEST(Inspect, SaysWhatAGpuDoesNotTake) {
  const std::string folder = Folder("narrow", BlockModel());
  const Outcome narrow = Inspect({folder});
  EXPECT_EQ(narrow.code, 0) << narrow.out << narrow.err;
  EXPECT_THAT(narrow.out,
              AllOf(HasSubstr("CPU only       on a GPU, kv_lora_rank is "),
                    HasSubstr(", GPU none\n"), Not(HasSubstr("on a GPU  "))));
  EXPECT_EQ(InspectJson({folder})["loads_on_gpu"], false);

  const Outcome taken = Inspect({kShipped});
  EXPECT_EQ(taken.code, 0) << taken.out << taken.err;
  EXPECT_THAT(taken.out, AllOf(HasSubstr("\non a GPU       a step of 512"),
                               HasSubstr("the runtime 98.81 MiB"),
                               Not(HasSubstr("CPU only"))));
  const auto fields = InspectJson({kShipped});
  EXPECT_EQ(fields["loads_on_gpu"], true);
  EXPECT_TRUE(fields["kv_cache"]["BF16"].contains("gpu_bytes_in_all"));
  EXPECT_FALSE(fields["kv_cache"]["FP32"].contains("gpu_bytes_in_all"));
  // Rows of logits come in parts on a GPU.
  EXPECT_EQ(2 * fields["gpu_step"]["logit_bytes"].get<int64_t>(),
            fields["cpu_step"]["logit_bytes"]);
}

// More of each limit takes more memory, of the part that it is of.
TEST(Inspect, LimitsCount) {
  const auto with = [](const char* flag, const char* value) {
    return InspectJson({kShipped, flag, value});
  };
  for (const char* step : {"cpu_step", "gpu_step"}) {
    SCOPED_TRACE(step);
    const auto bytes = [&](const nlohmann::json& fields, const char* part) {
      return fields[step][part].get<int64_t>();
    };
    const auto small = with("--step-tokens", "64");
    const auto large = with("--step-tokens", "128");
    EXPECT_EQ(bytes(large, "logit_bytes"), 2 * bytes(small, "logit_bytes"));
    EXPECT_GT(bytes(large, "activation_bytes"),
              bytes(small, "activation_bytes"));
  }
  const auto cache = [](const nlohmann::json& fields) {
    return fields["kv_cache"]["BF16"]["bytes"].get<int64_t>();
  };
  EXPECT_EQ(cache(with("--sequences", "6")),
            3 * cache(with("--sequences", "2")));
  EXPECT_EQ(cache(with("--context", "65")), cache(with("--context", "128")));
  EXPECT_EQ(cache(with("--context", "1000000")),  // it has as many positions
            cache(with("--context", "4096")));
  EXPECT_GT(with("--context", "4096")["gpu_step"]["activation_bytes"],
            with("--context", "512")["gpu_step"]["activation_bytes"]);
}

TEST(Inspect, SaysWhyAFolderDoesNotLoad) {
  const std::string folder = Folder("mixed", BlockModel());
  const auto expect_refused = [&](const std::string& word) {
    const Outcome bad = Inspect({folder});
    EXPECT_EQ(bad.code, 1) << bad.err;
    EXPECT_THAT(bad.out,
                AllOf(HasSubstr("does not load  " + folder), HasSubstr(word)));
  };
  ModelConfig less = BlockModel();
  less.vocab_size = 703;
  std::ofstream(folder + "/config.json") << testing::ConfigJson(less);
  expect_refused("the model has 703 ids, its tokenizer 704");
  expect_refused("tensor model.embed_tokens.weight");
  std::ofstream(folder + "/config.json") << testing::ConfigJson(BlockModel());
  EXPECT_EQ(Inspect({folder}).code, 0);
  std::filesystem::remove(folder + "/tokenizer.json");
  const Outcome bad = Inspect({folder});
  EXPECT_EQ(bad.code, 1);
  EXPECT_THAT(bad.out, HasSubstr("does not load  "));
  EXPECT_THAT(bad.out, HasSubstr(folder + "/tokenizer.json"));
}

// By the name of the file, on stderr where nothing can be said of the model.
TEST(Inspect, RefusesWhatCannotBeRead) {
  EXPECT_EQ(Inspect({}).code, 2);
  EXPECT_EQ(Inspect({kShipped, kShipped}).code, 2);
  for (const std::vector<std::string>& flag :
       {std::vector<std::string>{"--context", "0"},
        {"--step-tokens", "-1"},
        {"--sequences", "0"}}) {
    EXPECT_EQ(Inspect({kShipped, flag[0], flag[1]}).code, 2) << flag[0];
  }
  const auto expect_named = [](const std::string& folder,
                               const std::string& name) {
    const Outcome outcome = Inspect({folder});
    EXPECT_NE(outcome.code, 0) << folder;
    EXPECT_THAT(outcome.out + outcome.err, HasSubstr(name));
  };
  expect_named(Folder("empty"), "/config.json");
  expect_named("no/such/folder", "no/such/folder/config.json");

  const std::string truncated = Folder("truncated", BlockModel());
  const std::string shard = truncated + "/model.safetensors";
  std::filesystem::resize_file(shard, std::filesystem::file_size(shard) - 1);
  expect_named(truncated, shard);

  const std::string other = Folder("other", BlockModel());
  std::ofstream(other + "/config.json")
      << R"({"architectures": ["LlamaForCausalLM"]})";
  expect_named(other, "architectures is [\"LlamaForCausalLM\"]");
}

TEST(Inspect, PinsAFolderAndNamesWhatChanged) {
  const std::string folder = Folder("pinned", BlockModel());
  const Outcome pinned = Inspect({folder, "--write-manifest"});
  EXPECT_EQ(pinned.code, 0) << pinned.err;
  EXPECT_THAT(pinned.out, HasSubstr("pins the weights digest"));
  // The same JSON, with other bytes.
  std::ofstream(folder + "/config.json", std::ios::app) << "\n";
  const Outcome changed = Inspect({folder});
  EXPECT_EQ(changed.code, 1);
  EXPECT_THAT(changed.out, HasSubstr("/config.json: is not the file that"));
}

}  // namespace
}  // namespace invar
