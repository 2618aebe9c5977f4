#pragma once
// A connection to a job's control service. One thread. What goes wrong is thrown as an Error with one sentence.

#include <grpcpp/grpcpp.h>
#include <regatta/v1/control.grpc.pb.h>

#include <functional>
#include <memory>
#include <string>

namespace regatta::cli {

struct CtlSettings {
  std::string address;
  std::string token_file;
  std::string tls_cert, tls_key, tls_ca;
  std::string tls_name;        ///< that the certificate must have, when it is not ADDRESS' host
  double timeout_seconds = 0;  ///< 0: by the kind of call
};

class CtlClient {
 public:
  /// Throws Error(invalid_argument) on files that cannot be read. Does not connect yet.
  explicit CtlClient(const CtlSettings& settings);

  v1::Status status();
  v1::Plan plan();
  v1::CommandReply set(const v1::SetHyperparametersRequest& request);
  v1::CommandReply checkpoint();
  v1::CommandReply pause();
  v1::CommandReply resume();
  v1::CommandReply drain();
  /// Until `each` answers false or the job ends.
  void watch(const std::function<bool(const v1::Step&)>& each);

 private:
  void prepare(grpc::ClientContext& context, double seconds) const;
  void require(const grpc::Status& status) const;
  template <class Request, class Reply>
  Reply call(grpc::Status (v1::Control::StubInterface::*method)(grpc::ClientContext*, const Request&, Reply*),
             const Request& request, double seconds);

  CtlSettings settings_;
  std::string token_;
  std::unique_ptr<v1::Control::StubInterface> stub_;
};

}  // namespace regatta::cli
