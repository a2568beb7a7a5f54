// One row a block. Weights are integers, so sums over them have no order; the
// set that top-k and top-p leave is all keys from a least one on, and that one
// is found digit by digit (a radix select) instead of by sorting.
#include "kernels/cuda/gemm_async.h"
#include "kernels/cuda/gemm_launch.h"
#include "kernels/cuda/log_sum_exp.cuh"
#include "kernels/cuda/ops_sample.h"
#include "kernels/cuda/silu_mul.h"
#include "kernels/cuda/total_order.cuh"

namespace invar::cuda {
namespace {

constexpr int kThreads = 1024;
constexpr int kWarps = kThreads / 32;
constexpr unsigned kAll = 0xffffffffu;
constexpr int kWeightBits = 40;

// Digits of a key from the top: the logit's 32 bits, then the 18 of an id's
// complement that differ (kMaxVocabulary); the 14 above those are ones.
constexpr int kDigitBits = 11;
constexpr int kBins = 1 << kDigitBits;
constexpr int kDigits = 5;
__device__ constexpr int kShifts[kDigits] = {53, 42, 32, 9, 0};
__device__ constexpr int kWidths[kDigits] = {11, 11, 10, 9, 9};
static_assert(kMaxVocabulary == 1 << 18);

struct Shared {
  uint64_t bins[kBins];
  uint64_t warps[kWarps];
  uint64_t chosen;  // a value that one thread tells the rest
  uint64_t need;
  double log_sum_exp;
  float run_sums[kMaxVocabulary / kLogSumExpRun];
  uint64_t best[kMaxTopLogProbs];
  int best_count;
};

template <typename Combine>
__device__ uint64_t BlockReduce(Shared& shared, uint64_t value,
                                Combine combine) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) {
    value = combine(value, __shfl_xor_sync(kAll, value, offset));
  }
  __syncthreads();
  if (threadIdx.x % 32 == 0) shared.warps[threadIdx.x / 32] = value;
  __syncthreads();
  uint64_t result = shared.warps[0];
  for (int w = 1; w < kWarps; ++w) result = combine(result, shared.warps[w]);
  return result;
}

// The ids of a row with a weight, down to some least key.
struct Candidates {
  const float* logits;
  int limit;
  float highest;
  float temperature;  // 0: each weighs 1
  uint64_t least_key = 0;
  uint64_t least_weight = 1;

  __device__ uint64_t KeyOf(int id) const { return Key(logits[id], id); }
  // floor(2^40 exp((logit - highest) / temperature)); 0 if left out.
  __device__ uint64_t Weight(int id) const {
    if (id >= limit || KeyOf(id) < least_key) return 0;
    if (temperature == 0.0f) return 1;
    const float scaled = Exponential((logits[id] - highest) / temperature) *
                         static_cast<float>(1ull << kWeightBits);
    if (!(scaled >= 1.0f)) return 0;
    const auto weight = static_cast<uint64_t>(scaled);
    return weight >= least_weight ? weight : 0;
  }
};

__device__ uint64_t Sum(Shared& shared, const Candidates& c) {
  uint64_t sum = 0;
  for (int id = threadIdx.x; id < c.limit; id += kThreads) sum += c.Weight(id);
  return BlockReduce(shared, sum, [](uint64_t a, uint64_t b) { return a + b; });
}

// bins[digit] += measure, for all lanes of a warp; a lane without a part in it
// has measure 0. Lanes of one digit add first.
__device__ void AddToBins(uint64_t* bins, int digit, uint64_t measure) {
  unsigned left = __ballot_sync(kAll, measure != 0);
  while (left != 0) {
    const int leader = __ffs(left) - 1;
    // By all lanes, whether they have a part or not.
    const int leading = __shfl_sync(kAll, digit, leader);
    const bool mine = measure != 0 && digit == leading;
    const unsigned same = __ballot_sync(kAll, mine);
    const uint64_t part = mine ? measure : 0;
    // A measure has 41 bits; these sums stay below 2^32.
    const uint64_t low =
        __reduce_add_sync(kAll, static_cast<uint32_t>(part & 0xfffff));
    const uint64_t high =
        __reduce_add_sync(kAll, static_cast<uint32_t>(part >> 20));
    if (threadIdx.x % 32 == leader) {
      atomicAdd(reinterpret_cast<unsigned long long*>(&bins[digit]),
                static_cast<unsigned long long>(low + (high << 20)));
    }
    left &= ~same;
  }
}

