// The gRPC channels to one aggregator, shared by all identities of a daemon, and what every call on them needs: the identity's
// metadata, errors as absl::Status with the server's push-back delay, and a way to end all blocking calls at shutdown.
// Two channels, each with a TCP connection of its own: control streams (heart-beats, tasks) on one, everything else on the other, so
// that a large transfer cannot make its client look dead (dataplane.md §1 (10), T20).
// Keep-alive 20 s / 10 s finds half-open links. The channels' own reconnect backoff stays short (100 ms to 2 s): the sessions'
// backoff is the one that counts.
// Threads: safe.
#pragma once

#include <absl/base/thread_annotations.h>
#include <absl/synchronization/mutex.h>
#include <absl/time/time.h>
#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/grpcpp.h>

#include <memory>
#include <optional>
#include <set>
#include <string>

#include "common/status.h"
#include "tributary/v1/federation.grpc.pb.h"

namespace tributary::client {

// Who calls. `secret` is 64 hex digits, bound to the id by the server at first contact.
struct Identity {
  std::string client;
  std::string secret;
};

// How a call failed. push_back: the delay the server asked for (RetryInfo), if it did.
struct CallError {
  absl::Status status;
  std::optional<absl::Duration> push_back;
};

class Connection {
 public:
  // `server`: HOST:PORT or unix:PATH. Each channel connects on first use.
  explicit Connection(const std::string& server);

  // For Attach, and for nothing else.
  v1::Federation::Stub& control() { return *control_; }
  // For all other calls; generic() is the same channel, for messages of raw bytes.
  v1::Federation::Stub& data() { return *data_; }
  grpc::GenericStub& generic() { return generic_; }
  const std::string& server() const { return server_; }

  // The server's socket for local transfer, from its latest Welcome; empty: none, or it turned out not to be reachable from here.
  void set_local_address(std::string address);
  std::string local_address() const;

  static void AddIdentity(grpc::ClientContext& context, const Identity& identity);

  // Registers a blocking call for CancelAll as long as it lives. After CancelAll the context is cancelled at once.
  class Call {
   public:
    Call(Connection& connection, const Identity& identity, absl::Duration timeout);
    ~Call();
    Call(const Call&) = delete;
    Call& operator=(const Call&) = delete;
    grpc::ClientContext& context() { return context_; }

   private:
    Connection& connection_;
    grpc::ClientContext context_;
  };

  // Ends every call made through Call, now and from now on.
  void CancelAll();
  bool cancelled() const;
  // Waits; false if CancelAll came before the time was over.
  bool Sleep(absl::Duration time) const;

  // Code, message and push-back of a finished call that failed.
  static CallError ErrorOf(const grpc::Status& status, const std::string& what);

 private:
  const std::string server_;
  std::unique_ptr<v1::Federation::Stub> control_;
  std::shared_ptr<grpc::Channel> data_channel_;  // gRPC hands channels out shared
  std::unique_ptr<v1::Federation::Stub> data_;
  grpc::GenericStub generic_;
  mutable absl::Mutex mutex_;
  bool cancelled_ ABSL_GUARDED_BY(mutex_) = false;
  std::string local_address_ ABSL_GUARDED_BY(mutex_);
  std::set<grpc::ClientContext*> calls_ ABSL_GUARDED_BY(mutex_);
};

// Whether trying the same call again later can help (the network, a restart, a shortage), or not (the request itself is wrong).
bool IsRetryable(const absl::Status& status);

}  // namespace tributary::client
