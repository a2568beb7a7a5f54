#include "worker/model/cuda/fast_products.h"

#include <algorithm>
#include <functional>
#include <limits>
#include <random>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "kernels/cuda/check.h"

namespace invar::cuda {
namespace {

constexpr int kBlasWays = 6;  // of cuBLASLt that are measured
// Gate and up wait in fp32 on cuBLASLt's way: so much memory at most.
constexpr int64_t kGateUpFloats = int64_t{64} << 20;
// What another way than the other mode's must win by: here launches follow each
// other closely, and in a step what is a little faster so need not be.
constexpr double kMargin = 0.92;
// What a library's launch costs beside its time: nothing overlaps it.
constexpr double kOthersSeconds = 2e-6;
constexpr double kRefused = std::numeric_limits<double>::infinity();

// What has one scale that cuBLASLt knows of.
bool IsPlain(const DeviceLinear& linear) {
  return linear.gemm.row_scales == nullptr &&
         linear.gemm.block_scales == nullptr &&
         linear.input.dynamic == DynamicInputs::kNone;
}

// The numbers of tokens that are measured; each serves those down to the one
// before it.
std::vector<int64_t> Buckets(int64_t most) {
  std::vector<int64_t> buckets;
  for (int64_t tokens = 1; tokens < most; tokens *= 2) {
    buckets.push_back(tokens);
    if (tokens == 128) buckets.push_back(192);
  }
  buckets.push_back(most);
  std::erase_if(buckets, [most](int64_t b) { return b > most; });
  return buckets;
}

BlasProduct Describe(const GemmWeight& weight, int64_t rows, int64_t tokens,
                     GemmOutput type) {
  return {.dtype = weight.dtype,
          .rows = rows,
          .columns = weight.columns,
          .tokens = tokens,
          .out_stride = weight.rows,
          .type = type};
}

// Random bytes, so that the matrix units draw the power that they will.
void Fill(const InputRows& rows, int64_t count) {
  std::vector<uint64_t> noise(1 << 16);
  std::mt19937_64 random(1);
  // No exponent is the largest, so nothing is infinite or no number.
  for (uint64_t& word : noise) word = random() & 0xbfbfbfbfbfbfbfbf;
  const int64_t bytes = count * rows.row_bytes;
  const int64_t block = static_cast<int64_t>(noise.size() * sizeof(noise[0]));
  for (int64_t at = 0; at < bytes; at += block) {
    Check(CopyToDevice(static_cast<std::byte*>(rows.data) + at, noise.data(),
                       std::min(block, bytes - at)),
          "filling a step");
  }
}

// Times launches as a step makes them: in a graph, with nothing between.
class Stopwatch {
 public:
  Stopwatch() {
    Check(cudaEventCreate(&start_), "making an event");
    Check(cudaEventCreate(&end_), "making an event");
  }
  ~Stopwatch() {
    cudaEventDestroy(start_);
    cudaEventDestroy(end_);
  }
  Stopwatch(const Stopwatch&) = delete;
  Stopwatch& operator=(const Stopwatch&) = delete;

  // Of one of `count` launches; kRefused where one says false.
  double Seconds(int64_t count,
                 const std::function<bool(int64_t, Lane&)>& launch) {
    if (!launch(0, lane_)) return kRefused;
    lane_.Synchronize();
    Check(cudaStreamBeginCapture(lane_.stream(),
                                 cudaStreamCaptureModeThreadLocal),
          "capturing products");
    for (int64_t i = 0; i < count; ++i) launch(i, lane_);
    cudaGraph_t captured = nullptr;
    cudaGraphExec_t graph = nullptr;
    Check(cudaStreamEndCapture(lane_.stream(), &captured),
          "capturing products");
    Check(cudaGraphInstantiate(&graph, captured, 0), "capturing products");
    Check(cudaGraphDestroy(captured), "capturing products");
    float best = std::numeric_limits<float>::infinity();
    for (int i = 0; i < 4; ++i) {
      Check(cudaEventRecord(start_, lane_.stream()), "timing products");
      Check(cudaGraphLaunch(graph, lane_.stream()), "timing products");
      Check(cudaEventRecord(end_, lane_.stream()), "timing products");
      lane_.Synchronize();
      float milliseconds = 0;
      Check(cudaEventElapsedTime(&milliseconds, start_, end_),
            "timing products");
      if (i > 0) best = std::min(best, milliseconds);  // the first one warms
    }
    Check(cudaGraphExecDestroy(graph), "timing products");
    return best * 1e-3 / static_cast<double>(count);
  }