// The bin, from the top, at which the sum of bins reaches shared.need; what
// the bins above it have is taken off that. By one warp.
__device__ void FindBin(Shared& shared) {
  constexpr int kRun = kBins / 32;
  const int lane = threadIdx.x % 32;
  const int top = kBins - lane * kRun;  // lane 0 has the highest bins
  uint64_t sum = 0;
  for (int i = 1; i <= kRun; ++i) sum += shared.bins[top - i];
  uint64_t before = sum;
#pragma unroll
  for (int offset = 1; offset < 32; offset *= 2) {
    const uint64_t more = __shfl_up_sync(kAll, before, offset);
    if (lane >= offset) before += more;
  }
  before -= sum;
  const uint64_t need = shared.need;
  __syncwarp();
  if (before >= need || before + sum < need) return;
  for (int i = 1; i <= kRun; ++i) {
    const uint64_t bin = shared.bins[top - i];
    if (before + bin >= need) {
      shared.chosen = top - i;
      shared.need = need - before;
      return;
    }
    before += bin;
  }
}

// The least key of the shortest prefix, best first, whose measure is at least
// `need`: weights, or with `count` one each. need is in [1, the whole measure].
__device__ uint64_t LeastKey(Shared& shared, const Candidates& c, bool count,
                             uint64_t need) {
  uint64_t prefix = 0;
  __syncthreads();
  if (threadIdx.x == 0) shared.need = need;
  for (int d = 0; d < kDigits; ++d) {
    for (int i = threadIdx.x; i < kBins; i += kThreads) shared.bins[i] = 0;
    __syncthreads();
    const int above = d == 0 ? 0 : kShifts[d - 1];
    for (int first = threadIdx.x / 32 * 32; first < c.limit;
         first += kThreads) {
      const int id = first + threadIdx.x % 32;
      uint64_t measure = 0;
      int digit = 0;
      if (id < c.limit) {
        const uint64_t key = c.KeyOf(id);
        if (d == 0 || key >> above == prefix >> above) {
          measure = c.Weight(id);
          if (count && measure != 0) measure = 1;
          digit = static_cast<int>(key >> kShifts[d]) & ((1 << kWidths[d]) - 1);
        }
      }
      AddToBins(shared.bins, digit, measure);
    }
    __syncthreads();
    if (threadIdx.x < 32) FindBin(shared);
    __syncthreads();
    if (d == 3) prefix |= 0xfffc0000u;  // an id's high bits, complemented
    prefix |= shared.chosen << kShifts[d];
    __syncthreads();
  }
  return prefix;
}

// A fraction as a multiple of 2^-32: kernels/cpu/sample.cc.
__device__ uint64_t Fixed32(float fraction) {
  return static_cast<uint64_t>(static_cast<double>(fraction) * 4294967296.0);
}

// Philox4x32-10: kernels/cpu/philox.h.
__device__ uint64_t Philox64(uint64_t seed, uint64_t position) {
  uint32_t c[4] = {static_cast<uint32_t>(position),
                   static_cast<uint32_t>(position >> 32), 0, 0};
  uint32_t k0 = static_cast<uint32_t>(seed);
  uint32_t k1 = static_cast<uint32_t>(seed >> 32);
#pragma unroll
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = uint64_t{0xD2511F53} * c[0];
    const uint64_t b = uint64_t{0xCD9E8D57} * c[2];
    c[0] = static_cast<uint32_t>(b >> 32) ^ c[1] ^ k0;
    c[1] = static_cast<uint32_t>(b);
    c[2] = static_cast<uint32_t>(a >> 32) ^ c[3] ^ k1;
    c[3] = static_cast<uint32_t>(a);
    k0 += 0x9E3779B9;
    k1 += 0xBB67AE85;
  }
  return uint64_t{c[1]} << 32 | c[0];
}

