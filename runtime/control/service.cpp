#include "runtime/control/service.h"

#include <algorithm>

#include "runtime/control/messages.h"

namespace regatta::control {
namespace {

// Takes as long for a wrong token as for the right one.
bool same(std::string_view given, std::string_view expected) {
  unsigned difference = given.size() == expected.size() ? 0 : 1;
  for (std::size_t i = 0; i < given.size(); ++i)
    difference |= static_cast<unsigned char>(given[i]) ^ static_cast<unsigned char>(expected[i % expected.size()]);
  return difference == 0;
}

std::string metadata(const grpc::ServerContext& context, const char* name) {
  const auto at = context.client_metadata().find(name);
  return at == context.client_metadata().end() ? "" : std::string(at->second.data(), at->second.size());
}

// What TLS proved comes first; the user is what the client says.
std::string who(const grpc::ServerContext& context) {
  constexpr std::size_t longest = 64;
  std::string text;
  if (const auto auth = context.auth_context(); auth && auth->IsPeerAuthenticated()) {
    for (const grpc::string_ref& name : auth->FindPropertyValues("x509_common_name"))
      text += "CN=" + std::string(name.data(), name.size()) + " ";
  }
  const std::string user = metadata(context, "x-regatta-user");
  if (!user.empty()) text += "user=" + user.substr(0, longest) + " ";
  return text + context.peer();
}

}  // namespace

grpc::Status Service::admit(const grpc::ServerContext& context) const {
  if (token_.empty()) return grpc::Status::OK;
  const std::string given = metadata(context, "authorization");
  if (given.empty()) return {grpc::StatusCode::UNAUTHENTICATED, "this job asks for a token, and none was sent"};
  if (!same(given, "Bearer " + token_)) return {grpc::StatusCode::UNAUTHENTICATED, "the token is not this job's"};
  return grpc::Status::OK;
}

grpc::Status Service::command(grpc::ServerContext& context, Request request, v1::CommandReply& reply) {
  if (grpc::Status status = admit(context); !status.ok()) return status;
  request.who = who(context);
  reply.set_dry_run(request.dry_run);
  return fill(reply, mailbox_.send(std::move(request), [&] { return context.IsCancelled(); }));
}

grpc::Status Service::simple(grpc::ServerContext& context, Command::Kind kind, v1::CommandReply& reply) {
  Request request;
  request.command.kind = kind;
  return command(context, std::move(request), reply);
}

grpc::Status Service::GetStatus(grpc::ServerContext* context, const v1::GetStatusRequest*, v1::Status* reply) {
  if (grpc::Status status = admit(*context); !status.ok()) return status;
  fill(*reply, mailbox_.view(), mailbox_.job());
  return grpc::Status::OK;
}

grpc::Status Service::GetPlan(grpc::ServerContext* context, const v1::GetPlanRequest*, v1::Plan* reply) {
  if (grpc::Status status = admit(*context); !status.ok()) return status;
  if (mailbox_.view().state == State::starting)
    return {grpc::StatusCode::FAILED_PRECONDITION, "the job is still starting and has no plan yet"};
  fill(*reply, mailbox_.job());
  return grpc::Status::OK;
}

grpc::Status Service::WatchSteps(grpc::ServerContext* context, const v1::WatchStepsRequest*,
                                 grpc::ServerWriter<v1::Step>* writer) {
  if (grpc::Status status = admit(*context); !status.ok()) return status;
  const std::shared_ptr<Watcher> watcher = mailbox_.watch();
  if (!watcher) {
    return {grpc::StatusCode::RESOURCE_EXHAUSTED,
            std::to_string(Mailbox::most_watchers) + " clients watch this job already"};
  }
  {
    const std::lock_guard lock(streams_mutex_);
    streams_.push_back({context, watcher});
  }
  const auto watch = [&]() -> grpc::Status {
    while (!context->IsCancelled()) {
      StepFacts facts;
      v1::Step message;
      switch (watcher->next(facts, std::chrono::milliseconds(200))) {
        case Watcher::Got::nothing: continue;
        case Watcher::Got::ended: return grpc::Status::OK;
        case Watcher::Got::step:
          fill(message, facts);
          if (writer->Write(message)) continue;
          if (!watcher->dropped()) return grpc::Status::CANCELLED;
          [[fallthrough]];
        case Watcher::Got::dropped:
          return {grpc::StatusCode::RESOURCE_EXHAUSTED,
                  "this reader fell " + std::to_string(Watcher::capacity) + " steps behind and was dropped"};
      }
    }
    return grpc::Status::CANCELLED;
  };
  const grpc::Status status = watch();
  const std::lock_guard lock(streams_mutex_);
  std::erase_if(streams_, [&](const Stream& stream) { return stream.context == context; });
  return status;
}

void Service::cut_stuck_watchers() {
  constexpr int patience = 10;  // calls
  const std::lock_guard lock(streams_mutex_);
  for (Stream& stream : streams_)
    if (stream.watcher->dropped() && ++stream.seen_dropped == patience) stream.context->TryCancel();
}

grpc::Status Service::SetHyperparameters(grpc::ServerContext* context, const v1::SetHyperparametersRequest* asked,
                                         v1::CommandReply* reply) {
  Request request;
  request.group = asked->group();
  request.dry_run = asked->dry_run();
  Command& to = request.command;
  to.kind = Command::Kind::set;
  const auto take = [&](bool given, Command::Field field, double value, double& place) {
    if (!given) return;
    to.fields |= field;
    place = value;
  };
  take(asked->has_lr(), Command::lr_given, asked->lr(), to.lr);
  take(asked->has_weight_decay(), Command::weight_decay_given, asked->weight_decay(), to.weight_decay);
  take(asked->has_momentum(), Command::momentum_given, asked->momentum(), to.momentum);
  take(asked->has_rho(), Command::rho_given, asked->rho(), to.rho);
  take(asked->has_clip(), Command::clip_given, asked->clip(), to.clip);
  return command(*context, std::move(request), *reply);
}

grpc::Status Service::SaveCheckpoint(grpc::ServerContext* context, const v1::SaveCheckpointRequest*,
                                     v1::CommandReply* reply) {
  return simple(*context, Command::Kind::save, *reply);
}

grpc::Status Service::Pause(grpc::ServerContext* context, const v1::PauseRequest*, v1::CommandReply* reply) {
  return simple(*context, Command::Kind::pause, *reply);
}

grpc::Status Service::Resume(grpc::ServerContext* context, const v1::ResumeRequest*, v1::CommandReply* reply) {
  return simple(*context, Command::Kind::resume, *reply);
}

grpc::Status Service::Drain(grpc::ServerContext* context, const v1::DrainRequest*, v1::CommandReply* reply) {
  return simple(*context, Command::Kind::drain, *reply);
}

}  // namespace regatta::control
