#include <algorithm>
#include <cmath>

#include "kernels/cpu/math.h"
#include "kernels/ops.h"

namespace invar::cpu {
namespace {

constexpr double kPi = 0x1.921fb54442d18p+1;

// m(s, a): how much YaRN sharpens the softmax for a context s times longer.
double Magnitude(double factor, double mscale) {
  return factor > 1.0 ? 0.1 * mscale * Log(factor) + 1.0 : 1.0;
}

// The pair index whose wave turns `turns` times over the original context.
double PairOfTurns(double turns, int64_t rope_dim, double theta,
                   double positions) {
  return static_cast<double>(rope_dim) * Log(positions / (turns * 2.0 * kPi)) /
         (2.0 * Log(theta));
}

}  // namespace

RopeTable MakeRopeTable(int64_t rope_dim, double theta,
                        const YarnScaling& scaling) {
  RopeTable table;
  const double dim = static_cast<double>(rope_dim);
  // floor and ceil are exact, whatever library has them.
  const double low =
      std::max(std::floor(PairOfTurns(scaling.beta_fast, rope_dim, theta,
                                      scaling.original_max_positions)),
               0.0);
  double high =
      std::min(std::ceil(PairOfTurns(scaling.beta_slow, rope_dim, theta,
                                     scaling.original_max_positions)),
               dim - 1.0);
  if (low == high) high += 0.001;
  for (int64_t i = 0; i < rope_dim / 2; ++i) {
    const double pair = static_cast<double>(i);
    const double frequency = Pow(theta, -2.0 * pair / dim);
    const double ramp = std::clamp((pair - low) / (high - low), 0.0, 1.0);
    table.frequencies.push_back(frequency / scaling.factor * ramp +
                                frequency * (1.0 - ramp));
  }
  const double magnitude = Magnitude(scaling.factor, scaling.mscale_all_dim);
  table.attention_factor = magnitude * magnitude;
  table.amplitude = scaling.mscale != 0.0 && scaling.mscale_all_dim != 0.0
                        ? Magnitude(scaling.factor, scaling.mscale) / magnitude
                        : Magnitude(scaling.factor, 1.0);
  return table;
}

void RopeAngles(const RopeTable& table, std::span<const int64_t> positions,
                float* cosines, float* sines) {
  for (const int64_t position : positions) {
    for (const double frequency : table.frequencies) {
      double sine;
      double cosine;
      SinCos(static_cast<double>(position) * frequency, &sine, &cosine);
      *cosines++ = static_cast<float>(cosine * table.amplitude);
      *sines++ = static_cast<float>(sine * table.amplitude);
    }
  }
}

void RopeApply(ThreadPool& pool, const float* cosines, const float* sines,
               int64_t tokens, int64_t heads, int64_t rope_dim, float* x,
               int64_t token_stride, int64_t head_stride) {
  const int64_t pairs = rope_dim / 2;
  // Pairs are turned one by one.
  pool.ParallelForRows(tokens, 8 * heads * pairs,
                       [&](int64_t begin, int64_t end) {
                         for (int64_t t = begin; t < end; ++t) {
                           const float* c = cosines + t * pairs;
                           const float* s = sines + t * pairs;
                           for (int64_t h = 0; h < heads; ++h) {
                             float* v = x + t * token_stride + h * head_stride;
                             for (int64_t i = 0; i < pairs; ++i) {
                               const float a = v[2 * i];
                               const float b = v[2 * i + 1];
                               v[2 * i] = a * c[i] - b * s[i];
                               v[2 * i + 1] = a * s[i] + b * c[i];
                             }
                           }
                         }
                       });
}

}  // namespace invar::cpu
