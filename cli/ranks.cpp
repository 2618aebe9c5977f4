#include "cli/ranks.h"

#include <signal.h>
#include <time.h>
#include <unistd.h>

#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <stdexcept>
#include <thread>

#include "cli/rank_outcome.h"
#include "runtime/transport/factory.h"
#include "runtime/transport/local/local_transport.h"
#include "runtime/transport/mpi/mpi_transport.h"

namespace regatta::cli {
namespace {

std::atomic<bool> stop_flag{false};
std::atomic<std::int64_t> drain_asked_at{0};  // seconds of the steady clock; 0: not asked

std::int64_t steady_seconds() {
  timespec now = {};
  clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec + 1;
}

extern "C" void raise_stop_flag(int signal_number) {
  if (stop_flag.exchange(true)) _exit(128 + signal_number);
}

extern "C" void raise_drain_flag(int signal_number) {
  std::int64_t not_asked = 0;
  if (drain_asked_at.compare_exchange_strong(not_asked, steady_seconds())) return;
  // Launchers and process groups may deliver one request twice.
  if (signal_number == SIGTERM && steady_seconds() > not_asked + 1) raise_stop_flag(signal_number);
}

/// What RankContext::agree throws, on all ranks.
class AgreedError : public Error {
 public:
  using Error::Error;
};

/// Catches the signals for as long as it lives.
class StopSignals {
 public:
  explicit StopSignals(bool drain) : drain_(drain) {
    stop_flag = false;
    drain_asked_at = 0;
    struct sigaction action = {};
    action.sa_handler = raise_stop_flag;
    sigemptyset(&action.sa_mask);
    action.sa_flags = SA_RESTART;
    sigaction(SIGINT, &action, &old_interrupt_);
    if (drain) action.sa_handler = raise_drain_flag;
    sigaction(SIGTERM, &action, &old_terminate_);
    if (drain) sigaction(SIGUSR1, &action, &old_user_);
  }
  ~StopSignals() {
    sigaction(SIGINT, &old_interrupt_, nullptr);
    sigaction(SIGTERM, &old_terminate_, nullptr);
    if (drain_) sigaction(SIGUSR1, &old_user_, nullptr);
  }
  StopSignals(const StopSignals&) = delete;
  StopSignals& operator=(const StopSignals&) = delete;

