#include "kernels/cuda/blas_lt.h"

#include "absl/strings/str_cat.h"

#ifdef INVAR_CUBLASLT

#include <cublasLt.h>
#include <dlfcn.h>

#include <cstring>

namespace invar::cuda {
namespace {

static_assert(sizeof(BlasAlgorithm) == sizeof(cublasLtMatmulAlgo_t));
static_assert(CUBLAS_VER_MAJOR == 13, "kLibrary names the header's version");
constexpr char kLibrary[] = "libcublasLt.so.13";
// Where the toolkit is, should the loader not be told of it.
constexpr char kInToolkit[] = "/usr/local/cuda/lib64/libcublasLt.so.13";

// The functions that are used, by their own types.
struct Functions {
  decltype(&cublasLtCreate) create = nullptr;
  decltype(&cublasLtDestroy) destroy = nullptr;
  decltype(&cublasLtGetVersion) version = nullptr;
  decltype(&cublasLtMatmul) matmul = nullptr;
  decltype(&cublasLtMatmulAlgoGetHeuristic) heuristic = nullptr;
  decltype(&cublasLtMatmulAlgoCheck) check = nullptr;
  decltype(&cublasLtMatrixLayoutCreate) make_layout = nullptr;
  decltype(&cublasLtMatrixLayoutDestroy) end_layout = nullptr;
  decltype(&cublasLtMatmulDescCreate) make_desc = nullptr;
  decltype(&cublasLtMatmulDescDestroy) end_desc = nullptr;
  decltype(&cublasLtMatmulPreferenceCreate) make_preference = nullptr;
  decltype(&cublasLtMatmulPreferenceDestroy) end_preference = nullptr;
  decltype(&cublasLtMatmulDescSetAttribute) set_desc = nullptr;
  decltype(&cublasLtMatmulPreferenceSetAttribute) set_preference = nullptr;

  template <typename Function>
  static bool Find(void* library, const char* name, Function* function) {
    *function = reinterpret_cast<Function>(dlsym(library, name));
    return *function != nullptr;
  }
  bool FindAll(void* library) {
    return Find(library, "cublasLtCreate", &create) &&
           Find(library, "cublasLtDestroy", &destroy) &&
           Find(library, "cublasLtGetVersion", &version) &&
           Find(library, "cublasLtMatmul", &matmul) &&
           Find(library, "cublasLtMatmulAlgoGetHeuristic", &heuristic) &&
           Find(library, "cublasLtMatmulAlgoCheck", &check) &&
           Find(library, "cublasLtMatrixLayoutCreate", &make_layout) &&
           Find(library, "cublasLtMatrixLayoutDestroy", &end_layout) &&
           Find(library, "cublasLtMatmulDescCreate", &make_desc) &&
           Find(library, "cublasLtMatmulDescDestroy", &end_desc) &&
           Find(library, "cublasLtMatmulPreferenceCreate", &make_preference) &&
           Find(library, "cublasLtMatmulPreferenceDestroy", &end_preference) &&
           Find(library, "cublasLtMatmulDescSetAttribute", &set_desc) &&
           Find(library, "cublasLtMatmulPreferenceSetAttribute",
                &set_preference);
  }
};

cudaDataType_t TypeOf(WeightDtype dtype) {
  return dtype == WeightDtype::kFp8E4m3 ? CUDA_R_8F_E4M3
         : dtype == WeightDtype::kFp16  ? CUDA_R_16F
                                        : CUDA_R_16BF;
}

constexpr cublasStatus_t kOk = CUBLAS_STATUS_SUCCESS;

// A product as the library sees it: column-major, out (rows, T) = W^T' x.
struct Description {
  const Functions& f;
  cublasLtMatmulDesc_t product = nullptr;
  cublasLtMatrixLayout_t weight = nullptr, x = nullptr, out = nullptr;
  bool ok = false;

