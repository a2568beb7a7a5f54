// CUTLASS on DeepSeek-V2-Lite's dense shapes: whether to use it for
// kernels/cuda/gemm.md's products is argued from these numbers.
//
// Not part of the build: it needs CUTLASS's headers and minutes to compile, an
// object for each type of product and of outputs and one for what times them.
//
//   pip download --no-deps nvidia-cutlass==4.2.0 && unzip nvidia_cutlass-*.whl
//   include=cutlass_library/source/include
//   # Stream-k does not compile with overlap in 4.2.0: a const function hands
//   # out a member by reference.
//   sed -i -e '/bool is_last_tile/s/$/ auto start = unit_iter_start_;/' \
//     -e '/bool is_last_tile/,/is_valid/s/unit_iter_start_,/start,/' \
//     $include/cutlass/gemm/kernel/sm90_tile_scheduler_stream_k.hpp
//   # Without NDEBUG assertions are calls, and ptxas makes products wait for
//   # each other: it must not say C7510.
//   flags="-std=c++17 -O3 -DNDEBUG -gencode arch=compute_90a,code=sm_90a
//     --expt-relaxed-constexpr -DCUTLASS_ENABLE_GDC_FOR_SM90 -diag-suppress 177
//     -I$include -I."
//   for type in Fp8Fast Fp8Exact Bf16; do for output in float bfloat16_t; do
//     nvcc $flags -DTYPE=$type -DOUTPUT=$output \
//       -c tests/bench/cutlass_gemm_kernels.cu -o $type-$output.o
//   done; done
//   nvcc $flags -c tests/bench/cutlass_gemm_bench.cu -o main.o
//   nvcc -Xlinker -s -o cutlass_bench *.o -cudart static -lcublasLt
//
//   cutlass_bench [TEXT]    products whose name holds the text
//
// FP8 is multiplied with fast accumulation, where the matrix units keep a sum
// through all of K, or promoted to fp32 every 128 of K, as Invar does. cuBLASLt
// stands beside each, the best of eight heuristics. A configuration is the
// TOKENSxROWS of a tile, its schedule and its cluster (of tiles, likewise); a
// launch is of the variant that was fastest: "+o" overlaps the one before it,
// m and n say which way blocks go first, a digit is the swizzle. Stream-k's
// time holds the clearing of its workspace, which each of its launches needs.
#include <cublasLt.h>
#include <cuda_bf16.h>
#include <cuda_fp8.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>

#include "cutlass/version.h"
#include "tests/bench/cutlass_gemm.h"

namespace invar::bench {

std::vector<Candidate>& Candidates() {
  static std::vector<Candidate> candidates;
  return candidates;
}

namespace {

constexpr int kRepeats = 7;
constexpr int kLaunches = 20;      // of a repeat, at least
constexpr int kMostLaunches = 40;  // where weights are small
// L2 keeps 50 MB.
constexpr int64_t kRotatedBytes = int64_t{300} << 20;
constexpr size_t kWorkspaceBytes = size_t{64} << 20;
constexpr int kSamples = 256;
// Of the root of the sum of the products' squares.
constexpr double kTolerance = 2e-2;
constexpr double kFastTolerance = 5e-2;  // sums of 14 bits through all of K

void Check(bool good, const char* what) {
  if (good) return;
  std::fprintf(stderr, "%s: %s\n", what,
               cudaGetErrorString(cudaGetLastError()));
  std::exit(1);
}
void Check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "%s: %s\n", what, cudaGetErrorString(error));
  std::exit(1);
}

class Buffer {
 public:
  explicit Buffer(size_t bytes) : bytes_(bytes) {
    Check(cudaMalloc(&data_, bytes), "allocating");
  }
  Buffer(const Buffer&) = delete;
  ~Buffer() { cudaFree(data_); }
  char* data() const { return static_cast<char*>(data_); }
  size_t bytes() const { return bytes_; }

 private:
  void* data_ = nullptr;
  size_t bytes_;
};