 private:
  bool drain_;
  struct sigaction old_interrupt_ = {};
  struct sigaction old_user_ = {};
  struct sigaction old_terminate_ = {};
};

/// Calls the body; what it throws becomes an outcome that began on this rank.
RankOutcome outcome_of(const std::function<void()>& body) {
  try {
    body();
    return {};
  } catch (const AgreedError& error) {
    return {true, error.code(), false, true, error.what()};
  } catch (const Error& error) {
    return {true, error.code(), false, false, error.what()};
  } catch (const std::invalid_argument& error) {
    return {true, Code::invalid_argument, false, false, error.what()};
  } catch (const std::exception& error) {
    return {true, Code::aborted, false, false, error.what()};
  } catch (...) {
    return {true, Code::aborted, false, false, "an unknown exception was thrown"};
  }
}

RankOutcome run_rank(Transport& transport, const std::function<void(RankContext&)>& body) {
  RankContext context(transport);
  RankOutcome outcome = outcome_of([&] { body(context); });
  // What was agreed needs no telling, and a peer that is still about to agree must not be disturbed.
  if (outcome.failed && !outcome.agreed) {
    transport.abort(outcome.reason, outcome.code);
    // When a collective failed, the transport knows better whether that began here.
    const PeerStatus own = transport.peers()[static_cast<std::size_t>(context.rank)];
    outcome.secondary = own.secondary && outcome.code == Code::aborted;
  }
  transport.leave();
  return outcome;
}

void say(const RunOptions& options, const std::string& line) {
  if (!line.empty()) std::fprintf(stderr, "%s: %s\n", options.program.c_str(), line.c_str());
}

std::string seconds(std::chrono::milliseconds duration) {
  char text[32];
  std::snprintf(text, sizeof text, "%g s", std::chrono::duration<double>(duration).count());
  return text;
}

/// What mpirun (or srun) says about this process; 0 without it.
int launched_processes() {
  for (const char* name : {"OMPI_COMM_WORLD_SIZE", "PMI_SIZE"}) {
    const char* value = std::getenv(name);
    if (value != nullptr) return std::atoi(value);
  }
  return 0;
}

bool is_first_process() {
  for (const char* name : {"OMPI_COMM_WORLD_RANK", "PMI_RANK", "RANK"}) {  // the last is torchrun's
    const char* value = std::getenv(name);
    if (value != nullptr) return std::atoi(value) == 0;
  }
  return true;
}

// ---- ranks as threads

int run_threads(int world_size, const RunOptions& options, const TransportOptions& transport_options,
                const std::function<void(RankContext&)>& body) {
  std::vector<std::unique_ptr<Transport>> transports = make_local_transports(world_size, transport_options);
  std::mutex mutex;
  std::condition_variable changed;
  int ended = 0;
  bool any_failed = false;
  std::vector<RankOutcome> outcomes(static_cast<std::size_t>(world_size));
  std::vector<char> has_ended(static_cast<std::size_t>(world_size), 0);
  std::vector<std::thread> threads;
  for (int r = 0; r < world_size; ++r) {
    threads.emplace_back([&, r] {
      std::unique_ptr<Transport> transport = std::move(transports[r]);
      RankOutcome outcome = run_rank(*transport, body);
      transport.reset();
      const std::lock_guard lock(mutex);
      any_failed = any_failed || outcome.failed;
      outcomes[static_cast<std::size_t>(r)] = std::move(outcome);
      has_ended[static_cast<std::size_t>(r)] = 1;
      ++ended;
      changed.notify_all();
    });
  }
  std::unique_lock lock(mutex);
  changed.wait(lock, [&] { return ended == world_size || any_failed; });
  const bool in_time = changed.wait_for(lock, options.grace, [&] { return ended == world_size; });
  std::vector<RankOutcome> told = outcomes;
  if (!in_time) {
    for (int r = 0; r < world_size; ++r) {
      if (has_ended[static_cast<std::size_t>(r)] != 0) continue;
      say(options,
          "rank " + std::to_string(r) + " did not end within " + seconds(options.grace) + " after another rank failed");
      told[static_cast<std::size_t>(r)] = {true, Code::aborted, true, false, ""};
    }
  }
  // The ranks that began it say so; that the others followed is no news within one process.
  bool said = false;
  const auto tell = [&](bool secondary) {
    for (int r = 0; r < world_size; ++r) {
      if (told[static_cast<std::size_t>(r)].secondary != secondary || (secondary && said)) continue;
      const std::string line = line_of(told, r);
      say(options, line);
      said = said || !line.empty();
    }
  };
  tell(false);
  tell(true);
  if (!in_time) {
    std::fflush(nullptr);
    std::_Exit(exit_code_of(told));
  }
  lock.unlock();
  for (std::thread& thread : threads) thread.join();
  return exit_code_of(outcomes);
}

// ---- this process is one rank

bool is_bad(const PeerStatus& peer) {
  return peer.state == PeerStatus::State::failed || peer.state == PeerStatus::State::gone;
}

/// What this rank knows of all; about itself it knows best.
std::vector<RankOutcome> outcomes_of(const Transport& transport, const RankOutcome& own) {
  std::vector<RankOutcome> outcomes;
  for (const PeerStatus& peer : transport.peers()) {
    outcomes.push_back({is_bad(peer), peer.code, peer.secondary, false, peer.reason});
  }
  if (own.failed) outcomes[static_cast<std::size_t>(transport.rank())] = own;
  return outcomes;
}

/// Waits until the others have ended; a rank that failed waits no longer than the grace time. Ends early, with `gone`
/// set, when a process has vanished: mpirun will soon kill all others, so there is no time to lose.
enum class Ending { all, late, gone };
Ending wait_for_others(const Transport& transport, const RunOptions& options, bool look_for_gone) {
  using Clock = std::chrono::steady_clock;
  const auto start = Clock::now();
  Clock::time_point failed_at{};
  for (;;) {
    bool all_closed = true;
    bool any_bad = false;
    for (const PeerStatus& peer : transport.peers()) {
      if (look_for_gone && peer.state == PeerStatus::State::gone) return Ending::gone;
      all_closed = all_closed && peer.closed;
      any_bad = any_bad || is_bad(peer);
    }
    if (all_closed) return Ending::all;
    const auto now = Clock::now();
    if (any_bad && failed_at == Clock::time_point{}) failed_at = now;
    const bool out_of_grace = any_bad && now - failed_at > options.grace;
    if (out_of_grace || now - start > transport.options().deadline) return Ending::late;
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
}

int run_process(std::string_view name, int world_size, const RunOptions& options,
                const TransportOptions& transport_options, const std::function<void(RankContext&)>& body) {
  std::unique_ptr<Transport> transport = make_transport(name, transport_options);
  const int rank = transport->rank();
  const int ranks = transport->world_size();
  RankOutcome own = run_rank(*transport, [&](RankContext& context) {
    if (world_size > 0 && world_size != ranks) {
      std::string sentence = options.world + " has " + std::to_string(world_size) + " ranks but ";
      sentence += launched_processes() > 0 ? "mpirun started " + std::to_string(ranks)
                  : ranks > 1              ? "the launcher started " + std::to_string(ranks)
                              : "this is a single process; start it with mpirun -n " + std::to_string(world_size) +
                                    (name == "nccl" ? " or torchrun" : "");
      throw Error(Code::invalid_argument, sentence);
    }
    body(context);
  });
  Ending ending = wait_for_others(*transport, options, true);
  const std::vector<RankOutcome> outcomes = outcomes_of(*transport, own);
  say(options, line_of(outcomes, rank));
  if (ending == Ending::gone) ending = wait_for_others(*transport, options, false);
  if (ending == Ending::late) {
    std::string late;
    int r = 0;
    for (const PeerStatus& peer : transport->peers()) {
      if (!peer.closed) late += (late.empty() ? "" : ", ") + std::to_string(r);
      ++r;
    }
    say(options, "rank " + std::to_string(rank) + ": gave up waiting for rank " + late + " to end; the job is killed");
    std::fflush(nullptr);
    kill_mpi_job(std::max(1, exit_code_of(outcomes)));
  }
  transport.reset();
  return own.failed ? exit_code_of(outcomes) : 0;
}

}  // namespace

void RankContext::agree(const std::function<void()>& setup) {
  const RankOutcome mine = outcome_of(setup);
  const std::string text = mine.failed ? std::to_string(static_cast<int>(mine.code)) + " " + mine.reason : "";
  const std::vector<std::string> all = transport.gather_strings(text, "agreement");
  int first = -1;
  bool shared = true;
  for (int r = 0; r < world_size; ++r) {
    if (!all[r].empty() && first < 0) first = r;
    shared = shared && all[r] == all[0];
  }
  if (first < 0) return;
  const std::size_t space = all[first].find(' ');
  const auto code = static_cast<Code>(std::stoi(all[first].substr(0, space)));
  const std::string who = shared ? "" : "rank " + std::to_string(first) + ": ";
  throw AgreedError(code, who + all[first].substr(space + 1));
}

bool RankContext::stop_requested() const {
  const std::atomic<bool>* stop = transport.options().stop;
  return stop != nullptr && stop->load(std::memory_order_relaxed);
}

bool RankContext::drain_requested() const { return drain_asked_at.load(std::memory_order_relaxed) != 0; }

int run_on_ranks(std::string_view transport_name, int world_size, const RunOptions& options,
                 const std::function<void(RankContext&)>& body) {
  const StopSignals signals(options.drain_signals);
  TransportOptions transport_options = options.transport;
  if (transport_options.stop == nullptr) transport_options.stop = &stop_flag;
  int exit_code = 1;
  const RankOutcome start = outcome_of([&] {
    require_transport(transport_name);
    if (world_size < 0) {
      throw Error(Code::invalid_argument, options.world + " has " + std::to_string(world_size) + " ranks");
    }
    if (!ranks_are_threads(transport_name)) {
      exit_code = run_process(transport_name, world_size, options, transport_options, body);
      return;
    }
    if (launched_processes() > 1) {
      throw Error(Code::invalid_argument, "transport 'local' makes its ranks itself, but mpirun started " +
                                              std::to_string(launched_processes()) + " processes; use transport mpi");
    }
    exit_code = run_threads(std::max(world_size, 1), options, transport_options, body);
  });
  if (!start.failed) return exit_code;
  // Before there are ranks: every process finds the same, the first one says it.
  if (start.code != Code::invalid_argument || is_first_process()) say(options, start.reason);
  return start.code == Code::invalid_argument ? 2 : 1;
}

}  // namespace regatta::cli
