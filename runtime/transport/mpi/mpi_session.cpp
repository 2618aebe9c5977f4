#include "runtime/transport/mpi/mpi_session.h"

#include <numeric>

#include "runtime/error.h"

namespace regatta {

void check_mpi(int result, std::string_view what) {
  if (result == MPI_SUCCESS) return;
  // Open MPI writes the whole of the buffer that the standard asks for.
  char text[MPI_MAX_ERROR_STRING] = {};
  int length = 0;
  MPI_Error_string(result, text, &length);
  throw Error(Code::transport, std::string(what) + ": " + std::string(text, static_cast<std::size_t>(length)));
}

std::shared_ptr<MpiSession> MpiSession::get() {
  int finalized = 0;
  MPI_Finalized(&finalized);
  if (finalized != 0) {
    throw Error(Code::invalid_argument, "MPI has been finalised already; a process can join its job only once");
  }
  static const std::shared_ptr<MpiSession> session(new MpiSession);
  return session;
}

MpiSession::MpiSession() {
  int initialized = 0;
  MPI_Initialized(&initialized);
  int level = MPI_THREAD_SINGLE;
  if (initialized == 0) {
    check_mpi(MPI_Init_thread(nullptr, nullptr, MPI_THREAD_MULTIPLE, &level), "MPI_Init_thread");
    owner_ = true;
  } else {
    MPI_Query_thread(&level);
  }
  if (level != MPI_THREAD_MULTIPLE) {
    throw Error(Code::invalid_argument,
                "transport 'mpi' needs MPI_THREAD_MULTIPLE, but MPI was initialised with thread level " +
                    std::to_string(level) + "; call MPI_Init_thread, or leave it to the transport");
  }
  MPI_Comm_rank(MPI_COMM_WORLD, &rank_);
  MPI_Comm_size(MPI_COMM_WORLD, &world_size_);
  check_mpi(MPI_Comm_dup(MPI_COMM_WORLD, &data_), "MPI_Comm_dup");
  check_mpi(MPI_Comm_dup(MPI_COMM_WORLD, &notices_), "MPI_Comm_dup");
  MPI_Comm_set_errhandler(data_, MPI_ERRORS_RETURN);
  MPI_Comm_set_errhandler(notices_, MPI_ERRORS_RETURN);
  MPI_Comm host = MPI_COMM_NULL;
  check_mpi(MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, rank_, MPI_INFO_NULL, &host),
            "MPI_Comm_split_type");
  check_mpi(MPI_Allreduce(&rank_, &host_leader_, 1, MPI_INT, MPI_MIN, host), "MPI_Allreduce");
  MPI_Comm_free(&host);
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

void MpiSession::finalize() {
  int finalized = 0;
  MPI_Finalized(&finalized);
  if (owner_ && finalized == 0) MPI_Finalize();
}

}  // namespace regatta
