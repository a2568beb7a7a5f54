#include "client/selftest/selftest.h"

#include <algorithm>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "client/selftest/dimensions.h"
#include "client/selftest/probes.h"
#include "common/numerics.h"

namespace invar {
namespace {

ProbeSizes SizesFor(const SelfTestOptions& options, int32_t context) {
  ProbeSizes sizes;
  if (options.full) {
    sizes.probes = 32;
    sizes.output_tokens = 96;
    sizes.prompt_tokens_max = 400;
    sizes.long_prompt_tokens = 2100;
  }
  // A small model's context may be shorter than that.
  sizes.output_tokens = std::min(sizes.output_tokens, context / 4);
  sizes.prompt_tokens_max = std::min(sizes.prompt_tokens_max, context / 2);
  sizes.long_prompt_tokens = std::min(sizes.long_prompt_tokens, context / 2);
  return sizes;
}

// Finds the pool and says it in `test`.
void ChoosePool(const v1::GetServerInfoResponse& info,
                const std::string& fingerprint, SelfTest* test) {
  std::string pools;
  for (const v1::Pool& pool : info.pools()) {
    const std::string& one = pool.numerics().fingerprint();
    if (absl::StartsWith(one, fingerprint)) {
      test->model = info.model();
      test->fingerprint = one;
      test->mode = PlanEntry(pool.numerics(), "mode");
      return;
    }
    absl::StrAppend(&pools, pools.empty() ? "" : ", ", one);
  }
  test->status =
      info.pools().empty()
          ? grpc::Status(grpc::StatusCode::UNAVAILABLE, "no worker is ready")
          : grpc::Status(grpc::StatusCode::NOT_FOUND,
                         absl::StrCat("no pool has the fingerprint ",
                                      fingerprint, "; there is ", pools));
}

}  // namespace

bool SelfTest::Passed() const {
  return status.ok() &&
         std::all_of(rows.begin(), rows.end(), [](const SelfTestRow& row) {
           return row.differing_bits == 0;
         });
}

SelfTest RunSelfTest(Client& client, const SelfTestOptions& options,
                     const std::function<void(const SelfTestRow&)>& on_row) {
  SelfTest test;
  v1::GetServerInfoResponse info;
  test.status = client.GetServerInfo(options.pool.call, &info);
  if (test.status.ok()) ChoosePool(info, options.fingerprint, &test);
  if (!test.status.ok()) return test;

  Asker asker(client, options.pool);
  Probes probes(options.seed, SizesFor(options, info.max_context_tokens()),
                info.vocab_size(), test.fingerprint);
  for (const Dimension& dimension : Dimensions()) {
    const DimensionResult result = dimension.run(asker, probes);
    test.status = asker.status();
    if (!test.status.ok()) return test;
    const Comparison& comparison = result.comparison;
    test.rows.push_back({dimension.name, dimension.covers, result.cells,
                         comparison.values(), comparison.differing_bits(),
                         comparison.first_difference(), result.note});
    on_row(test.rows.back());
  }
  return test;
}

}  // namespace invar
