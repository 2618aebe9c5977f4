// What server settings can be; needs no gRPC.

#include <charconv>

#include "runtime/control/server.h"

namespace regatta::control {
namespace {

[[noreturn]] void refuse(const std::string& sentence) { throw Error(Code::invalid_argument, sentence); }

std::string host_of(const std::string& address) {
  const std::size_t colon = address.rfind(':');
  int port = -1;
  if (colon != std::string::npos) {
    const char* end = address.data() + address.size();
    if (std::from_chars(address.data() + colon + 1, end, port).ptr != end) port = -1;
  }
  if (colon == 0 || port < 0 || port > 65535)
    refuse("the control address \"" + address + "\" is not HOST:PORT, such as 127.0.0.1:7070");
  std::string host = address.substr(0, colon);
  if (host.size() > 2 && host.front() == '[' && host.back() == ']') return host.substr(1, host.size() - 2);
  if (host.find(':') != std::string::npos)
    refuse("the control address \"" + address + "\" has an IPv6 host; write it as [::1]:7070");
  return host;
}

// Names other than localhost and words like 127.evil.example may be any machine.
bool is_loopback_host(const std::string& host) {
  return host == "localhost" || host == "::1" ||
         (host.rfind("127.", 0) == 0 && host.find_first_not_of("0123456789.") == std::string::npos);
}

}  // namespace

bool is_loopback(const std::string& address) { return is_loopback_host(host_of(address)); }

void check(const ServerSettings& s) {
  const bool loopback = is_loopback(s.address);
  const bool tls = !s.tls_cert.empty() && !s.tls_key.empty() && !s.tls_ca.empty();
  if (!tls && !(s.tls_cert.empty() && s.tls_key.empty() && s.tls_ca.empty()))
    refuse(
        "mutual TLS needs a certificate, its key and the clients' authority: --control-tls-cert, --control-tls-key and "
        "--control-tls-ca go together");
  if (!loopback && !(tls && !s.token_file.empty()))
    refuse("the control address " + s.address +
           " can be reached from other machines; that needs mutual TLS (--control-tls-cert, --control-tls-key, "
           "--control-tls-ca) and a token (--control-token-file), or take 127.0.0.1");
}

}  // namespace regatta::control