// Bytes without the exponent's first bit: gemm_bench.cc's inputs.
__global__ void FillKernel(uint32_t seed, int64_t words, uint32_t* out) {
  const int64_t step = int64_t{gridDim.x} * blockDim.x;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < words;
       i += step) {
    uint32_t x = static_cast<uint32_t>(i) * 2654435761u + seed;
    x ^= x >> 15;
    x *= 2246822519u;
    x ^= x >> 13;
    x *= 3266489917u;
    x ^= x >> 16;
    out[i] = x & 0xbfbfbfbfu;
  }
}

void Fill(const Buffer& buffer, uint32_t seed) {
  FillKernel<<<1024, 256>>>(seed, buffer.bytes() / 4,
                            reinterpret_cast<uint32_t*>(buffer.data()));
  Check(cudaGetLastError(), "filling");
}

__host__ __device__ inline int64_t SampledToken(int i, int64_t tokens) {
  return i == 0 ? tokens - 1 : i * int64_t{7919} % tokens;
}
__host__ __device__ inline int64_t SampledRow(int i, int64_t rows) {
  return i == 0 ? rows - 1 : i * int64_t{104729} % rows;
}

// A block for each sampled output: its value, and the root of the sum of the
// products' squares.
template <typename Value>
__global__ void ReferenceKernel(int64_t tokens, int64_t rows, int64_t columns,
                                const Value* x, const Value* weights,
                                double* values, double* roots) {
  __shared__ double sums[32], squares[32];
  const Value* a = x + SampledToken(blockIdx.x, tokens) * columns;
  const Value* b = weights + SampledRow(blockIdx.x, rows) * columns;
  double sum = 0, square = 0;
  for (int64_t i = threadIdx.x; i < columns; i += 32) {
    const double p = double(float(a[i])) * double(float(b[i]));
    sum += p;
    square += p * p;
  }
  sums[threadIdx.x] = sum;
  squares[threadIdx.x] = square;
  __syncthreads();
  if (threadIdx.x > 0) return;
  for (int i = 1; i < 32; ++i) {
    sum += sums[i];
    square += squares[i];
  }
  values[blockIdx.x] = sum;
  roots[blockIdx.x] = sqrt(square);
}

template <typename Output>
__global__ void SampleKernel(int64_t tokens, int64_t rows, const Output* out,
                             double* values) {
  const int i = threadIdx.x;
  values[i] = float(out[SampledToken(i, tokens) * rows + SampledRow(i, rows)]);
}

// Median microseconds of one launch, of graphs with one of each copy; negative
// if a launch fails.
double Microseconds(int copies, const Launch& launch, cudaStream_t stream) {
  cudaGraph_t graph;
  cudaGraphExec_t executable;
  Check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal),
        "capturing");
  bool good = true;
  for (int i = 0; i < copies && good; ++i) good = launch(i, stream);
  const cudaError_t captured = cudaStreamEndCapture(stream, &graph);
  if (!good || captured != cudaSuccess) {
    if (captured == cudaSuccess) cudaGraphDestroy(graph);
    cudaGetLastError();  // Is not the next one's.
    return -1;
  }
  if (cudaGraphInstantiate(&executable, graph, 0) != cudaSuccess) {
    cudaGraphDestroy(graph);
    cudaGetLastError();
    return -1;
  }
  cudaEvent_t begin, end;
  Check(cudaEventCreate(&begin), "making an event");
  Check(cudaEventCreate(&end), "making an event");
  std::vector<float> times;
  for (int i = 0; i <= kRepeats; ++i) {
    float milliseconds;
    Check(cudaEventRecord(begin, stream), "timing");
    Check(cudaGraphLaunch(executable, stream), "launching");
    Check(cudaEventRecord(end, stream), "timing");
    Check(cudaEventSynchronize(end), "waiting");
    Check(cudaEventElapsedTime(&milliseconds, begin, end), "timing");
    if (i > 0) times.push_back(milliseconds);  // The first warms up.
  }
  cudaEventDestroy(begin);
  cudaEventDestroy(end);
  cudaGraphExecDestroy(executable);
  cudaGraphDestroy(graph);
  std::sort(times.begin(), times.end());
  return times[kRepeats / 2] * 1e3 / copies;
}

