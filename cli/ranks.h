#pragma once
// Runs a program's body on every rank and turns what happens into one exit code and few, clear sentences on stderr.
//
// With transport "local" the ranks are threads of this process; with "mpi" this process is one rank of what mpirun
// started. When a rank fails, the others are told and end too. A rank that ends well waits for the others before it
// returns. The first SIGINT or SIGTERM raises the stop flag, which ends every wait for a peer; the second ends the
// process. A program that can end in good order asks for drain signals: then SIGUSR1 and the first SIGTERM only raise
// the drain flag, and a SIGTERM more than a second later stops.

#include <atomic>
#include <chrono>
#include <functional>
#include <string>
#include <string_view>

#include "runtime/transport/transport.h"

namespace regatta::cli {

class RankContext {
 public:
  explicit RankContext(Transport& root) : transport(root), rank(root.rank()), world_size(root.world_size()) {}

  Transport& transport;
  int rank;
  int world_size;

  /// Collective. Runs `setup` on this rank; when it threw on any rank, all ranks throw the same Error. For phases in
  /// which a rank may find bad input (files, flags, shapes), before the first step. `setup` itself must not call
  /// collectives.
  void agree(const std::function<void()>& setup);
  /// True once the job was told to stop. Local: ranks may see it at different times.
  bool stop_requested() const;
  /// True once this process was asked to end in good order. Others may not have been asked.
  bool drain_requested() const;
};

struct RunOptions {
  std::string program = "regatta";  ///< begins each sentence, such as "regatta replay"
  std::string world = "the mesh";   ///< what asks for the ranks, such as "mesh dp=3"
  TransportOptions transport;       ///< `stop` is set by run_on_ranks unless given
  /// After a rank has failed: how long the others may take to end before the job is killed.
  std::chrono::milliseconds grace{10'000};
  bool drain_signals = false;
};

/// Returns the exit code: 0; 2 when bad input (Error(invalid_argument), std::invalid_argument) ended the run; 1 for
/// other failures. Has printed the sentences already. world_size 0 takes the ranks that there are (local: one).
int run_on_ranks(std::string_view transport_name, int world_size, const RunOptions& options,
                 const std::function<void(RankContext&)>& body);

}  // namespace regatta::cli