// The first id, ascending, at which the sum of weights exceeds target: warp w
// has the w-th run of ids; the one that holds the place walks its run again.
__device__ int IdAt(Shared& shared, const Candidates& c, uint64_t target,
                    int otherwise) {
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  const int run = (c.limit + kThreads - 1) / kThreads * 32;
  const int first = warp * run;
  const int last = min(first + run, c.limit);
  uint64_t sum = 0;
  for (int id = first + lane; id < last; id += 32) sum += c.Weight(id);
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) {
    sum += __shfl_xor_sync(kAll, sum, offset);
  }
  __syncthreads();
  if (lane == 0) shared.warps[warp] = sum;
  if (threadIdx.x == 0) shared.chosen = otherwise;
  __syncthreads();
  uint64_t before = 0;
  for (int w = 0; w < warp; ++w) before += shared.warps[w];
  if (before <= target && before + sum > target) {
    for (int base = first; base < last; base += 32) {
      const int id = base + lane;
      uint64_t through = id < last ? c.Weight(id) : 0;
#pragma unroll
      for (int offset = 1; offset < 32; offset *= 2) {
        const uint64_t more = __shfl_up_sync(kAll, through, offset);
        if (lane >= offset) through += more;
      }
      const unsigned past = __ballot_sync(kAll, before + through > target);
      if (past != 0) {
        if (lane == 0) shared.chosen = base + __ffs(past) - 1;
        break;
      }
      before += __shfl_sync(kAll, through, 31);
    }
  }
  __syncthreads();
  return static_cast<int>(shared.chosen);
}

// cpu::Sample with a temperature, as kernels/ops.h defines it.
__device__ int Draw(Shared& shared, Candidates c, const SampleRow& row,
                    int best) {
  uint64_t total = Sum(shared, c);
  if (total == 0) return best;  // only with a NaN or all -inf
  const cpu::SamplingParameters& p = row.parameters;
  if (p.top_k > 0 && p.top_k < c.limit) {
    uint64_t mine = 0;
    for (int id = threadIdx.x; id < c.limit; id += kThreads) {
      mine += c.Weight(id) != 0;
    }
    const uint64_t count =
        BlockReduce(shared, mine, [](uint64_t a, uint64_t b) { return a + b; });
    if (static_cast<uint64_t>(p.top_k) < count) {
      c.least_key = LeastKey(shared, c, /*count=*/true, p.top_k);
      total = Sum(shared, c);
    }
  }
  if (p.top_p < 1.0f) {
    // The least sum with sum * 2^32 >= total * top_p, and one id at least.
    const uint64_t fraction = Fixed32(p.top_p);
    const uint64_t low = total * fraction;
    const uint64_t high = __umul64hi(total, fraction);
    uint64_t need = high << 32 | low >> 32;
    if ((low & 0xffffffff) != 0) ++need;
    if (need == 0) need = 1;
    c.least_key = LeastKey(shared, c, /*count=*/false, need);
    total = Sum(shared, c);
  }
  if (p.min_p > 0.0f) {
    const uint64_t least = Fixed32(p.min_p) << (kWeightBits - 32);
    c.least_weight = least > 1 ? least : 1;
    total = Sum(shared, c);
  }
  const uint64_t uniform = Philox64(row.seed, row.position);
  return IdAt(shared, c, __umul64hi(uniform, total), best);
}

