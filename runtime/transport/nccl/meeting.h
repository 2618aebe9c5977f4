#pragma once
// How the processes of a job without MPI meet: rank 0 listens, the others connect, and everything goes over rank 0.
// Made for starting up and for notices, not for data. Blocking, with a deadline; used by one thread at a time.

#include <chrono>
#include <cstdint>
#include <string>
#include <vector>

namespace regatta {

/// Who this process is and where its job meets.
struct JobPlace {
  int rank = 0;
  int world_size = 1;
  int local_rank = 0;
  std::string address;  ///< HOST of rank 0; empty when `file` says where it listens
  int port = 0;
  std::string file;  ///< rank 0 writes HOST:PORT there, on a file system that all see; empty when there is an address
};

/// RANK, WORLD_SIZE, LOCAL_RANK and MASTER_ADDR, MASTER_PORT as torchrun sets them, or REGATTA_MEETING_FILE in the
/// place of the last two. Throws Error(invalid_argument) naming what is missing or cannot be; a world of one needs
/// nothing.
JobPlace job_place_from_environment();

/// A frame between two ranks.
struct Frame {
  std::int32_t magic = 0, kind = 0, from = 0, bytes = 0;
};

class Meeting {
 public:
  /// Collective. Throws Error(timeout | transport) naming the ranks that did not come.
  Meeting(const JobPlace& place, std::chrono::milliseconds deadline);
  ~Meeting();
  Meeting(const Meeting&) = delete;
  Meeting& operator=(const Meeting&) = delete;

  int rank() const { return place_.rank; }
  int world_size() const { return place_.world_size; }
  /// Everybody's text, by rank. Collective.
  std::vector<std::string> gather(const std::string& mine);
  /// By rank, -1 where there is no connection: rank 0 has one to each of the others, they have one to rank 0.
  const std::vector<int>& sockets() const { return sockets_; }

  /// False when the connection has ended. Both block until the whole frame is through.
  static bool send_frame(int socket, std::int32_t kind, std::int32_t from, const std::string& text);
  static bool receive_frame(int socket, Frame& frame, std::string& text);

 private:
  void listen_for_others();
  void connect_to_first();
  void write_file(int port) const;
  void read_file();

  JobPlace place_;
  std::chrono::steady_clock::time_point until_;
  std::vector<int> sockets_;
  int listener_ = -1;
};

}  // namespace regatta