// What cuBLASLt's heuristics offer, as candidates beside CUTLASS's.
std::vector<Candidate> Heuristics(const std::string& type,
                                  const std::string& output,
                                  const Product& product) {
  static cublasLtHandle_t handle = [] {
    cublasLtHandle_t h;
    Check(cublasLtCreate(&h) == CUBLAS_STATUS_SUCCESS, "cuBLASLt");
    return h;
  }();
  const cudaDataType_t in = type == "Bf16" ? CUDA_R_16BF : CUDA_R_8F_E4M3;
  const cudaDataType_t out = output == "float" ? CUDA_R_32F : CUDA_R_16BF;
  // Column by column, so out^T = weights x^T.
  cublasLtMatmulDesc_t how;
  cublasLtMatrixLayout_t weights, x, result;
  cublasLtMatmulPreference_t preference;
  cublasLtMatmulDescCreate(&how, CUBLAS_COMPUTE_32F, CUDA_R_32F);
  const cublasOperation_t transposed = CUBLAS_OP_T;
  cublasLtMatmulDescSetAttribute(how, CUBLASLT_MATMUL_DESC_TRANSA, &transposed,
                                 sizeof(transposed));
  const int8_t fast = type == "Fp8Fast";
  cublasLtMatmulDescSetAttribute(how, CUBLASLT_MATMUL_DESC_FAST_ACCUM, &fast,
                                 sizeof(fast));
  cublasLtMatrixLayoutCreate(&weights, in, product.columns, product.rows,
                             product.columns);
  cublasLtMatrixLayoutCreate(&x, in, product.columns, product.tokens,
                             product.columns);
  cublasLtMatrixLayoutCreate(&result, out, product.rows, product.tokens,
                             product.rows);
  cublasLtMatmulPreferenceCreate(&preference);
  cublasLtMatmulPreferenceSetAttribute(
      preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
      &product.workspace_bytes, sizeof(product.workspace_bytes));
  cublasLtMatmulHeuristicResult_t found[8];
  int count = 0;
  const cublasStatus_t status = cublasLtMatmulAlgoGetHeuristic(
      handle, how, weights, x, result, result, preference, 8, found, &count);
  cublasLtMatmulPreferenceDestroy(preference);
  std::vector<Candidate> candidates;
  if (status != CUBLAS_STATUS_SUCCESS) {
    std::printf("  cuBLASLt: %s\n", cublasLtGetStatusString(status));
    return candidates;
  }
  // The descriptors live as long as the process: there are few.
  for (int i = 0; i < count; ++i) {
    const cublasLtMatmulAlgo_t algorithm = found[i].algo;
    candidates.push_back(
        {type, output, "cuBLASLt#" + std::to_string(i), false,
         [=](const Product& p, const Variant&, Launch* launch) {
           *launch = [=](int copy, cudaStream_t stream) {
             const float one = 1, zero = 0;
             return cublasLtMatmul(handle, how, &one, p.weights[copy], weights,
                                   p.x, x, &zero, p.out, result, p.out, result,
                                   &algorithm, p.workspace, p.workspace_bytes,
                                   stream) == CUBLAS_STATUS_SUCCESS;
           };
           return std::string();
         }});
  }
  return candidates;
}

class Samples {
 public:
  Samples() : buffer_(3 * kSamples * sizeof(double)) {}

