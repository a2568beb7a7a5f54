// Cuts a step report into messages that fit the link.
#ifndef INVAR_WORKER_LINK_REPORT_SPLITTER_H_
#define INVAR_WORKER_LINK_REPORT_SPLITTER_H_

#include <cstdint>
#include <vector>

#include "invar/worker/v1/link.pb.h"

namespace invar {

// The report in parts of the same step, each at most `max_bytes` when wrapped
// in an AttachRequest, in an order that keeps every attempt's own: its prompt
// log-probabilities, its tokens, its terminal. All parts carry the credits,
// which are cumulative. `max_bytes` is at least 16 KiB (the least
// link_message_bytes, common/config.cc), more than the largest position with
// its alternatives needs.
std::vector<worker::v1::AttachRequest> SplitReport(
    worker::v1::StepReport report, int64_t max_bytes);

}  // namespace invar

#endif  // INVAR_WORKER_LINK_REPORT_SPLITTER_H_
