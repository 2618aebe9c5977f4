#include "cli/ctl/client.h"

#include <grpc/support/log.h>
#include <pwd.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <fstream>
#include <sstream>

#include "runtime/error.h"

namespace regatta::cli {
namespace {

constexpr double query_seconds = 15;
constexpr double command_seconds = 600;  // a command is answered at the end of a step

std::string contents(const std::string& path, const char* flag) {
  std::ifstream file(path, std::ios::binary);
  std::stringstream text;
  text << file.rdbuf();
  if (!file || text.str().empty())
    throw Error(Code::invalid_argument, std::string(flag) + " " + path + " cannot be read or is empty");
  return text.str();
}

std::shared_ptr<grpc::Channel> connect(const CtlSettings& s) {
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(256 << 20);  // plans of large models
  arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  const bool any = !s.tls_cert.empty() || !s.tls_key.empty() || !s.tls_ca.empty();
  if (!any) return grpc::CreateCustomChannel(s.address, grpc::InsecureChannelCredentials(), arguments);
  if (s.tls_cert.empty() || s.tls_key.empty() || s.tls_ca.empty())
    throw Error(Code::invalid_argument, "--tls-cert, --tls-key and --tls-ca go together");
  if (!s.tls_name.empty()) arguments.SetSslTargetNameOverride(s.tls_name);
  return grpc::CreateCustomChannel(
      s.address,
      grpc::SslCredentials(
          {contents(s.tls_ca, "--tls-ca"), contents(s.tls_key, "--tls-key"), contents(s.tls_cert, "--tls-cert")}),
      arguments);
}

std::string user_and_host() {
  char host[256] = "";
  gethostname(host, sizeof host - 1);
  const passwd* entry = getpwuid(getuid());
  return std::string(entry ? entry->pw_name : "?") + "@" + host;
}

}  // namespace

CtlClient::CtlClient(const CtlSettings& settings) : settings_(settings) {
  if (std::getenv("GRPC_VERBOSITY") == nullptr)
    gpr_set_log_function([](gpr_log_func_args*) {});  // errors are told once
  if (!settings.token_file.empty()) {
    token_ = contents(settings.token_file, "--token-file");
    while (!token_.empty() && (token_.back() == '\n' || token_.back() == '\r' || token_.back() == ' '))
      token_.pop_back();
  }
  stub_ = v1::Control::NewStub(connect(settings));
}

void CtlClient::prepare(grpc::ClientContext& context, double seconds) const {
  if (settings_.timeout_seconds > 0) seconds = settings_.timeout_seconds;
  if (seconds > 0)
    context.set_deadline(std::chrono::system_clock::now() +
                         std::chrono::milliseconds(static_cast<std::int64_t>(seconds * 1000)));
  context.AddMetadata("x-regatta-user", user_and_host());
  if (!token_.empty()) context.AddMetadata("authorization", "Bearer " + token_);
}

void CtlClient::require(const grpc::Status& status) const {
  const std::string& why = status.error_message();
  switch (status.error_code()) {
    case grpc::StatusCode::OK: return;
    case grpc::StatusCode::INVALID_ARGUMENT: throw Error(Code::invalid_argument, why);
    case grpc::StatusCode::UNAVAILABLE:
      throw Error(Code::transport,
                  "no job answers at " + settings_.address + " (" + why +
                      "); expected one that runs with --control-address, and the TLS flags that it asks "
                      "for");
    case grpc::StatusCode::DEADLINE_EXCEEDED:
      throw Error(Code::timeout, "no answer from " + settings_.address +
                                     " in time; a command that was sent may still be applied, as the job's audit log "
                                     "will tell");
    default: break;
  }
  throw Error(Code::transport, why.empty() ? "gRPC status " + std::to_string(status.error_code()) : why);
}

template <class Request, class Reply>
Reply CtlClient::call(grpc::Status (v1::Control::StubInterface::*method)(grpc::ClientContext*, const Request&, Reply*),
                      const Request& request, double seconds) {
  grpc::ClientContext context;
  prepare(context, seconds);
  Reply reply;
  require(((*stub_).*method)(&context, request, &reply));
  return reply;
}

using Stub = v1::Control::StubInterface;
v1::Status CtlClient::status() { return call(&Stub::GetStatus, v1::GetStatusRequest(), query_seconds); }
v1::Plan CtlClient::plan() { return call(&Stub::GetPlan, v1::GetPlanRequest(), query_seconds); }
v1::CommandReply CtlClient::set(const v1::SetHyperparametersRequest& request) {
  return call(&Stub::SetHyperparameters, request, command_seconds);
}
v1::CommandReply CtlClient::checkpoint() {
  return call(&Stub::SaveCheckpoint, v1::SaveCheckpointRequest(), command_seconds);
}
v1::CommandReply CtlClient::pause() { return call(&Stub::Pause, v1::PauseRequest(), command_seconds); }
v1::CommandReply CtlClient::resume() { return call(&Stub::Resume, v1::ResumeRequest(), command_seconds); }
v1::CommandReply CtlClient::drain() { return call(&Stub::Drain, v1::DrainRequest(), command_seconds); }

void CtlClient::watch(const std::function<bool(const v1::Step&)>& each) {
  grpc::ClientContext context;
  prepare(context, 0);
  const auto reader = stub_->WatchSteps(&context, v1::WatchStepsRequest());
  bool enough = false;
  for (v1::Step step; !enough && reader->Read(&step);) enough = !each(step);
  if (enough) context.TryCancel();
  const grpc::Status status = reader->Finish();
  if (!enough) require(status);
}

}  // namespace regatta::cli