  void Reference(const std::string& type, const Product& p) {
    double* const values = Values();
    if (type == "Bf16") {
      ReferenceKernel<<<kSamples, 32>>>(
          p.tokens, p.rows, p.columns, static_cast<const __nv_bfloat16*>(p.x),
          static_cast<const __nv_bfloat16*>(p.weights[0]), values,
          values + kSamples);
    } else {
      ReferenceKernel<<<kSamples, 32>>>(
          p.tokens, p.rows, p.columns, static_cast<const __nv_fp8_e4m3*>(p.x),
          static_cast<const __nv_fp8_e4m3*>(p.weights[0]), values,
          values + kSamples);
    }
    Check(cudaGetLastError(), "the reference");
  }

  // The greatest difference from the reference, over the root of the sum of
  // the products' squares or over the value where that is more.
  double Error(const std::string& output, const Product& p,
               cudaStream_t stream) {
    double* const got = Values() + 2 * kSamples;
    if (output == "float") {
      SampleKernel<<<1, kSamples, 0, stream>>>(
          p.tokens, p.rows, static_cast<const float*>(p.out), got);
    } else {
      SampleKernel<<<1, kSamples, 0, stream>>>(
          p.tokens, p.rows, static_cast<const __nv_bfloat16*>(p.out), got);
    }
    Check(cudaStreamSynchronize(stream), "a product");
    std::vector<double> all(3 * kSamples);
    Check(cudaMemcpy(all.data(), buffer_.data(), buffer_.bytes(),
                     cudaMemcpyDeviceToHost),
          "fetching samples");
    double error = 0;
    for (int i = 0; i < kSamples; ++i) {
      const double want = all[i];
      const double difference = std::abs(all[2 * kSamples + i] - want) /
                                std::max(std::abs(want), all[kSamples + i]);
      if (!(difference <= error)) error = difference;
      if (std::isnan(error)) break;
    }
    return error;
  }

 private:
  double* Values() { return reinterpret_cast<double*>(buffer_.data()); }

  Buffer buffer_;
};

struct Best {
  double microseconds = 1e30;
  double error = 0;
  std::string name;
};

