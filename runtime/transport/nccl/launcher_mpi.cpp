#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstdlib>

#include "runtime/error.h"
#include "runtime/transport/mpi/mpi_session.h"
#include "runtime/transport/nccl/launcher.h"

namespace regatta {
namespace {

// A port that was free a moment ago.
int free_port() {
  const int one = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in any = {};
  any.sin_family = AF_INET;
  socklen_t length = sizeof any;
  const bool found = one >= 0 && bind(one, reinterpret_cast<sockaddr*>(&any), sizeof any) == 0 &&
                     getsockname(one, reinterpret_cast<sockaddr*>(&any), &length) == 0;
  if (one >= 0) close(one);
  if (!found) throw Error(Code::transport, "no port is free for the ranks to meet");
  return ntohs(any.sin_port);
}

}  // namespace

JobPlace job_place() {
  if (std::getenv("OMPI_COMM_WORLD_SIZE") == nullptr && std::getenv("PMI_SIZE") == nullptr)
    return job_place_from_environment();
  const std::shared_ptr<MpiSession> session = MpiSession::of_job();
  JobPlace place;
  place.rank = session->rank();
  place.world_size = session->world_size();
  char host[256] = {};
  gethostname(host, sizeof host - 1);
  const std::string first =
      session->gather(place.rank == 0 ? std::string(host) + " " + std::to_string(free_port()) : "")[0];
  place.address = first.substr(0, first.find(' '));
  place.port = std::atoi(first.c_str() + first.find(' '));
  return place;
}

}  // namespace regatta