// The likeliest ids, in order.
__device__ void StoreTop(Shared& shared, const float* logits, int limit,
                         int count, SampledRow& sampled) {
  const Candidates all = {
      .logits = logits, .limit = limit, .highest = 0.0f, .temperature = 0.0f};
  count = min(count, limit);
  if (threadIdx.x == 0) shared.best_count = 0;
  const uint64_t least = LeastKey(shared, all, /*count=*/true, count);
  for (int id = threadIdx.x; id < limit; id += kThreads) {
    const uint64_t key = all.KeyOf(id);
    if (key >= least) shared.best[atomicAdd(&shared.best_count, 1)] = key;
  }
  __syncthreads();
  if (threadIdx.x >= count) return;
  const uint64_t mine = shared.best[threadIdx.x];
  int rank = 0;
  for (int i = 0; i < count; ++i) rank += shared.best[i] > mine;
  const int id = KeyId(mine);
  sampled.top_ids[rank] = id;
  sampled.top_log_probs[rank] =
      static_cast<float>(static_cast<double>(logits[id]) - shared.log_sum_exp);
}

__global__ void __launch_bounds__(kThreads, 1)
    SampleKernel(const float* all_logits, int vocabulary, int limit,
                 const SampleRow* rows, SampledRow* all_sampled) {
  extern __shared__ std::byte memory[];
  auto& shared = *reinterpret_cast<Shared*>(memory);
  AllowNextKernel();
  // No kernel writes these; they may lie on the host.
  const SampleRow row = rows[blockIdx.x];
  WaitForPriorKernel();
  const float* logits = all_logits + int64_t{blockIdx.x} * vocabulary;
  SampledRow& sampled = all_sampled[blockIdx.x];

  uint64_t mine = 0;                           // of the ids that may be chosen
  float highest = __int_as_float(0xff800000);  // of all
  bool finite = true;
#pragma unroll 16
  for (int id = threadIdx.x; id < vocabulary; id += kThreads) {
    const float logit = logits[id];
    finite = finite && isfinite(logit);
    highest = fmaxf(highest, logit);
    if (id < limit) {
      const uint64_t key = Key(logit, id);
      mine = key > mine ? key : mine;
    }
  }
  const auto larger = [](uint64_t a, uint64_t b) { return a > b ? a : b; };
  const int best = KeyId(BlockReduce(shared, mine, larger));
  finite = __syncthreads_and(finite);

  int id = row.given_id;
  if (id < 0) {
    id = best;
    if (row.parameters.temperature > 0.0f) {
      id = Draw(shared,
                {.logits = logits,
                 .limit = limit,
                 .highest = logits[best],
                 .temperature = row.parameters.temperature},
                row, best);
    }
  }
  if (threadIdx.x == 0) {
    sampled.id = id;
    sampled.finite = finite;
  }
  if (!row.log_prob && row.top_log_probs == 0) return;
  const uint64_t top = BlockReduce(shared, Key(highest, 0), larger);
  const double log_sum_exp =
      LogSumExp<kThreads>(logits, vocabulary, KeyValue(top), shared.run_sums);
  if (threadIdx.x == 0) {
    shared.log_sum_exp = log_sum_exp;
    sampled.log_prob =
        static_cast<float>(static_cast<double>(logits[id]) - log_sum_exp);
  }
  __syncthreads();
  if (row.top_log_probs > 0) {
    StoreTop(shared, logits, limit, min(row.top_log_probs, kMaxTopLogProbs),
             sampled);
  }
}

}  // namespace

void Sample(const float* logits, int64_t row_count, int64_t vocabulary,
            int64_t limit, const SampleRow* rows, SampledRow* sampled,
            const LaunchOptions& options) {
  if (row_count == 0) return;
  Launch(SampleKernel,
         {.grid = dim3(row_count),
          .threads = kThreads,
          .shared_bytes = sizeof(Shared)},
         options, "Sample", logits, static_cast<int>(vocabulary),
         static_cast<int>(limit), rows, sampled);
}

}  // namespace invar::cuda