class Bench {
 public:
  Bench() : workspace_(kWorkspaceBytes) {
    Check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking),
          "a stream");
  }

  // Times all candidates and prints the best two lines; how many were wrong.
  int Run(const std::string& name, const std::string& type,
          const std::string& output, int rows, int columns, int tokens) {
    const int64_t size = type == "Bf16" ? 2 : 1;
    const int64_t bytes = int64_t{rows} * columns * size;
    const int copies = static_cast<int>(
        std::clamp<int64_t>(kRotatedBytes / bytes, kLaunches,
                            tokens > 1024 ? kLaunches : kMostLaunches));
    const Buffer x(int64_t{tokens} * columns * size);
    const Buffer weights(bytes * copies);
    const Buffer out(int64_t{tokens} * rows * 4);
    Fill(x, 1);
    Fill(weights, 2);
    Product product = {tokens, rows,       columns,           x.data(),
                       {},     out.data(), workspace_.data(), kWorkspaceBytes};
    for (int i = 0; i < copies; ++i) {
      product.weights.push_back(weights.data() + i * bytes);
    }
    samples_.Reference(type, product);
    Check(cudaDeviceSynchronize(), "inputs");
    std::printf("%s\n", name.c_str());
    int wrong = 0;
    Best ours, theirs;
    for (const Candidate& candidate : Candidates()) {
      if (candidate.type == type && candidate.output == output) {
        wrong += Time(candidate, product, out, &ours);
      }
    }
    std::printf("\n ");
    for (const Candidate& candidate : Heuristics(type, output, product)) {
      wrong += Time(candidate, product, out, &theirs);
    }
    std::printf("\n");
    for (const Best& best : {ours, theirs}) {
      if (best.name.empty()) continue;
      const double us = best.microseconds;
      std::printf(
          "  best %-28s %8.2f us %7.1f TFLOP/s %7.1f GB/s of weights, "
          "error %.1e\n",
          best.name.c_str(), us, 2e-6 * tokens * rows * columns / us,
          bytes * 1e-3 / us, best.error);
    }
    std::fflush(stdout);
    return wrong;
  }

 private:
  // Whether it was wrong.
  bool Time(const Candidate& candidate, const Product& product,
            const Buffer& out, Best* best) {
    static const std::vector<Variant> few = {{"", false, 0, 1},
                                             {"+o", true, 0, 1}};
    static const std::vector<Variant> many = {
        {"", false, 0, 1},      {"+o", true, 0, 1},     {"+om1", true, 'm', 1},
        {"+on1", true, 'n', 1}, {"+om8", true, 'm', 8}, {"+on8", true, 'n', 8}};
    const std::vector<Variant>& variants = product.tokens > 1024 ? many : few;
    double fastest = 1e30;
    std::string fastest_name, why;
    for (const Variant& variant : variants) {
      if (!candidate.has_variants && &variant != &variants[0]) break;
      Launch launch;
      why = candidate.prepare(product, variant, &launch);
      if (!why.empty()) continue;
      Check(cudaDeviceSynchronize(), "an empty workspace");
      Check(cudaMemsetAsync(out.data(), 0xff, out.bytes(), stream_),
            "forgetting outputs");
      if (!launch(0, stream_)) {
        cudaGetLastError();  // Is not the next one's.
        why = "not launched";
        break;
      }
      Check(cudaStreamSynchronize(stream_), candidate.name.c_str());
      const double error = samples_.Error(candidate.output, product, stream_);
      if (!(error <=
            (candidate.type == "Fp8Fast" ? kFastTolerance : kTolerance))) {
        std::printf("  %s%s WRONG by %.1e", candidate.name.c_str(),
                    variant.name, error);
        return true;
      }
      const double us = Microseconds(static_cast<int>(product.weights.size()),
                                     launch, stream_);
      if (us < 0) {
        why = "not captured";
        break;
      }
      if (us < fastest) {
        fastest = us;
        fastest_name = candidate.name + variant.name;
        if (us < best->microseconds) *best = {us, error, fastest_name};
      }
    }
    if (fastest_name.empty()) {
      std::printf("  %s %s", candidate.name.c_str(), why.c_str());
    } else {
      std::printf("  %s %.2f", fastest_name.c_str(), fastest);
    }
    return false;
  }

  Buffer workspace_;
  Samples samples_;
  cudaStream_t stream_;
};

int Main(const std::string& wanted) {
  struct Weight {
    const char* name;
    int rows, columns;
  };
  const Weight weights[] = {{"q_proj", 3072, 2048},
                            {"o_proj", 2048, 2048},
                            {"shared_down", 2048, 2816},
                            {"dense_down", 2048, 10944},
                            {"gate_up", 5632, 2048}};
  cudaDeviceProp device;
  Check(cudaGetDeviceProperties(&device, 0), "the device");
  std::printf("%s, CUTLASS %d.%d.%d, cuBLASLt %zu; microseconds\n", device.name,
              CUTLASS_MAJOR, CUTLASS_MINOR, CUTLASS_PATCH,
              cublasLtGetVersion());
  Bench bench;
  int done = 0, wrong = 0;
  for (const int tokens : {128, 8192}) {
    for (const Weight& w : weights) {
      for (const char* type : {"Fp8Exact", "Fp8Fast", "Bf16"}) {
        for (const char* output : {"bfloat16_t", "float"}) {
          const std::string name =
              std::string(w.name) + " " + std::to_string(w.rows) + "x" +
              std::to_string(w.columns) + " T=" + std::to_string(tokens) + " " +
              type + " " + output;
          if (name.find(wanted) == std::string::npos) continue;
          wrong += bench.Run(name, type, output, w.rows, w.columns, tokens);
          ++done;
        }
      }
    }
  }
  std::printf("%d products, %d candidates wrong\n", done, wrong);
  return wrong > 0 || done == 0;
}

}  // namespace
}  // namespace invar::bench

int main(int argc, char** argv) {
  return invar::bench::Main(argc > 1 ? argv[1] : "");
}
