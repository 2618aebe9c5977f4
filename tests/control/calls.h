#pragma once
// The eight calls of a control service, by name; "dry run" is SetHyperparameters that only asks.

#include <grpcpp/grpcpp.h>
#include <regatta/v1/control.grpc.pb.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "runtime/control/server.h"
#include "tests/control/waiting.h"

namespace regatta::testing {

namespace v1 = regatta::v1;

using Headers = std::vector<std::pair<std::string, std::string>>;

inline const std::vector<std::string> call_names{"GetStatus", "GetPlan",        "WatchSteps", "SetHyperparameters",
                                                 "dry run",   "SaveCheckpoint", "Pause",      "Resume",
                                                 "Drain"};

/// Ends a hang, nothing else.
inline void limit(grpc::ClientContext& context) {
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::minutes(2));
}

class Calls {
 public:
  explicit Calls(const std::string& address)
      : stub_(v1::Control::NewStub(grpc::CreateChannel(address, grpc::InsecureChannelCredentials()))) {}

  v1::Control::Stub& stub() const { return *stub_; }

  grpc::Status set(const v1::SetHyperparametersRequest& request, v1::CommandReply& reply,
                   const Headers& headers = {}) const {
    grpc::ClientContext context;
    limit(context);
    for (const auto& [key, value] : headers) context.AddMetadata(key, value);
    return stub_->SetHyperparameters(&context, request, &reply);
  }

  /// Makes the call with empty messages. A watcher that gets a step has been let in, and leaves; so somebody must
  /// publish some.
  grpc::Status make(const std::string& name, const Headers& headers) const {
    grpc::ClientContext context;
    limit(context);
    for (const auto& [key, value] : headers) context.AddMetadata(key, value);
    v1::CommandReply reply;
    v1::Status status;
    v1::Plan plan;
    if (name == "GetStatus") return stub_->GetStatus(&context, {}, &status);
    if (name == "GetPlan") return stub_->GetPlan(&context, {}, &plan);
    if (name == "dry run") {
      v1::SetHyperparametersRequest request;
      request.set_dry_run(true);
      return set(request, reply, headers);
    }
    if (name == "SetHyperparameters") return stub_->SetHyperparameters(&context, {}, &reply);
    if (name == "SaveCheckpoint") return stub_->SaveCheckpoint(&context, {}, &reply);
    if (name == "Pause") return stub_->Pause(&context, {}, &reply);
    if (name == "Resume") return stub_->Resume(&context, {}, &reply);
    if (name == "Drain") return stub_->Drain(&context, {}, &reply);
    const auto reader = stub_->WatchSteps(&context, {});
    v1::Step step;
    const bool let_in = reader->Read(&step);
    if (let_in) context.TryCancel();
    const grpc::Status end = reader->Finish();
    return let_in ? grpc::Status::OK : end;
  }

 private:
  std::unique_ptr<v1::Control::Stub> stub_;
};

}  // namespace regatta::testing