  Description(const Functions& f, const BlasProduct& p) : f(f) {
    const int32_t transposed = CUBLAS_OP_T;
    const int8_t fast = p.dtype == WeightDtype::kFp8E4m3;
    const cudaDataType_t type = TypeOf(p.dtype);
    ok = f.make_desc(&product, CUBLAS_COMPUTE_32F, CUDA_R_32F) == kOk &&
         f.set_desc(product, CUBLASLT_MATMUL_DESC_TRANSA, &transposed,
                    sizeof(transposed)) == kOk &&
         f.set_desc(product, CUBLASLT_MATMUL_DESC_FAST_ACCUM, &fast,
                    sizeof(fast)) == kOk &&
         f.make_layout(&weight, type, p.columns, p.rows, p.columns) == kOk &&
         f.make_layout(&x, type, p.columns, p.tokens, p.columns) == kOk &&
         f.make_layout(&out,
                       p.type == GemmOutput::kFp32 ? CUDA_R_32F : CUDA_R_16BF,
                       p.rows, p.tokens, p.out_stride) == kOk;
  }
  Description(const Description&) = delete;
  ~Description() {
    if (product != nullptr) f.end_desc(product);
    for (cublasLtMatrixLayout_t layout : {weight, x, out}) {
      if (layout != nullptr) f.end_layout(layout);
    }
  }
};

class Library final : public BlasLt {
 public:
  static absl::StatusOr<std::unique_ptr<BlasLt>> Open() {
    std::unique_ptr<Library> made(new Library);
    for (const char* name : {kLibrary, kInToolkit}) {
      made->library_ = dlopen(name, RTLD_NOW | RTLD_LOCAL);
      if (made->library_ != nullptr) break;
    }
    if (made->library_ == nullptr) {
      return absl::NotFoundError(absl::StrCat(kLibrary, " cannot be opened"));
    }
    if (!made->f_.FindAll(made->library_)) {
      return absl::NotFoundError(
          absl::StrCat(kLibrary, " lacks functions of CUDA 13"));
    }
    if (made->f_.create(&made->handle_) != kOk) {
      return absl::NotFoundError(
          absl::StrCat(kLibrary, " does not start on this GPU"));
    }
    return made;
  }

  ~Library() override {
    if (handle_ != nullptr) f_.destroy(handle_);
    if (library_ != nullptr) dlclose(library_);
  }

  std::string version() const override {
    const size_t v = f_.version();  // 130100 is 13.1.0
    return absl::StrCat(v / 10000, ".", v / 100 % 100, ".", v % 100);
  }

  std::vector<BlasAlgorithm> Algorithms(const BlasProduct& product,
                                        int most) const override {
    const Description d(f_, product);
    cublasLtMatmulPreference_t preference = nullptr;
    if (!d.ok || f_.make_preference(&preference) != kOk) return {};
    const uint64_t workspace = kWorkspaceBytes;
    std::vector<cublasLtMatmulHeuristicResult_t> found(most);
    int count = 0;
    const bool ok =
        f_.set_preference(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                          &workspace, sizeof(workspace)) == kOk &&
        f_.heuristic(handle_, d.product, d.weight, d.x, d.out, d.out,
                     preference, most, found.data(), &count) == kOk;
    f_.end_preference(preference);
    if (!ok) return {};
    std::vector<BlasAlgorithm> algorithms;
    for (int i = 0; i < count; ++i) {
      if (found[i].state != kOk) continue;
      std::memcpy(&algorithms.emplace_back(), &found[i].algo,
                  sizeof(BlasAlgorithm));
    }
    return algorithms;
  }

  bool Run(const BlasProduct& product, const BlasAlgorithm& algorithm,
           float scale, const void* weight, const void* x, void* out,
           std::byte* workspace, cudaStream_t stream) const override {
    const Description d(f_, product);
    cublasLtMatmulAlgo_t algo;
    std::memcpy(&algo, &algorithm, sizeof(algo));
    cublasLtMatmulHeuristicResult_t result;
    if (!d.ok ||
        f_.check(handle_, d.product, d.weight, d.x, d.out, d.out, &algo,
                 &result) != kOk ||
        result.workspaceSize > kWorkspaceBytes) {
      return false;
    }
    const float zero = 0.0f;
    return f_.matmul(handle_, d.product, &scale, weight, d.weight, x, d.x,
                     &zero, out, d.out, out, d.out, &algo, workspace,
                     kWorkspaceBytes, stream) == kOk;
  }

 private:
  Library() = default;

  void* library_ = nullptr;
  Functions f_;
  cublasLtHandle_t handle_ = nullptr;
};

}  // namespace

absl::StatusOr<std::unique_ptr<BlasLt>> BlasLt::Open() {
  return Library::Open();
}

}  // namespace invar::cuda

#else  // INVAR_CUBLASLT

namespace invar::cuda {

absl::StatusOr<std::unique_ptr<BlasLt>> BlasLt::Open() {
  return absl::NotFoundError("this build had no header of cuBLASLt");
}

}  // namespace invar::cuda

#endif  // INVAR_CUBLASLT
