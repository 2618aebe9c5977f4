#pragma once
// The calls of regatta.v1.Control, answered from a mailbox. Used by gRPC's threads.

#include <grpcpp/grpcpp.h>
#include <regatta/v1/control.grpc.pb.h>

#include <atomic>
#include <mutex>
#include <string>
#include <vector>

#include "runtime/control/mailbox.h"

namespace regatta::control {

class Service final : public regatta::v1::Control::Service {
 public:
  /// An empty token lets everybody in who can connect.
  Service(Mailbox& mailbox, std::string token) : mailbox_(mailbox), token_(std::move(token)) {}

  grpc::Status GetStatus(grpc::ServerContext*, const v1::GetStatusRequest*, v1::Status*) override;
  grpc::Status GetPlan(grpc::ServerContext*, const v1::GetPlanRequest*, v1::Plan*) override;
  grpc::Status WatchSteps(grpc::ServerContext*, const v1::WatchStepsRequest*, grpc::ServerWriter<v1::Step>*) override;
  grpc::Status SetHyperparameters(grpc::ServerContext*, const v1::SetHyperparametersRequest*,
                                  v1::CommandReply*) override;
  grpc::Status SaveCheckpoint(grpc::ServerContext*, const v1::SaveCheckpointRequest*, v1::CommandReply*) override;
  grpc::Status Pause(grpc::ServerContext*, const v1::PauseRequest*, v1::CommandReply*) override;
  grpc::Status Resume(grpc::ServerContext*, const v1::ResumeRequest*, v1::CommandReply*) override;
  grpc::Status Drain(grpc::ServerContext*, const v1::DrainRequest*, v1::CommandReply*) override;

  /// Cuts off watchers that were dropped a while ago and whose last message still does not go out. Called now and then.
  void cut_stuck_watchers();

 private:
  struct Stream {
    grpc::ServerContext* context;
    std::shared_ptr<Watcher> watcher;
    int seen_dropped = 0;
  };

  grpc::Status admit(const grpc::ServerContext& context) const;
  grpc::Status command(grpc::ServerContext& context, Request request, v1::CommandReply& reply);
  grpc::Status simple(grpc::ServerContext& context, Command::Kind kind, v1::CommandReply& reply);

  Mailbox& mailbox_;
  std::string token_;
  std::mutex streams_mutex_;
  std::vector<Stream> streams_;
};

}  // namespace regatta::control
