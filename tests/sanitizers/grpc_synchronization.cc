// Tells ThreadSanitizer what gRPC orders without a lock.
//
// gRPC hands an operation to its threads and back through atomics of its own,
// which TSan cannot see. What it promises is told here, and no more: a batch
// begins before its own callback runs, a call's reactions end before OnDone
// begins, and a call is over before its server is destroyed. Each edge has one
// object of its own, so that no two callbacks are held to be ordered because
// both passed through gRPC.
#include <grpc/grpc.h>
#include <grpcpp/support/server_callback.h>
#include <sanitizer/tsan_interface.h>

#include "absl/status/status.h"
#include "tests/sanitizers/real.h"

namespace {

using invar::Real;

// Calls that ended, for whoever destroys their server.
char calls_ended;

// Stands for a reactor in its OnCancel, which gRPC counts as a reaction when
// it returns.
class CancelReaction : public grpc::internal::ServerReactor {
 public:
  CancelReaction(grpc::internal::ServerReactor* reactor, void* reactions)
      : reactor_(reactor), reactions_(reactions) {}

  void OnCancel() override {
    reactor_->OnCancel();
    __tsan_release(reactions_);
    delete this;
  }
  void OnDone() override {}
  bool InternalInlineable() override { return reactor_->InternalInlineable(); }

 private:
  grpc::internal::ServerReactor* const reactor_;
  void* const reactions_;
};

}  // namespace

extern "C" {

// ThreadSanitizer's, which no header declares.
void AnnotateIgnoreWritesBegin(const char* file, int line);
void AnnotateIgnoreWritesEnd(const char* file, int line);

grpc_call_error grpc_call_start_batch(grpc_call* call, const grpc_op* ops,
                                      size_t count, void* tag, void* reserved) {
  static const auto real = Real(&grpc_call_start_batch);
  __tsan_release(tag);
  return real(call, ops, count, tag, reserved);
}

grpc_event grpc_completion_queue_pluck(grpc_completion_queue* queue, void* tag,
                                       gpr_timespec deadline, void* reserved) {
  static const auto real = Real(&grpc_completion_queue_pluck);
  const grpc_event event = real(queue, tag, deadline, reserved);
  if (event.type == GRPC_OP_COMPLETE) __tsan_acquire(event.tag);
  return event;
}

void grpc_call_unref(grpc_call* call) {
  static const auto real = Real(&grpc_call_unref);
  __tsan_release(&calls_ended);
  real(call);
}

void grpc_server_destroy(grpc_server* server) {
  static const auto real = Real(&grpc_server_destroy);
  real(server);
  __tsan_acquire(&calls_ended);
}

// grpc::internal::CallbackWithSuccessTag::StaticRun, which is inline and
// private: gRPC's threads run each callback of a batch through it.
void RunCallback(grpc_completion_queue_functor* tag, int ok) __asm__(
    "_ZN4grpc8internal22CallbackWithSuccessTag9StaticRunEP29grpc_completion_"
    "queue_functori");
void RunCallback(grpc_completion_queue_functor* tag, int ok) {
  static const auto real = Real(&RunCallback);
  __tsan_acquire(tag);
  real(tag, ok);
}

// grpc::ClientContext's destructor. The last reference to a channel may be its
// own; what it then frees is freed by a tail call, so that thread.supp's
// called_from_lib sees the library's caller, not the library.
void DestroyContext(void* context) __asm__("_ZN4grpc13ClientContextD1Ev");
void DestroyContext(void* context) {
  static const auto real = Real(&DestroyContext);
  AnnotateIgnoreWritesBegin(__FILE__, __LINE__);
  real(context);
  AnnotateIgnoreWritesEnd(__FILE__, __LINE__);
}

}  // extern "C"

namespace grpc::internal {

// Called when the counter is down. The header counts in instrumented code, the
// library may have done the last step.
void ServerCallbackCall::ScheduleOnDone(bool inline_ondone) {
  static const auto real = Real(&ServerCallbackCall::ScheduleOnDone);
  __tsan_acquire(&callbacks_outstanding_);
  (this->*real)(inline_ondone);
}

void ServerCallbackCall::CallOnCancel(ServerReactor* reactor) {
  static const auto real = Real(&ServerCallbackCall::CallOnCancel);
  __tsan_acquire(&on_cancel_conditions_remaining_);
  (this->*real)(new CancelReaction(reactor, &callbacks_outstanding_));
}

}  // namespace grpc::internal

namespace absl {
ABSL_NAMESPACE_BEGIN

// The last reference frees what the others have read.
void Status::UnrefNonInlined(uintptr_t representation) {
  static const auto real = Real(&Status::UnrefNonInlined);
  void* const shared = reinterpret_cast<void*>(representation & ~uintptr_t{3});
  __tsan_release(shared);
  __tsan_acquire(shared);
  real(representation);
}

ABSL_NAMESPACE_END
}  // namespace absl
