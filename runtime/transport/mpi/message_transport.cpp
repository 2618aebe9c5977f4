#include "runtime/transport/mpi/message_transport.h"

#include <algorithm>

#include "runtime/transport/shared/memory_sharing.h"
#include "runtime/transport/transport_shared.h"
#include "runtime/transport/wait.h"

namespace regatta {
namespace {

/// Pieces of a reduce-scatter: receiving the next ones goes on while one is being summed.
constexpr std::int64_t host_tile_bytes = 1 << 20;
/// A device's launches want more to do; its staging, of all ranks and tiles ahead, stays within this if it can.
constexpr std::int64_t device_staging_bytes = 128 << 20;
constexpr int tiles_ahead = 4;

}  // namespace

MessageTransport::MessageTransport(int rank, std::vector<int> root_ranks, int group,
                                   std::shared_ptr<TransportShared> shared, std::shared_ptr<MpiSession> session,
                                   MPI_Comm communicator, int epoch, std::string data_path,
                                   std::shared_ptr<Device> device)
    : Transport(rank, std::move(root_ranks), group, std::move(shared)),
      session_(std::move(session)),
      communicator_(communicator),
      epoch_(epoch),
      data_path_(std::move(data_path)),
      device_(std::move(device)),
      stream_(device_ ? Stream(*device_) : Stream()),
      batches_(tiles_ahead),
      heard_(world_size(), 0),
      pieces_(world_size()) {}

void MessageTransport::begin() {
  if (device_) device_->bind();
  // Messages of calls that do not belong together never meet: they differ in epoch, group or number. Between two ranks,
  // those of one call arrive in the order they were sent.
  ++sequence_;
  tag_ = static_cast<int>((static_cast<unsigned>(epoch_) % MpiSession::epochs_of_messages) << 25 |
                          (static_cast<unsigned>(group()) % 512) << 16 | (sequence_ % 65536));
  std::fill(heard_.begin(), heard_.end(), char{0});
}

void MessageTransport::send(Batch& batch, int peer, const std::byte* data, std::int64_t bytes) {
  for (std::int64_t at = 0; at < bytes; at += longest_message) {
    const int part = static_cast<int>(std::min(longest_message, bytes - at));
    MPI_Request request = MPI_REQUEST_NULL;
    check_mpi(MPI_Isend(data + at, part, MPI_BYTE, root_ranks()[peer], tag_, communicator_, &request), "MPI_Isend");
    batch.requests.push_back(request);
    batch.messages.push_back({peer, false, part});
    ++batch.open;
  }
}

void MessageTransport::receive(Batch& batch, int peer, std::byte* data, std::int64_t bytes) {
  for (std::int64_t at = 0; at < bytes; at += longest_message) {
    const int part = static_cast<int>(std::min(longest_message, bytes - at));
    MPI_Request request = MPI_REQUEST_NULL;
    check_mpi(MPI_Irecv(data + at, part, MPI_BYTE, root_ranks()[peer], tag_, communicator_, &request), "MPI_Irecv");
    batch.requests.push_back(request);
    batch.messages.push_back({peer, true, part});
    ++batch.open;
  }
}

void MessageTransport::check_arrival(const Message& message, const MPI_Status& status, const Wait& wait) const {
  int bytes = 0;
  MPI_Get_count(&status, MPI_BYTE, &bytes);
  if (bytes == message.bytes) return;
  throw Error(Code::invalid_argument,
              wait.what() + ": rank " + std::to_string(root_ranks()[message.peer]) + " sends " + std::to_string(bytes) +
                  " bytes, rank " + std::to_string(root_ranks()[rank()]) + " expects " + std::to_string(message.bytes));
}

bool MessageTransport::progress(Batch& batch, const Wait& wait) {
  const auto count = batch.requests.size();
  if (indices_.size() < count) {
    indices_.resize(count);
    statuses_.resize(count);
  }
  int completed = 0;
  const int result =
      MPI_Testsome(static_cast<int>(count), batch.requests.data(), &completed, indices_.data(), statuses_.data());
  if (completed == MPI_UNDEFINED) completed = 0;
  for (int i = 0; i < completed; ++i) {
    const Message& message = batch.messages[static_cast<std::size_t>(indices_[i])];
    --batch.open;
    if (result == MPI_ERR_IN_STATUS && statuses_[i].MPI_ERROR != MPI_SUCCESS) {
      int kind = MPI_SUCCESS;
      MPI_Error_class(statuses_[i].MPI_ERROR, &kind);
      const std::string rank = "rank " + std::to_string(root_ranks()[message.peer]);
      if (kind == MPI_ERR_TRUNCATE) {
        throw Error(Code::invalid_argument, wait.what() + ": " + rank + " sends more than the " +
                                                std::to_string(message.bytes) + " bytes that rank " +
                                                std::to_string(root_ranks()[this->rank()]) + " expects");
      }
      check_mpi(statuses_[i].MPI_ERROR, wait.what() + " with " + rank);
    }
    if (message.incoming) {
      heard_[message.peer] = 1;
      check_arrival(message, statuses_[i], wait);
    }
  }
  if (result != MPI_ERR_IN_STATUS) check_mpi(result, wait.what());
  return completed > 0;
}

void MessageTransport::complete(Batch& batch, Wait& wait) {
  wait.until(
      [&] {
        if (batch.open > 0 && progress(batch, wait)) wait.moved();
        return batch.open == 0;
      },
      [&](auto add) {
        // Others may hang on the same silent rank: those that have not said a word are named first.
        std::vector<char> pending(static_cast<std::size_t>(world_size()), 0);
        bool silent = false;
        for (std::size_t i = 0; i < batch.requests.size(); ++i) {
          if (batch.requests[i] == MPI_REQUEST_NULL) continue;
          const int peer = batch.messages[i].peer;
          pending[peer] = 1;
          silent = silent || heard_[peer] == 0;
        }
        for (int p = 0; p < world_size(); ++p) {
          if (pending[p] != 0 && (!silent || heard_[p] == 0)) add(root_ranks()[p]);
        }
      });
  batch.requests.clear();
  batch.messages.clear();
}

void MessageTransport::abandon() noexcept {
  for (Batch& batch : batches_) {
    for (std::size_t i = 0; i < batch.requests.size(); ++i) {
      if (batch.requests[i] == MPI_REQUEST_NULL) continue;
      // Sends can't be taken back; the job is ending, and they are left to MPI.
      if (batch.messages[i].incoming) MPI_Cancel(&batch.requests[i]);
      MPI_Request_free(&batch.requests[i]);
    }
    batch.requests.clear();
    batch.messages.clear();
    batch.open = 0;
  }
}

std::byte* MessageTransport::device_staging(std::int64_t bytes) {
  if (device_staging_.bytes() < bytes) device_staging_ = Buffer(bytes, device_.get());
  return device_staging_.data();
}

std::int64_t MessageTransport::tile_bytes() const {
  if (!device_) return host_tile_bytes;
  const std::int64_t tile = device_staging_bytes / (tiles_ahead * world_size()) / host_tile_bytes * host_tile_bytes;
  return std::max(tile, host_tile_bytes);
}

std::byte* MessageTransport::staging(std::int64_t bytes) {
  if (staging_bytes_ < bytes) {
    staging_ = private_memory(bytes);
    staging_bytes_ = bytes;
  }
  return static_cast<std::byte*>(staging_.get());
}

void MessageTransport::do_reduce_scatter(const SymmetricBuffer& buffer, std::int64_t offset,
                                         std::span<const std::int64_t> bounds, const Reducer& reduce,
                                         std::string_view label, std::optional<DType> /*elements*/) {
  Wait wait(*shared().peers, shared().options, "reduce_scatter", label);
  begin();
  const int ranks = world_size();
  const std::int64_t tile_bytes = this->tile_bytes();
  const auto tiles = [&](std::int64_t bytes) { return (bytes + tile_bytes - 1) / tile_bytes; };
  const std::byte* data = buffer.data() + offset;
  const std::int64_t own_begin = bounds[rank()];
  const std::int64_t own_end = bounds[rank() + 1];
  std::int64_t steps = 0;
  for (int p = 0; p < ranks; ++p) steps = std::max(steps, tiles(bounds[p + 1] - bounds[p]));
  const std::int64_t ahead = std::min<std::int64_t>(tiles_ahead, steps);
  const std::int64_t stage_bytes = own_end > own_begin ? ahead * ranks * tile_bytes : 0;
  std::byte* stage = device_ ? device_staging(stage_bytes) : staging(stage_bytes);
  const auto place = [&](std::int64_t step, int p) { return stage + (step % tiles_ahead * ranks + p) * tile_bytes; };

  const auto start = [&](std::int64_t step) {
    Batch& batch = batches_[static_cast<std::size_t>(step % tiles_ahead)];
    const std::int64_t at = step * tile_bytes;
    for (int k = 1; k < ranks; ++k) {
      const int from = (rank() + ranks - k) % ranks;
      const std::int64_t bytes = std::min(tile_bytes, own_end - own_begin - at);
      if (bytes > 0) receive(batch, from, place(step, from), bytes);
    }
    for (int k = 1; k < ranks; ++k) {
      const int to = (rank() + k) % ranks;
      const std::int64_t bytes = std::min(tile_bytes, bounds[to + 1] - bounds[to] - at);
      if (bytes > 0) send(batch, to, data + bounds[to] + at, bytes);
    }
  };

  try {
    for (std::int64_t step = 0; step < ahead; ++step) start(step);
    for (std::int64_t step = 0; step < steps; ++step) {
      complete(batches_[static_cast<std::size_t>(step % tiles_ahead)], wait);
      const std::int64_t begin = own_begin + step * tile_bytes;
      if (begin < own_end) {
        for (int p = 0; p < ranks; ++p) pieces_[p] = p == rank() ? data + begin : place(step, p);
        reduce(pieces_, begin, std::min(begin + tile_bytes, own_end));
        if (device_) device_->synchronize(stream());  // its place is received into next
      }
      if (step + tiles_ahead < steps) start(step + tiles_ahead);
    }
  } catch (...) {
    abandon();
    throw;
  }
}

void MessageTransport::do_all_gather(const SymmetricBuffer& buffer, std::int64_t offset,
                                     std::span<const std::int64_t> bounds, std::string_view label) {
  Wait wait(*shared().peers, shared().options, "all_gather", label);
  begin();
  const int ranks = world_size();
  std::byte* data = buffer.data() + offset;
  Batch& batch = batches_.front();
  try {
    for (int k = 1; k < ranks; ++k) {
      const int from = (rank() + ranks - k) % ranks;
      receive(batch, from, data + bounds[from], bounds[from + 1] - bounds[from]);
    }
    for (int k = 1; k < ranks; ++k) {
      send(batch, (rank() + k) % ranks, data + bounds[rank()], bounds[rank() + 1] - bounds[rank()]);
    }
    complete(batch, wait);
  } catch (...) {
    abandon();
    throw;
  }
}

void MessageTransport::do_exchange(std::span<const Outgoing> send, std::span<const Incoming> receive,
                                   std::string_view kind, std::string_view label) {
  Wait wait(*shared().peers, shared().options, kind, label);
  begin();
  Batch& batch = batches_.front();
  try {
    for (int p = 0; p < world_size(); ++p) this->receive(batch, p, receive[p].data, receive[p].bytes);
    for (int p = 0; p < world_size(); ++p) this->send(batch, p, send[p].data, send[p].bytes);
    complete(batch, wait);
  } catch (...) {
    abandon();
    throw;
  }
}

void MessageTransport::do_barrier(std::string_view label) {
  Wait wait(*shared().peers, shared().options, "barrier", label);
  begin();
  Batch& batch = batches_.front();
  // Every pair, not a tree: a tree would name the wrong rank when one is missing.
  std::byte* bytes = staging(world_size() + 1);
  try {
    for (int p = 0; p < world_size(); ++p) {
      if (p == rank()) continue;
      receive(batch, p, bytes + p, 1);
      this->send(batch, p, bytes + world_size(), 1);
    }
    complete(batch, wait);
  } catch (...) {
    abandon();
    throw;
  }
}

// shared_ptr: queued collectives hold the memory too.
std::shared_ptr<void> MessageTransport::memory_of(std::int64_t bytes, std::byte*& data) const {
  if (!device_) {
    const std::shared_ptr<void> memory = private_memory(bytes);
    data = static_cast<std::byte*>(memory.get());
    return memory;
  }
  auto memory = std::make_shared<Buffer>(bytes, device_.get());
  data = memory->data();
  return memory;
}

SymmetricBuffer MessageTransport::do_allocate(std::int64_t bytes, int id) {
  std::shared_ptr<void> memory;
  std::byte* data = nullptr;
  std::string problem;
  try {
    memory = memory_of(bytes, data);
  } catch (const Error& error) {
    problem = error.what();
  }
  const std::vector<std::string> problems = gather_strings(problem, "memory allocated");
  for (int p = 0; p < world_size(); ++p) {
    if (!problems[p].empty()) {
      throw Error(Code::device, "rank " + std::to_string(root_ranks()[p]) + ": " + problems[p]);
    }
  }
  auto shared = std::make_shared<SymmetricMemory>();
  shared->group = group();
  shared->copies.resize(static_cast<std::size_t>(world_size()), nullptr);
  shared->copies[rank()] = data;
  shared->owners.push_back(std::move(memory));
  return SymmetricBuffer(data, bytes, id, std::move(shared));
}

}  // namespace regatta
