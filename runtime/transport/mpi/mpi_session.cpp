#include "runtime/transport/mpi/mpi_session.h"

#include <algorithm>
#include <mutex>
#include <numeric>

#include "runtime/error.h"

namespace regatta {
namespace {

/// This process's part in MPI, beneath all sessions.
struct Process {
  std::mutex mutex;
  bool started_here = false;
  bool all_ended_well = true;
  int worlds = 0;
  int epochs = 0;
};

Process& process() {
  static Process process;
  return process;
}

std::string thread_level_name(int level) {
  if (level == MPI_THREAD_SINGLE) return "MPI_THREAD_SINGLE";
  if (level == MPI_THREAD_FUNNELED) return "MPI_THREAD_FUNNELED";
  if (level == MPI_THREAD_SERIALIZED) return "MPI_THREAD_SERIALIZED";
  return "thread level " + std::to_string(level);
}

void refuse_finalized() {
  int finalized = 0;
  MPI_Finalized(&finalized);
  if (finalized != 0) {
    throw Error(Code::invalid_argument, "MPI has been finalised already; a process can join its job only once");
  }
}

void start_mpi() {
  int initialized = 0;
  MPI_Initialized(&initialized);
  if (initialized != 0) return;
  int level = MPI_THREAD_SINGLE;
  check_mpi(MPI_Init_thread(nullptr, nullptr, MPI_THREAD_MULTIPLE, &level), "MPI_Init_thread");
  const std::lock_guard lock(process().mutex);
  process().started_here = true;
}

/// The communication thread calls MPI beside the program's own calls. All ranks decide alike.
void require_thread_multiple(MPI_Comm communicator) {
  int level = MPI_THREAD_SINGLE;
  MPI_Query_thread(&level);
  int lowest = level;
  check_mpi(MPI_Allreduce(&level, &lowest, 1, MPI_INT, MPI_MIN, communicator), "MPI_Allreduce");
  if (lowest >= MPI_THREAD_MULTIPLE) return;
  throw Error(Code::invalid_argument, "transport 'mpi' needs MPI_THREAD_MULTIPLE, but MPI was initialised with " +
                                          thread_level_name(lowest) +
                                          "; ask MPI_Init_thread for it, or leave starting MPI to the transport");
}

}  // namespace

void check_mpi(int result, std::string_view what) {
  if (result == MPI_SUCCESS) return;
  // Open MPI writes the whole of the buffer that the standard asks for.
  char text[MPI_MAX_ERROR_STRING] = {};
  int length = 0;
  MPI_Error_string(result, text, &length);
  throw Error(Code::transport, std::string(what) + ": " + std::string(text, static_cast<std::size_t>(length)));
}

bool mpi_is_running() {
  int initialized = 0;
  int finalized = 0;
  MPI_Initialized(&initialized);
  MPI_Finalized(&finalized);
  return initialized != 0 && finalized == 0;
}

std::shared_ptr<MpiSession> MpiSession::of_job() {
  refuse_finalized();
  start_mpi();
  static const std::shared_ptr<MpiSession> session(new MpiSession(MPI_COMM_WORLD, false));
  return session;
}

std::shared_ptr<MpiSession> MpiSession::over(MPI_Comm communicator) {
  refuse_finalized();
  if (!mpi_is_running()) {
    throw Error(Code::invalid_argument,
                "a communicator was given but MPI has not been initialised; call MPI_Init_thread first");
  }
  if (communicator == MPI_COMM_NULL) {
    throw Error(Code::invalid_argument, "the communicator is MPI_COMM_NULL; expected one that includes this process");
  }
  int between_groups = 0;
  check_mpi(MPI_Comm_test_inter(communicator, &between_groups), "MPI_Comm_test_inter");
  if (between_groups != 0) {
    throw Error(Code::invalid_argument, "the communicator connects two groups; expected one within a group");
  }
  return std::shared_ptr<MpiSession>(new MpiSession(communicator, true));
}

MpiSession::MpiSession(MPI_Comm communicator, bool owns_duplicates) : owns_duplicates_(owns_duplicates) {
  require_thread_multiple(communicator);
  MPI_Comm_rank(communicator, &rank_);
  MPI_Comm_size(communicator, &world_size_);
  check_mpi(MPI_Comm_dup(communicator, &data_), "MPI_Comm_dup");
  MPI_Comm_set_errhandler(data_, MPI_ERRORS_RETURN);
  check_mpi(MPI_Comm_dup(data_, &notices_), "MPI_Comm_dup");
  MPI_Comm_set_errhandler(notices_, MPI_ERRORS_RETURN);
  MPI_Comm host = MPI_COMM_NULL;
  check_mpi(MPI_Comm_split_type(data_, MPI_COMM_TYPE_SHARED, rank_, MPI_INFO_NULL, &host), "MPI_Comm_split_type");
  check_mpi(MPI_Allreduce(&rank_, &host_leader_, 1, MPI_INT, MPI_MIN, host), "MPI_Allreduce");
  MPI_Comm_free(&host);
}

MpiSession::~MpiSession() {
  if (!owns_duplicates_ || !mpi_is_running()) return;
  if (notices_ != MPI_COMM_NULL) MPI_Comm_free(&notices_);
  if (data_ != MPI_COMM_NULL) MPI_Comm_free(&data_);
}

int MpiSession::next_epoch() {
  int mine = 0;
  {
    const std::lock_guard lock(process().mutex);
    mine = process().epochs;
  }
  int epoch = 0;
  check_mpi(MPI_Allreduce(&mine, &epoch, 1, MPI_INT, MPI_MAX, data_), "MPI_Allreduce");
  if (first_epoch_ < 0) first_epoch_ = epoch;
  if (epoch - first_epoch_ >= epochs_of_messages) {
    MPI_Comm fresh = MPI_COMM_NULL;
    check_mpi(MPI_Comm_dup(data_, &fresh), "MPI_Comm_dup");
    MPI_Comm_set_errhandler(fresh, MPI_ERRORS_RETURN);
    data_ = fresh;
    first_epoch_ = epoch;
  }
  const std::lock_guard lock(process().mutex);
  process().epochs = std::max(process().epochs, epoch + 1);
  return epoch;
}

std::vector<std::string> MpiSession::gather(const std::string& mine) const {
  const int length = static_cast<int>(mine.size());
  std::vector<int> lengths(world_size_);
  check_mpi(MPI_Allgather(&length, 1, MPI_INT, lengths.data(), 1, MPI_INT, data_), "MPI_Allgather");
  std::vector<int> starts(world_size_ + 1, 0);
  std::partial_sum(lengths.begin(), lengths.end(), starts.begin() + 1);
  std::string all(static_cast<std::size_t>(starts.back()), '\0');
  check_mpi(MPI_Allgatherv(mine.data(), length, MPI_CHAR, all.data(), lengths.data(), starts.data(), MPI_CHAR, data_),
            "MPI_Allgatherv");
  std::vector<std::string> strings;
  for (int r = 0; r < world_size_; ++r) {
    strings.push_back(all.substr(static_cast<std::size_t>(starts[r]), static_cast<std::size_t>(lengths[r])));
  }
  return strings;
}

void open_mpi_world() {
  const std::lock_guard lock(process().mutex);
  ++process().worlds;
}

void close_mpi_world(bool well) {
  bool end = false;
  {
    const std::lock_guard lock(process().mutex);
    process().all_ended_well = process().all_ended_well && well;
    end = --process().worlds == 0 && process().started_here && process().all_ended_well;
  }
  if (end && mpi_is_running()) MPI_Finalize();
}

}  // namespace regatta
