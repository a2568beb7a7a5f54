// What the commands print under --json.
#ifndef INVAR_CLIENT_CLI_JSON_H_
#define INVAR_CLIENT_CLI_JSON_H_

#include <nlohmann/json.hpp>
#include <string>

#include "client/client.h"
#include "invar/v1/inference.pb.h"

namespace invar {

// The double that prints with at most 9 significant digits and reads back,
// as a float, to the same bits.
double JsonNumber(float value);

// An answer. With one answer its fields (text, token_ids, finish_reason, ...)
// stand at the top beside those of the request; with more, in `answers`.
nlohmann::ordered_json ToJson(const v1::GenerateOnceResponse& response,
                              const GenerateMetadata& metadata);

// One line, no line feed. Bytes that are not UTF-8 become U+FFFD.
std::string Dump(const nlohmann::ordered_json& json);

}  // namespace invar

#endif  // INVAR_CLIENT_CLI_JSON_H_
