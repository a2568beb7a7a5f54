// The decode shapes of DeepSeek-V2-Lite: time against bytes that must move.
#include <cuda_runtime.h>

#include <algorithm>
#include <random>

#include "kernels/cuda/device.h"
#include "kernels/cuda/ops_linear.h"
#include "kernels/cuda/testing/bench.h"
#include "kernels/cuda/testing/names.h"

namespace invar::cuda::testing {
namespace {

constexpr int64_t kHidden = 2048;
constexpr int64_t kInner = 1408;
constexpr int64_t kExperts = 64;
constexpr int64_t kTopK = 6;
// Inputs rotate so that L2 (50 MB) keeps none of them.
constexpr int64_t kRotatedBytes = int64_t{300} << 20;

// Random bytes that are small finite numbers in each dtype.
DeviceBuffer<std::byte> RandomCodes(int64_t bytes) {
  std::mt19937_64 random(bytes);
  std::vector<std::byte> chunk(1 << 20);
  for (std::byte& b : chunk) b = static_cast<std::byte>(random() & 0xbf);
  auto buffer = *DeviceBuffer<std::byte>::Allocate(bytes, "weights");
  for (int64_t at = 0; at < bytes; at += chunk.size()) {
    Check(CopyToDevice(buffer.data() + at, chunk.data(),
                       std::min<int64_t>(chunk.size(), bytes - at)),
          "filling");
  }
  return buffer;
}

// Row-parallel ones leave as bf16, as a layer has it.
enum class Kind { kColumnParallel, kRowParallel, kSwiGlu };

void Dense(Bench& bench, const char* name, WeightDtype dtype, int64_t rows,
           int64_t columns, Kind kind, int64_t tokens) {
  const bool swiglu = kind == Kind::kSwiGlu;
  const GemmOutput type =
      kind == Kind::kRowParallel ? GemmOutput::kBf16 : GemmOutput::kFp32;
  const int64_t size = WeightElementBytes(dtype);
  const int64_t bytes = rows * columns * size;
  const int copies =
      static_cast<int>(std::clamp<int64_t>(kRotatedBytes / bytes, 2, 40));
  const auto data = RandomCodes(bytes * copies);
  const auto x_data = RandomCodes(tokens * columns * size);
  const auto out = *DeviceBuffer<float>::Allocate(tokens * rows, "out");
  GemmInput x;
  MakeGemmInput(dtype, x_data.data(), tokens, columns, &x);
  std::vector<GemmWeight> weights(copies);
  for (int i = 0; i < copies; ++i) {
    MakeGemmWeight(dtype, data.data() + i * bytes, rows, columns, &weights[i]);
  }
  const double seconds = bench.Seconds(copies, [&](int i) {
    const LaunchOptions options = {bench.stream(), /*overlap=*/true};
    if (swiglu) {
      GemmSwiGlu(weights[i], 1.0f, x, tokens, {out.data(), dtype, 1.0f},
                 options);
    } else {
      const int64_t leaf = kind == Kind::kRowParallel
                               ? RowParallelLeaf(columns)
                               : ColumnParallelLeaf(weights[i]);
      Gemm(weights[i], leaf, x, tokens, type, out.data(), options);
    }
  });
  const double moved = bytes + tokens * columns * size +
                       tokens * rows *
                           (swiglu                      ? size / 2.0
                            : type == GemmOutput::kFp32 ? 4.0
                                                        : 2.0);
  bench.Report(
      std::string(name) + " " + Name(dtype) + " T=" + std::to_string(tokens),
      seconds, moved, 2.0 * tokens * rows * columns);
}

// q_proj and kv_a, which a layer has in one call.
void QueryAndLatent(Bench& bench, WeightDtype dtype, int64_t tokens) {
  constexpr int64_t kQuery = 3072;
  constexpr int64_t kLatent = 576;
  const int64_t size = WeightElementBytes(dtype);
  const int64_t bytes = (kQuery + kLatent) * kHidden * size;
  const int copies = static_cast<int>(std::min(kRotatedBytes / bytes, 40L));
  const auto data = RandomCodes(bytes * copies);
  const auto x_data = RandomCodes(tokens * kHidden * size);
  const auto query = *DeviceBuffer<float>::Allocate(tokens * kQuery, "q");
  const auto latent = *DeviceBuffer<float>::Allocate(tokens * kLatent, "kv_a");
  GemmInput x;
  MakeGemmInput(dtype, x_data.data(), tokens, kHidden, &x);
  std::vector<GemmWeight> q(copies);
  std::vector<GemmWeight> kv_a(copies);
  for (int i = 0; i < copies; ++i) {
    const std::byte* const at = data.data() + i * bytes;
    MakeGemmWeight(dtype, at, kQuery, kHidden, &q[i]);
    MakeGemmWeight(dtype, at + kQuery * kHidden * size, kLatent, kHidden,
                   &kv_a[i]);
  }
  const double seconds = bench.Seconds(copies, [&](int i) {
    GemmPair({&q[i], ColumnParallelLeaf(q[i]), &x, query.data()},
             {&kv_a[i], ColumnParallelLeaf(kv_a[i]), &x, latent.data()}, tokens,
             GemmOutput::kFp32, {bench.stream(), /*overlap=*/true});
  });
  bench.Report(std::string("q_proj and kv_a 3648x2048 ") + Name(dtype) +
                   " T=" + std::to_string(tokens),
               seconds,
               bytes + tokens * (kHidden * size + (kQuery + kLatent) * 4.0),
               2.0 * tokens * (kQuery + kLatent) * kHidden);
}

void Experts(Bench& bench, WeightDtype dtype, int64_t tokens) {
  const int64_t size = WeightElementBytes(dtype);
  const int64_t gate_up_bytes = kExperts * 2 * kInner * kHidden * size;
  const int64_t down_bytes = gate_up_bytes / 2;
  const int64_t slots = tokens * kTopK;
  const int copies = 2;
  const auto gate_up = RandomCodes(gate_up_bytes * copies);
  const auto down = RandomCodes(down_bytes * copies);
  const auto x_data = RandomCodes(tokens * kHidden * size);
  const auto act = RandomCodes(slots * kInner * size);
  const auto out =
      *DeviceBuffer<__nv_bfloat16>::Allocate(slots * kHidden, "slots");
  const auto order = *DeviceBuffer<int32_t>::Allocate(slots, "order");
  const auto work = *DeviceBuffer<ExpertWork>::Allocate(slots + 64, "work");
  const auto counts =
      *DeviceBuffer<int32_t>::Upload(std::vector<int32_t>(2, 0), "counts");
  const auto ids = *DeviceBuffer<int32_t>::Allocate(slots, "ids");
  const auto chosen = *DeviceBuffer<float>::Allocate(slots, "weights");
  std::mt19937_64 random(7);
  std::vector<float> values(std::max(kExperts, tokens) * kHidden);
  for (float& v : values)
    v = static_cast<int64_t>(random() % 2001 - 1000) * 1e-3f;
  const auto router = *DeviceBuffer<float>::Upload(values, "router");
  for (float& v : values)
    v = static_cast<int64_t>(random() % 2001 - 1000) * 1e-3f;
  const auto x_values = *DeviceBuffer<float>::Upload(values, "x");
  const ExpertPlan plan = {order.data(), work.data(), counts.data()};
  const cpu::RouterOptions options = {.experts = kExperts, .top_k = kTopK};
  const LaunchOptions launch = {bench.stream(), /*overlap=*/true};
  const double router_seconds = bench.Seconds(20, [&](int) {
    Router(options, WeightDtype::kFp32, router.data(), kHidden, x_values.data(),
           tokens, ids.data(), chosen.data(), plan, launch);
  });
  const std::vector<int32_t> all = ids.Download();
  std::vector<bool> hit(kExperts);
  for (const int32_t e : all) hit[e] = true;
  const double share =
      static_cast<double>(std::count(hit.begin(), hit.end(), true)) / kExperts;
  const std::string suffix =
      std::string(" ") + Name(dtype) + " T=" + std::to_string(tokens);
  bench.Report("router" + suffix, router_seconds,
               kExperts * kHidden * 4.0 + tokens * kHidden * 4.0);
  std::vector<GroupedWeights> weights(copies);
  for (int i = 0; i < copies; ++i) {
    weights[i].experts = kExperts;
    weights[i].hidden = kHidden;
    weights[i].inner = kInner;
    MakeGemmWeight(dtype, gate_up.data() + i * gate_up_bytes,
                   kExperts * 2 * kInner, kHidden, &weights[i].gate_up);
    MakeGemmWeight(dtype, down.data() + i * down_bytes, kExperts * kHidden,
                   kInner, &weights[i].down);
  }
  GemmInput x;
  GemmInput act_input;
  MakeGemmInput(dtype, x_data.data(), tokens, kHidden, &x);
  MakeGemmInput(dtype, act.data(), slots, kInner, &act_input);
  const bool gathers = GatherPays(tokens, kTopK, kExperts);
  const auto in_order =
      RandomCodes(gathers ? slots * kHidden * size : kHidden * size);
  GemmInput gathered;
  MakeGemmInput(dtype, in_order.data(), gathers ? slots : 1, kHidden,
                &gathered);
  const double up_seconds = bench.Seconds(copies * 4, [&](int i) {
    if (gathers) {
      GatherInputs({x_data.data(), kHidden * size}, plan, tokens, kTopK,
                   {in_order.data(), kHidden * size}, launch);
    }
    ExpertsGateUp(weights[i % copies], gathers ? gathered : x, plan, tokens,
                  kTopK, {act.data(), dtype, 1.0f}, launch, 0, gathers);
  });
  bench.Report("experts gate+up" + suffix, up_seconds,
               share * gate_up_bytes + slots * (kInner + kHidden) * size,
               2.0 * slots * 2 * kInner * kHidden);
  const double down_seconds = bench.Seconds(copies * 4, [&](int i) {
    ExpertsDown(weights[i % copies], act_input, plan, tokens, kTopK, out.data(),
                launch);
  });
  bench.Report("experts down" + suffix, down_seconds,
               share * down_bytes + slots * (kInner * size + kHidden * 2),
               2.0 * slots * kInner * kHidden);
}

void Norm(Bench& bench, int64_t tokens) {
  const auto floats = [](int64_t count) {
    return *DeviceBuffer<float>::Allocate(count, "norm");
  };
  const auto halves = [](int64_t count) {
    return *DeviceBuffer<__nv_bfloat16>::Allocate(count, "norm");
  };
  const auto hidden = floats(tokens * kHidden);
  const auto shared = halves(tokens * kHidden);
  const auto slots = halves(tokens * kTopK * kHidden);
  const auto weights = floats(tokens * kTopK);
  const auto gain = floats(kHidden);
  const auto normed = floats(tokens * kHidden);
  const auto codes = floats(tokens * kHidden);
  for (const auto* b : {&hidden, &weights, &gain}) {
    Check(FillOnDevice(b->data(), 0x3c, b->bytes()), "filling");
  }
  for (const auto* b : {&shared, &slots}) {
    Check(FillOnDevice(b->data(), 0x3c, b->bytes()), "filling");
  }
  // Behind the experts; and before them, for the router too.
  const auto norm = [&](const char* name, int64_t top_k) {
    const bool as_fp32 = top_k == 0 && !RouterNorms(tokens, kHidden);
    const double seconds = bench.Seconds(20, [&](int) {
      RmsNorm({.hidden = hidden.data(),
               .hidden_stride = kHidden,
               .addend = {shared.data(), top_k == 0 ? nullptr : slots.data(),
                          weights.data(), top_k},
               .gain = gain.data(),
               .rows = tokens,
               .size = kHidden,
               .normed = as_fp32 ? normed.data() : nullptr,
               .inputs = {{codes.data(), WeightDtype::kFp8E4m3, 1.0f}, {}}},
              {bench.stream(), /*overlap=*/true});
    });
    bench.Report(
        std::string(name) + " T=" + std::to_string(tokens), seconds,
        tokens * kHidden * (4.0 * (as_fp32 ? 3 : 2) + 2.0 * (1 + top_k) + 1));
  };
  norm("combine + norm", kTopK);
  norm("add + norm", 0);
}

void Run(Bench& bench) {
  for (const WeightDtype dtype : {WeightDtype::kFp8E4m3, WeightDtype::kBf16}) {
    for (const int64_t t : {1, 8, 32, 128, 256, 8192}) {
      Dense(bench, "q_proj 3072x2048", dtype, 3072, 2048, Kind::kColumnParallel,
            t);
      QueryAndLatent(bench, dtype, t);
      Dense(bench, "o_proj 2048x2048", dtype, 2048, 2048, Kind::kRowParallel,
            t);
      Dense(bench, "shared gate+up 5632x2048", dtype, 5632, 2048, Kind::kSwiGlu,
            t);
      Dense(bench, "shared down 2048x2816", dtype, 2048, 2816,
            Kind::kRowParallel, t);
      if (t <= 256) {
        Dense(bench, "lm_head 102400x2048", dtype, 102400, 2048,
              Kind::kColumnParallel, t);
      }
      Experts(bench, dtype, t);
    }
  }
  for (const int64_t t : {1, 8, 32, 128, 256}) Norm(bench, t);
}

void RunPrefill(Bench& bench) {
  constexpr int64_t kTokens = 8192;
  for (const WeightDtype dtype : {WeightDtype::kFp8E4m3, WeightDtype::kBf16}) {
    const auto dense = [&](const char* name, int64_t rows, int64_t columns,
                           Kind kind) {
      Dense(bench, name, dtype, rows, columns, kind, kTokens);
    };
    dense("q_proj 3072x2048", 3072, 2048, Kind::kColumnParallel);
    dense("kv_a 576x2048", 576, 2048, Kind::kColumnParallel);
    QueryAndLatent(bench, dtype, kTokens);
    dense("o_proj 2048x2048", 2048, 2048, Kind::kRowParallel);
    dense("shared gate+up 5632x2048", 5632, 2048, Kind::kSwiGlu);
    dense("shared down 2048x2816", 2048, 2816, Kind::kRowParallel);
    Experts(bench, dtype, kTokens);
  }
  Norm(bench, kTokens);
}

void RunQueryAndLatent(Bench& bench) {
  for (const WeightDtype dtype : {WeightDtype::kFp8E4m3, WeightDtype::kBf16}) {
    for (const int64_t t :
         {1, 8, 16, 32, 64, 128, 256, 384, 512, 1024, 2048, 4096, 8192}) {
      QueryAndLatent(bench, dtype, t);
    }
  }
}

const BenchEntry entry("linear", Run);
const BenchEntry pair_entry("query", RunQueryAndLatent);
const BenchEntry prefill_entry("prefill", RunPrefill);

}  // namespace
}  // namespace invar::cuda::testing
