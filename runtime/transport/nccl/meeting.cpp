#include "runtime/transport/nccl/meeting.h"

#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <charconv>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <thread>

#include "runtime/error.h"

namespace regatta {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::int32_t magic = 0x52474131;
constexpr std::int32_t hello = 1, text_up = 2, text_down = 3;

std::string variable(const char* name) {
  const char* const value = std::getenv(name);
  return value == nullptr ? "" : value;
}

int number_of(const char* name, int least, int most) {
  const std::string text = variable(name);
  int value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (text.empty() || error != std::errc() || end != text.data() + text.size() || value < least || value > most)
    throw Error(Code::invalid_argument, std::string("transport nccl: ") + name + " is '" + text +
                                            "'; expected a number from " + std::to_string(least) + " to " +
                                            std::to_string(most) + ", as torchrun sets it");
  return value;
}

bool send_all(int socket, const void* data, std::size_t bytes) {
  const char* at = static_cast<const char*>(data);
  while (bytes > 0) {
    const ssize_t sent = ::send(socket, at, bytes, MSG_NOSIGNAL);
    if (sent < 0 && errno == EINTR) continue;
    if (sent <= 0) return false;
    at += sent;
    bytes -= static_cast<std::size_t>(sent);
  }
  return true;
}

bool receive_all(int socket, void* data, std::size_t bytes) {
  char* at = static_cast<char*>(data);
  while (bytes > 0) {
    const ssize_t got = ::recv(socket, at, bytes, 0);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) return false;
    at += got;
    bytes -= static_cast<std::size_t>(got);
  }
  return true;
}

