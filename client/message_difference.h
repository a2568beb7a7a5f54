// Where two messages differ.
#ifndef INVAR_CLIENT_MESSAGE_DIFFERENCE_H_
#define INVAR_CLIENT_MESSAGE_DIFFERENCE_H_

#include <google/protobuf/message.h>

#include <optional>
#include <set>
#include <string>

namespace invar {

struct FieldDifference {
  std::string path;  // "answers[0].completion.receipt.seed"
  // As text, shortened; "absent", or "3 entries" for the number of them.
  std::string left;
  std::string right;
};

// The first field, in the order of their numbers, in which two messages of one
// type differ: floats by their bits, maps by key. Finds every field of the
// type, those that are yet to be added too, but for `ignored`, full names as
// "invar.v1.Usage.cached_tokens".
std::optional<FieldDifference> FirstFieldDifference(
    const google::protobuf::Message& left,
    const google::protobuf::Message& right,
    const std::set<std::string>& ignored = {});

}  // namespace invar

#endif  // INVAR_CLIENT_MESSAGE_DIFFERENCE_H_
