#pragma once
// One communicator as the transports see it: two duplicates of our own, this process's rank, its host. Beneath all
// sessions of a process lies one MPI, which this file starts and ends when the program has not. Starting up uses
// blocking MPI calls; afterwards nobody calls anything that could hang. Thread-safe, given MPI_THREAD_MULTIPLE.

#include <mpi.h>

#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace regatta {

class MpiSession {
 public:
  /// Over all processes of the job, one per process; starts MPI when the program has not. Collective the first time.
  static std::shared_ptr<MpiSession> of_job();
  /// Over the caller's communicator, which is duplicated and may be freed afterwards. Collective over it. Requires a
  /// running MPI. The duplicates are freed with the session, unless keep_communicators() was called.
  static std::shared_ptr<MpiSession> over(MPI_Comm communicator);
  ~MpiSession();
  MpiSession(const MpiSession&) = delete;
  MpiSession& operator=(const MpiSession&) = delete;

  int rank() const { return rank_; }
  int world_size() const { return world_size_; }
  /// What a root transport asks for once, after next_epoch().
  MPI_Comm data() const { return data_; }
  MPI_Comm notices() const { return notices_; }
  /// To be called by whoever sends point-to-point messages. A message that still is under way when its communicator is
  /// freed would be delivered to the next communicator that gets its place, and Open MPI crashes when that one has
  /// fewer ranks. So the duplicates then stay until MPI ends.
  void keep_communicators() { owns_duplicates_ = false; }
  /// Lowest rank on the same host.
  int host_leader() const { return host_leader_; }
  /// Messages tell apart so many epochs, one after another, of those that share a communicator.
  static constexpr int epochs_of_messages = 32;
  /// A number alike on all ranks of the session, which none of their earlier root transports has: what a dead transport
  /// over the same session left under way is told apart by its epoch. When messages can no longer tell, data() is
  /// another duplicate from here on, and the one before stays until MPI ends. Collective.
  int next_epoch();
  /// Blocking, without a deadline: for starting up only.
  std::vector<std::string> gather(const std::string& mine) const;

 private:
  MpiSession(MPI_Comm communicator, bool owns_duplicates);

  bool owns_duplicates_;  // written at start-up only
  int rank_ = 0;
  int world_size_ = 1;
  int host_leader_ = 0;
  int first_epoch_ = -1;  // of those that use data_
  MPI_Comm data_ = MPI_COMM_NULL;
  MPI_Comm notices_ = MPI_COMM_NULL;
};

/// Counts the root transports of this process. With the last one MPI ends, if of_job() started it and all of them ended
/// `well`: with a rank missing, MPI_Finalize would not return.
void open_mpi_world();
void close_mpi_world(bool well);

/// Whether MPI calls are allowed: it was started and has not been finalised.
bool mpi_is_running();

/// Throws Error(transport) with MPI's own words unless `result` is MPI_SUCCESS.
void check_mpi(int result, std::string_view what);

}  // namespace regatta