 private:
  Lane lane_;
  cudaEvent_t start_ = nullptr;
  cudaEvent_t end_ = nullptr;
};

// Ours with K cut in other leaves, and with other tiles.
std::vector<FastProducts::Way> OurWays(const GemmWeight& weight, int64_t leaf,
                                       int64_t tokens) {
  std::vector<FastProducts::Way> ways = {{.leaf = leaf}};
  std::set<int64_t> seen = {leaf};
  const int64_t blocks = (weight.columns + 127) / 128;
  for (int64_t parts = 1; parts <= kMaxLeaves; parts *= 2) {
    const int64_t length = 128 * ((blocks + parts - 1) / parts);
    if (seen.insert(length).second) ways.push_back({.leaf = length});
    if (tokens > 32 && tokens < 512 && parts > 1) {
      const int run = static_cast<int>(kMaxLeaves / parts);
      ways.push_back({.leaf = length, .tile = {.tokens = 64, .run = 1}});
      if (length > leaf) {
        ways.push_back({.leaf = leaf, .tile = {.tokens = 64, .run = run}});
      }
    }
  }
  return ways;
}

}  // namespace

// Weights of one shape, and where a product of theirs reads and writes.
struct FastProducts::Job {
  std::string name;
  std::vector<const DeviceLinear*> linears = {};
  std::vector<const DeviceMlp*> mlps = {};  // instead
  int64_t leaf = 0;                         // of the other mode
  const InputBuffer* x = nullptr;
  GemmOutput type = GemmOutput::kFp32;
  void* out = nullptr;
  InputSink sink = {};  // of mlps
  int64_t most = 0;

