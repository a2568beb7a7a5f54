// Requests and responses as bytes. The handlers read their requests themselves
// because gRPC answers UNIMPLEMENTED, without a word, to a message that does
// not parse, such as a string that is not UTF-8.
#ifndef INVAR_SCHEDULER_API_WIRE_H_
#define INVAR_SCHEDULER_API_WIRE_H_

#include <google/protobuf/message.h>
#include <grpcpp/grpcpp.h>

namespace invar::scheduler {

// INVALID_ARGUMENT names the field whose string is not UTF-8, or says that the
// bytes are no such message.
grpc::Status ParseRequest(const grpc::ByteBuffer& bytes,
                          google::protobuf::Message* request);

grpc::ByteBuffer SerializeResponse(const google::protobuf::Message& response);

}  // namespace invar::scheduler

#endif  // INVAR_SCHEDULER_API_WIRE_H_