int milliseconds_until(Clock::time_point until) {
  const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(until - Clock::now()).count();
  return static_cast<int>(std::max<std::int64_t>(0, std::min<std::int64_t>(left, 1'000'000'000)));
}

bool readable(int socket, Clock::time_point until) {
  pollfd entry{socket, POLLIN, 0};
  return poll(&entry, 1, milliseconds_until(until)) > 0;
}

// A silent connection must not hold up a start for ever.
void limit_waits(int socket, Clock::time_point until) {
  const int left = std::max(1, milliseconds_until(until));
  const timeval limit{left / 1000, left % 1000 * 1000};
  setsockopt(socket, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
  const int on = 1;
  setsockopt(socket, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
}

}  // namespace

JobPlace job_place_from_environment() {
  JobPlace place;
  if (variable("WORLD_SIZE").empty() && variable("RANK").empty()) return place;
  place.world_size = number_of("WORLD_SIZE", 1, 1 << 20);
  place.rank = number_of("RANK", 0, place.world_size - 1);
  place.local_rank = variable("LOCAL_RANK").empty() ? 0 : number_of("LOCAL_RANK", 0, 1 << 16);
  place.file = variable("REGATTA_MEETING_FILE");
  if (place.world_size == 1 || !place.file.empty()) return place;
  place.address = variable("MASTER_ADDR");
  if (place.address.empty())
    throw Error(Code::invalid_argument,
                "transport nccl: MASTER_ADDR is not set; start the ranks with torchrun or mpirun, or set "
                "REGATTA_MEETING_FILE to a file that all of them see");
  place.port = number_of("MASTER_PORT", 1, 65535);
  return place;
}

bool Meeting::send_frame(int socket, std::int32_t kind, std::int32_t from, const std::string& text) {
  const Frame frame{magic, kind, from, static_cast<std::int32_t>(text.size())};
  return send_all(socket, &frame, sizeof frame) && send_all(socket, text.data(), text.size());
}

bool Meeting::receive_frame(int socket, Frame& frame, std::string& text) {
  if (!receive_all(socket, &frame, sizeof frame) || frame.magic != magic || frame.bytes < 0) return false;
  text.resize(static_cast<std::size_t>(frame.bytes));
  return receive_all(socket, text.data(), text.size());
}

Meeting::Meeting(const JobPlace& place, std::chrono::milliseconds deadline)
    : place_(place), until_(Clock::now() + deadline), sockets_(static_cast<std::size_t>(place.world_size), -1) {
  if (place.world_size == 1) return;
  try {
    place.rank == 0 ? listen_for_others() : connect_to_first();
  } catch (...) {
    for (const int socket : sockets_)
      if (socket >= 0) close(socket);
    if (listener_ >= 0) close(listener_);
    throw;
  }
}

Meeting::~Meeting() {
  for (const int socket : sockets_)
    if (socket >= 0) close(socket);
}

void Meeting::write_file(int port) const {
  char host[256] = {};
  gethostname(host, sizeof host - 1);
  const std::string aside = place_.file + ".part";
  std::ofstream(aside) << host << ' ' << port << '\n';
  if (std::rename(aside.c_str(), place_.file.c_str()) != 0)
    throw Error(Code::invalid_argument,
                "REGATTA_MEETING_FILE is " + place_.file + ", which cannot be written: " + std::strerror(errno));
}

void Meeting::read_file() {
  while (!(std::ifstream(place_.file) >> place_.address >> place_.port)) {
    if (Clock::now() > until_)
      throw Error(Code::timeout, "rank 0 did not write " + place_.file + " (REGATTA_MEETING_FILE) in time");
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
}

void Meeting::listen_for_others() {
  listener_ = socket(AF_INET6, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in6 any = {};
  any.sin6_family = AF_INET6;
  any.sin6_addr = in6addr_any;
  any.sin6_port = htons(static_cast<std::uint16_t>(place_.port));
  const int on = 1, off = 0;
  setsockopt(listener_, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  setsockopt(listener_, IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof off);
  int bound = bind(listener_, reinterpret_cast<sockaddr*>(&any), sizeof any);
  if (listener_ < 0 || bound != 0) {  // a machine without IPv6
    if (listener_ >= 0) close(listener_);
    listener_ = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    setsockopt(listener_, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    sockaddr_in four = {};
    four.sin_family = AF_INET;
    four.sin_port = htons(static_cast<std::uint16_t>(place_.port));
    bound = bind(listener_, reinterpret_cast<sockaddr*>(&four), sizeof four);
  }
  if (bound != 0 || listen(listener_, place_.world_size) != 0)
    throw Error(Code::transport,
                "rank 0 cannot listen on port " + std::to_string(place_.port) + ": " + std::strerror(errno));
  if (!place_.file.empty()) {
    sockaddr_storage here = {};
    socklen_t length = sizeof here;
    getsockname(listener_, reinterpret_cast<sockaddr*>(&here), &length);
    write_file(ntohs(here.ss_family == AF_INET6 ? reinterpret_cast<sockaddr_in6&>(here).sin6_port
                                                : reinterpret_cast<sockaddr_in&>(here).sin_port));
  }
  for (int missing = place_.world_size - 1; missing > 0;) {
    if (!readable(listener_, until_)) {
      std::string late;
      for (int r = 1; r < place_.world_size; ++r)
        if (sockets_[r] < 0) late += (late.empty() ? "" : ", ") + std::to_string(r);
      throw Error(Code::timeout, "ranks " + late + " did not come to the meeting in time");
    }
    const int guest = accept4(listener_, nullptr, nullptr, SOCK_CLOEXEC);
    if (guest < 0) continue;
    limit_waits(guest, until_);
    Frame frame;
    std::string text;
    // Whoever else knocks is sent away.
    if (!receive_frame(guest, frame, text) || frame.kind != hello || frame.from < 1 ||
        frame.from >= place_.world_size || sockets_[frame.from] >= 0 || text != std::to_string(place_.world_size)) {
      close(guest);
      continue;
    }
    sockets_[frame.from] = guest;
    --missing;
  }
  close(listener_);
  listener_ = -1;
  if (!place_.file.empty()) unlink(place_.file.c_str());
}

void Meeting::connect_to_first() {
  std::string why = "nobody listens";
  for (;;) {
    if (!place_.file.empty()) read_file();
    addrinfo hints = {}, *found = nullptr;
    hints.ai_socktype = SOCK_STREAM;
    const int failed = getaddrinfo(place_.address.c_str(), std::to_string(place_.port).c_str(), &hints, &found);
    if (failed != 0) why = gai_strerror(failed);
    for (const addrinfo* at = found; at != nullptr && sockets_[0] < 0; at = at->ai_next) {
      const int one = socket(at->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
      if (one >= 0 && connect(one, at->ai_addr, at->ai_addrlen) == 0) {
        limit_waits(one, until_);
        sockets_[0] = one;
      } else {
        why = std::strerror(errno);
        if (one >= 0) close(one);
      }
    }
    if (found != nullptr) freeaddrinfo(found);
    if (sockets_[0] >= 0 && send_frame(sockets_[0], hello, place_.rank, std::to_string(place_.world_size))) return;
    if (Clock::now() > until_)
      throw Error(Code::timeout, "rank " + std::to_string(place_.rank) + " did not reach rank 0 at " + place_.address +
                                     ":" + std::to_string(place_.port) + " in time: " + why);
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
  }
}

std::vector<std::string> Meeting::gather(const std::string& mine) {
  std::vector<std::string> all(static_cast<std::size_t>(place_.world_size));
  all[place_.rank] = mine;
  if (place_.world_size == 1) return all;
  Frame frame;
  if (place_.rank != 0) {
    bool good = send_frame(sockets_[0], text_up, place_.rank, mine);
    for (std::string& text : all) good = good && receive_frame(sockets_[0], frame, text) && frame.kind == text_down;
    if (!good) throw Error(Code::transport, "the connection to rank 0 ended while the ranks were starting");
    return all;
  }
  for (int r = 1; r < place_.world_size; ++r)
    if (!receive_frame(sockets_[r], frame, all[r]) || frame.kind != text_up)
      throw Error(Code::transport,
                  "the connection to rank " + std::to_string(r) + " ended while the ranks were starting");
  for (int r = 1; r < place_.world_size; ++r)
    for (const std::string& text : all) send_frame(sockets_[r], text_down, 0, text);
  return all;
}

}  // namespace regatta
