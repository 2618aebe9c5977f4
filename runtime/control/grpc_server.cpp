// The server around the service: address, credentials, limits.

#include <grpc/support/log.h>
#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/grpcpp.h>
#include <grpcpp/health_check_service_interface.h>
#include <grpcpp/resource_quota.h>

#include <cstdlib>
#include <fstream>
#include <sstream>
#include <thread>

#include "runtime/control/server.h"
#include "runtime/control/service.h"

namespace regatta::control {
namespace {

constexpr int largest_request = 16 << 10;  // bytes; real ones have less than a hundred
constexpr int most_threads = 96;           // every watcher and every waiting command holds one

std::string contents(const std::string& path, const char* what) {
  std::ifstream file(path, std::ios::binary);
  std::stringstream text;
  text << file.rdbuf();
  if (!file || text.str().empty())
    throw Error(Code::invalid_argument, std::string(what) + " " + path + " cannot be read or is empty");
  return text.str();
}

std::string token_of(const std::string& path) {
  if (path.empty()) return {};
  std::string token = contents(path, "the token file");
  while (!token.empty() && (token.back() == '\n' || token.back() == '\r' || token.back() == ' ')) token.pop_back();
  constexpr std::size_t shortest_token = 16;
  if (token.size() < shortest_token)
    throw Error(Code::invalid_argument, "the token in " + path + " has " + std::to_string(token.size()) +
                                            " characters; expected at least " + std::to_string(shortest_token));
  return token;
}

std::shared_ptr<grpc::ServerCredentials> credentials_of(const ServerSettings& settings) {
  if (settings.tls_cert.empty()) return grpc::InsecureServerCredentials();
  grpc::SslServerCredentialsOptions options(GRPC_SSL_REQUEST_AND_REQUIRE_CLIENT_CERTIFICATE_AND_VERIFY);
  options.pem_root_certs = contents(settings.tls_ca, "the clients' authority");
  options.pem_key_cert_pairs.push_back(
      {contents(settings.tls_key, "the TLS key"), contents(settings.tls_cert, "the TLS certificate")});
  return grpc::SslServerCredentials(options);
}

// gRPC writes lines of its own for every client that fails to shake hands; anybody could fill the job's log with them.
void quiet_library() {
  if (std::getenv("GRPC_VERBOSITY") == nullptr) gpr_set_log_function([](gpr_log_func_args*) {});
}

}  // namespace

struct Server::Impl {
  Impl(Mailbox& box, std::string token) : mailbox(box), service(box, std::move(token)) {}

  Mailbox& mailbox;
  Service service;
  std::string address;
  std::unique_ptr<grpc::Server> server;
  std::jthread keeper;
};

Server::Server(const ServerSettings& settings, Mailbox& mailbox) {
  check(settings);
  quiet_library();
  impl_ = std::make_unique<Impl>(mailbox, token_of(settings.token_file));
  grpc::EnableDefaultHealthCheckService(true);
  grpc::reflection::InitProtoReflectionServerBuilderPlugin();
  grpc::ServerBuilder builder;
  int port = 0;
  builder.AddListeningPort(settings.address, credentials_of(settings), &port);
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);  // a second job on the port must hear of it
  builder.SetMaxReceiveMessageSize(largest_request);
  builder.AddChannelArgument(GRPC_ARG_MAX_METADATA_SIZE, 8 << 10);
  builder.AddChannelArgument(GRPC_ARG_MAX_CONCURRENT_STREAMS, 64);
  grpc::ResourceQuota quota("control");
  quota.SetMaxThreads(most_threads);
  builder.SetResourceQuota(quota);
  builder.SetSyncServerOption(grpc::ServerBuilder::SyncServerOption::NUM_CQS, 1);
  builder.SetSyncServerOption(grpc::ServerBuilder::SyncServerOption::MAX_POLLERS, 2);
  builder.RegisterService(&impl_->service);
  impl_->server = builder.BuildAndStart();
  if (!impl_->server || port == 0)
    throw Error(Code::invalid_argument, "the control address " + settings.address +
                                            " cannot be served: it is taken, it is not this machine's, or the "
                                            "certificate and key do not fit");
  impl_->server->GetHealthCheckService()->SetServingStatus("regatta.v1.Control", true);
  impl_->address = settings.address.substr(0, settings.address.rfind(':') + 1) + std::to_string(port);
  impl_->keeper = std::jthread([impl = impl_.get()](const std::stop_token& stop) {
    while (!stop.stop_requested()) {
      std::this_thread::sleep_for(std::chrono::milliseconds(100));
      impl->service.cut_stuck_watchers();
    }
  });
}

Server::~Server() {
  impl_->mailbox.close("the job has ended");
  impl_->keeper = {};
  impl_->server->Shutdown(std::chrono::system_clock::now() + std::chrono::seconds(1));
}

const std::string& Server::address() const { return impl_->address; }

}  // namespace regatta::control