  Shape shape() const {
    const GemmWeight& weight =
        mlps.empty() ? linears[0]->gemm : mlps[0]->gate_up.gemm;
    return {weight.dtype, weight.rows, weight.columns,
            mlps.empty() ? KindOf(type) : Kind::kSwiGlu};
  }
};

absl::StatusOr<std::unique_ptr<FastProducts>> FastProducts::Make(
    const DeviceWeights& weights, const StepMemory& step,
    const Others& others) {
  std::unique_ptr<FastProducts> made(new FastProducts);
  absl::StatusOr<std::unique_ptr<BlasLt>> blas = BlasLt::Open();
  if (blas.ok()) {
    made->blas_ = *std::move(blas);
  } else {
    made->report_ = absl::StrCat(blas.status().message(), "\n");
  }
  constexpr char kWhat[] = "what mode FAST's products need";
  if (made->blas_ != nullptr) {
    for (DeviceBuffer<std::byte>& workspace : made->workspaces_) {
      auto buffer =
          DeviceBuffer<std::byte>::Allocate(BlasLt::kWorkspaceBytes, kWhat);
      if (!buffer.ok()) return buffer.status();
      workspace = *std::move(buffer);
    }
  }
  std::map<Shape, Job> jobs;
  int64_t widest = 0;
  const auto add = [&](const char* name, const DeviceLinear& linear,
                       int64_t leaf, const InputBuffer& x, void* out,
                       int64_t most, GemmOutput type = GemmOutput::kFp32) {
    if (linear.gemm.rows == 0) return;
    Job job = {.name = name,
               .linears = {&linear},
               .leaf = leaf,
               .x = &x,
               .type = type,
               .out = out,
               .most = most};
    Job& at = jobs.try_emplace(job.shape(), job).first->second;
    if (at.linears[0] != &linear) at.linears.push_back(&linear);
  };
  const auto column_leaf = [](const DeviceLinear& linear) {
    return ColumnParallelLeaf(linear.gemm);
  };
  const int64_t tokens = step.limits.tokens;
  for (const DeviceLayer& layer : weights.layers) {
    const bool low_rank = layer.q_norm.size() > 0;
    add("q_a", layer.q_a, column_leaf(layer.q_a), step.inputs[0],
        step.q_a.data(), tokens);
    add("q", layer.q, column_leaf(layer.q),
        low_rank ? step.q_inputs : step.inputs[0], step.q.data(), tokens);
    add("kv_a", layer.kv_a, column_leaf(layer.kv_a), step.inputs[1],
        step.kv_a.data(), tokens);
    add("o", layer.o, RowParallelLeaf(layer.o.gemm.columns), step.value_inputs,
        step.projected.data(), tokens, GemmOutput::kBf16);
    const InputBuffer& inner =
        layer.has_experts ? step.shared_inputs : step.dense_inputs;
    const DeviceMlp& mlp = layer.mlp;
    add("down", mlp.down, RowParallelLeaf(mlp.down.gemm.columns), inner,
        step.projected.data(), tokens, GemmOutput::kBf16);
    Job job = {.name = "gate_up",
               .mlps = {&mlp},
               .x = &step.inputs[0],
               .sink = inner.Sink(mlp.down.input),
               .most = tokens};
    Job& at = jobs.try_emplace(job.shape(), job).first->second;
    if (at.mlps[0] != &mlp) at.mlps.push_back(&mlp);
    widest = std::max(widest, 2 * mlp.inner);
  }
  add("lm_head", weights.lm_head, column_leaf(weights.lm_head), step.inputs[0],
      step.logits.data(), step.limits.logit_rows);
  for (const DeviceLinear& linear : others.linears) {
    add("kv_b of prompts", linear, linear.gemm.columns, *others.x, others.out,
        others.most, GemmOutput::kBf16);
  }
  if (made->blas_ != nullptr) {
    auto buffer = DeviceBuffer<float>::Allocate(
        std::min(kGateUpFloats, tokens * widest), kWhat);
    if (!buffer.ok()) return buffer.status();
    made->gate_up_ = *std::move(buffer);
  }
  for (const auto& [shape, job] : jobs) {
    const absl::Status status = made->Measure(job);
    if (!status.ok()) return status;
  }
  return made;
}

absl::Status FastProducts::Measure(const Job& job) {
  const bool swiglu = !job.mlps.empty();
  const DeviceLinear& first = swiglu ? job.mlps[0]->gate_up : *job.linears[0];
  Fill(job.x->Rows(first.input), job.most);
  Stopwatch stopwatch;
  Ways& ways = ways_[job.shape()];
  absl::StrAppend(&report_, job.name, " ", first.gemm.rows, " x ",
                  first.gemm.columns, ":");
  for (const int64_t tokens : Buckets(job.most)) {
    std::vector<Way> all = swiglu ? std::vector<Way>{Way()}
                                  : OurWays(first.gemm, job.leaf, tokens);
    if (blas_ != nullptr && IsPlain(first)) {
      const int64_t rows = first.gemm.rows;
      const BlasProduct product =
          Describe(first.gemm, swiglu ? rows / 2 : rows, tokens, job.type);
      if (!swiglu || tokens * rows <= gate_up_.size()) {
        for (const BlasAlgorithm& algorithm :
             blas_->Algorithms(product, kBlasWays)) {
          all.push_back({.blas = true, .algorithm = algorithm});
        }
      }
    }
    // Each launch another layer's weights, as far as there are some.
    const int64_t layers =
        static_cast<int64_t>(swiglu ? job.mlps.size() : job.linears.size());
    const int64_t launches =
        tokens <= 512 ? std::clamp<int64_t>(layers, 4, 27) : 3;
    double best = kRefused;  // of what they cost
    double ours = kRefused;  // as the other mode has it
    double taken = kRefused;
    for (const Way& way : all) {
      const double seconds =
          stopwatch.Seconds(launches, [&](int64_t i, Lane& lane) {
            return swiglu ? RunSwiGlu(way, *job.mlps[i % layers], *job.x,
                                      tokens, job.sink, lane, 0)
                          : Run(way, *job.linears[i % layers], *job.x, tokens,
                                job.type, job.out, lane, 0);
          });
      if (&way == &all[0]) {
        ours = best = taken = seconds;
        ways[tokens] = way;
        ways[tokens].ours = true;
      } else if (const double cost = seconds + (way.blas ? kOthersSeconds : 0);
                 cost < std::min(best, kMargin * ours)) {
        best = cost;
        taken = seconds;
        ways[tokens] = way;
      }
    }
    const Way& way = ways[tokens];
    absl::StrAppendFormat(
        &report_, " %d: %s %.1f of %.1f us;", tokens,
        way.blas ? "cuBLASLt"
        : way.leaf == 0
            ? "ours"
            : absl::StrCat("ours, leaves of ", way.leaf,
                           way.tile.tokens == 0
                               ? ""
                               : absl::StrCat(" in runs of ", way.tile.run)),
        taken * 1e6, ours * 1e6);
  }
  report_ += "\n";
  return absl::OkStatus();
}

const FastProducts::Way& FastProducts::Find(const Shape& shape,
                                            int64_t tokens) const {
  const Ways& ways = ways_.at(shape);
  const auto at = ways.lower_bound(tokens);
  return at == ways.end() ? ways.rbegin()->second : at->second;
}

bool FastProducts::IsOurs(const DeviceLinear& linear, int64_t tokens,
                          GemmOutput type) const {
  const GemmWeight& weight = linear.gemm;
  return Find({weight.dtype, weight.rows, weight.columns, KindOf(type)}, tokens)
      .ours;
}

bool FastProducts::IsOurs(const DeviceMlp& mlp, int64_t tokens) const {
  const GemmWeight& weight = mlp.gate_up.gemm;
  return Find({weight.dtype, weight.rows, weight.columns, Kind::kSwiGlu},
              tokens)
      .ours;
}

bool FastProducts::Run(const Way& way, const DeviceLinear& linear,
                       const InputBuffer& x, int64_t tokens, GemmOutput type,
                       void* out, Lane& lane, int workspace) const {
  const GemmWeight& weight = linear.gemm;
  if (way.blas) {
    return blas_->Run(Describe(weight, weight.rows, tokens, type),
                      way.algorithm, weight.scale, linear.data.data(),
                      x.Rows(linear.input).data, out,
                      workspaces_[workspace].data(), lane.NextOfOthers());
  }
  Gemm(weight, way.leaf, x.As(linear.input), tokens, type, out, lane.Next(),
       way.tile);
  return true;
}

bool FastProducts::RunSwiGlu(const Way& way, const DeviceMlp& mlp,
                             const InputBuffer& x, int64_t tokens,
                             const InputSink& activated, Lane& lane,
                             int workspace) const {
  const DeviceLinear& both = mlp.gate_up;
  if (!way.blas) {
    GemmSwiGlu(both.gemm, mlp.up_scale, x.As(both.input), tokens, activated,
               lane.Next());
    return true;
  }
  // Gate and up have scales of their own, hence a product each.
  const int64_t half =
      mlp.inner * both.gemm.columns * WeightElementBytes(both.gemm.dtype);
  const BlasProduct product =
      Describe(both.gemm, mlp.inner, tokens, GemmOutput::kFp32);
  for (const int part : {0, 1}) {
    if (!blas_->Run(product, way.algorithm,
                    part == 0 ? both.gemm.scale : mlp.up_scale,
                    both.data.data() + part * half, x.Rows(both.input).data,
                    gate_up_.data() + part * mlp.inner,
                    workspaces_[workspace].data(), lane.NextOfOthers())) {
      return false;
    }
  }
  SiluMul(gate_up_.data(), tokens, mlp.inner, activated, lane.Next());
  return true;
}

void FastProducts::Product(const DeviceLinear& linear, const InputBuffer& x,
                           int64_t tokens, GemmOutput type, void* out,
                           Lane& lane, int workspace) const {
  const GemmWeight& weight = linear.gemm;
  const Way& way =
      Find({weight.dtype, weight.rows, weight.columns, KindOf(type)}, tokens);
  if (Run(way, linear, x, tokens, type, out, lane, workspace)) return;
  // An algorithm of more tokens need not take fewer.
  const Way ours = {.leaf = RowParallelLeaf(weight.columns)};
  Run(ours, linear, x, tokens, type, out, lane, workspace);
}

void FastProducts::SwiGlu(const DeviceMlp& mlp, const InputBuffer& x,
                          int64_t tokens, const InputSink& activated,
                          Lane& lane, int workspace) const {
  const GemmWeight& weight = mlp.gate_up.gemm;
  const Way& way =
      Find({weight.dtype, weight.rows, weight.columns, Kind::kSwiGlu}, tokens);
  if (RunSwiGlu(way, mlp, x, tokens, activated, lane, workspace)) return;
  RunSwiGlu(Way(), mlp, x, tokens, activated, lane, workspace);
}

}  // namespace invar::cuda
