#pragma once
// This process's part in the MPI job: initialisation, two communicators of our own, error texts, finalisation. One per
// process, shared by the transports made from it. Starting up uses blocking MPI calls; afterwards nobody calls anything
// that could hang.

#include <mpi.h>

#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace regatta {

class MpiSession {
 public:
  /// The session of this process; starts MPI when the program has not. Collective the first time.
  static std::shared_ptr<MpiSession> get();

  int rank() const { return rank_; }
  int world_size() const { return world_size_; }
  MPI_Comm data() const { return data_; }
  MPI_Comm notices() const { return notices_; }
  /// Lowest rank on the same host.
  int host_leader() const { return host_leader_; }
  /// Numbers the root transports of this process, alike on all ranks.
  int next_epoch() { return epoch_++; }
  /// Blocking, without a deadline: for starting up only.
  std::vector<std::string> gather(const std::string& mine) const;
  /// Ends MPI if this session began it.
  void finalize();

 private:
  MpiSession();

  bool owner_ = false;
  int rank_ = 0;
  int world_size_ = 1;
  int host_leader_ = 0;
  int epoch_ = 0;
  MPI_Comm data_ = MPI_COMM_NULL;
  MPI_Comm notices_ = MPI_COMM_NULL;
};

/// Throws Error(transport) with MPI's own words unless `result` is MPI_SUCCESS.
void check_mpi(int result, std::string_view what);

}  // namespace regatta
