// The version that every process reports.
#ifndef INVAR_COMMON_VERSION_H_
#define INVAR_COMMON_VERSION_H_

namespace invar {

inline constexpr char kVersion[] = "0.1.0";

// The worker link's protocol version (Hello.protocol_version).
inline constexpr int kLinkProtocolVersion = 1;

}  // namespace invar

#endif  // INVAR_COMMON_VERSION_H_
