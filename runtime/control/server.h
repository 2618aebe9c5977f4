#pragma once
// The control service of a job, on rank 0: gRPC with health checking and reflection. Serves only loopback addresses
// unless it is given a certificate, a key, the authority that signs its clients, and a token; then every client must
// show a certificate and the token. Requests are answered by the mailbox's other end; no thread here touches the
// engine.

#include <memory>
#include <string>

#include "runtime/control/mailbox.h"

namespace regatta::control {

struct ServerSettings {
  std::string address;                    ///< HOST:PORT; port 0 takes a free one
  std::string tls_cert, tls_key, tls_ca;  ///< PEM files; all or none
  std::string token_file;
};

/// True when HOST of HOST:PORT is this machine itself: 127.x.x.x, ::1 or localhost. Throws Error(invalid_argument) on
/// what is no HOST:PORT.
bool is_loopback(const std::string& address);

/// Throws Error(invalid_argument) with one sentence on settings that cannot be, without opening anything.
void check(const ServerSettings& settings);

class Server {
 public:
  /// Serves from now on. Throws Error(invalid_argument) on bad settings and files, and when the address is taken.
  /// The mailbox outlives the server.
  Server(const ServerSettings& settings, Mailbox& mailbox);
  /// Closes the mailbox, gives open calls a second to end, and stops.
  ~Server();
  /// HOST:PORT with the port that was taken.
  const std::string& address() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace regatta::control
