#include "runtime/transport/shared/board_transport.h"

#include <algorithm>
#include <cstring>

#include "runtime/transport/transport_shared.h"
#include "runtime/transport/wait.h"

namespace regatta {
namespace {

/// Precedes each message in a ring, so that ranks that disagree on the counts are told instead of reading garbage.
struct MessageHeader {
  std::uint64_t number;
  std::int64_t bytes;
};
constexpr std::int64_t header_bytes = sizeof(MessageHeader);

std::uint64_t mix(std::uint64_t hash, std::uint64_t value) {
  hash ^= value + 0x9e3779b97f4a7c15ULL + (hash << 6) + (hash >> 2);
  hash *= 0xff51afd7ed558ccdULL;
  return hash ^ (hash >> 33);
}

std::uint64_t signature_of(Collective kind, int buffer, std::int64_t offset, std::span<const std::int64_t> bounds) {
  std::uint64_t hash = mix(static_cast<std::uint64_t>(kind) + 1, static_cast<std::uint64_t>(buffer));
  hash = mix(hash, static_cast<std::uint64_t>(offset));
  for (const std::int64_t bound : bounds) hash = mix(hash, static_cast<std::uint64_t>(bound));
  return hash;
}

/// Every rank's stretch of a tile and the result fit in a core's second-level cache.
std::int64_t tile_bytes(int ranks) {
  const std::int64_t tile = (512 << 10) / ranks / 4096 * 4096;
  return std::clamp<std::int64_t>(tile, 16 << 10, 128 << 10);
}

}  // namespace

BoardTransport::BoardTransport(int rank, std::vector<int> root_ranks, int group,
                               std::shared_ptr<TransportShared> shared, std::byte* board,
                               std::shared_ptr<void> board_owner, std::shared_ptr<MemorySharing> sharing,
                               std::string data_path)
    : Transport(rank, std::move(root_ranks), group, std::move(shared)),
      board_(board, world_size()),
      board_owner_(std::move(board_owner)),
      sharing_(std::move(sharing)),
      data_path_(std::move(data_path)),
      pieces_(world_size()),
      progress_(world_size()) {}

void BoardTransport::arrive(Wait& wait, std::uint64_t signature, std::string_view label) {
  ++sequence_;
  BoardRow& mine = board_.row(rank());
  mine.signature = signature;
  const std::size_t length = std::min<std::size_t>(label.size(), BoardRow::label_bytes - 1);
  std::memcpy(mine.label, label.data(), length);
  mine.label[length] = '\0';
  mine.arrived.store(sequence_, std::memory_order_release);
  wait.moved();
}

void BoardTransport::wait_for(Wait& wait, int peer) {
  const BoardRow& row = board_.row(peer);
  wait.until([&] { return row.arrived.load(std::memory_order_acquire) >= sequence_; },
             [&](auto add) {
               for (int p = 0; p < world_size(); ++p) {
                 if (board_.row(p).arrived.load(std::memory_order_acquire) < sequence_) add(root_ranks()[p]);
               }
             });
}

void BoardTransport::check_signature(const Wait& wait, int peer, std::uint64_t signature) const {
  const BoardRow& row = board_.row(peer);
  if (row.signature == signature) return;
  throw Error(Code::invalid_argument, "rank " + std::to_string(root_ranks()[peer]) + " is at '" + row.label +
                                          "' with another kind, buffer or bounds " + "while rank " +
                                          std::to_string(root_ranks()[rank()]) + " is at " + wait.what() +
                                          ": all ranks of a group must make the same calls");
}

void BoardTransport::finish(Wait& wait) {
  board_.row(rank()).finished.store(sequence_, std::memory_order_release);
  const auto unfinished = [&](int p) { return board_.row(p).finished.load(std::memory_order_acquire) < sequence_; };
  wait.until(
      [&] {
        for (int p = 0; p < world_size(); ++p) {
          if (unfinished(p)) return false;
        }
        return true;
      },
      [&](auto add) {
        for (int p = 0; p < world_size(); ++p) {
          if (unfinished(p)) add(root_ranks()[p]);
        }
      });
}

void BoardTransport::do_reduce_scatter(const SymmetricBuffer& buffer, std::int64_t offset,
                                       std::span<const std::int64_t> bounds, const Reducer& reduce,
                                       std::string_view label, std::optional<DType> /*elements*/) {
  Wait wait(*shared().peers, shared().options, "reduce_scatter", label);
  const std::uint64_t signature = signature_of(Collective::reduce_scatter, buffer.id(), offset, bounds);
  arrive(wait, signature, label);
  for (int p = 0; p < world_size(); ++p) {
    wait_for(wait, p);
    check_signature(wait, p, signature);
  }
  const std::int64_t tile = tile_bytes(world_size());
  const std::int64_t chunk_end = bounds[rank() + 1];
  for (std::int64_t begin = bounds[rank()]; begin < chunk_end; begin += tile) {
    const std::int64_t end = std::min(begin + tile, chunk_end);
    for (int p = 0; p < world_size(); ++p) pieces_[p] = buffer.memory()->copies[p] + offset + begin;
    reduce(pieces_, begin, end);
  }
  finish(wait);
}

void BoardTransport::do_all_gather(const SymmetricBuffer& buffer, std::int64_t offset,
                                   std::span<const std::int64_t> bounds, std::string_view label) {
  Wait wait(*shared().peers, shared().options, "all_gather", label);
  const std::uint64_t signature = signature_of(Collective::all_gather, buffer.id(), offset, bounds);
  arrive(wait, signature, label);
  // Starting with the next rank spreads the readers over the sources.
  for (int step = 1; step < world_size(); ++step) {
    const int p = (rank() + step) % world_size();
    wait_for(wait, p);
    check_signature(wait, p, signature);
    const std::int64_t begin = offset + bounds[p];
    std::memcpy(buffer.data() + begin, buffer.memory()->copies[p] + begin,
                static_cast<std::size_t>(bounds[p + 1] - bounds[p]));
  }
  finish(wait);
}

void BoardTransport::do_barrier(std::string_view label) {
  Wait wait(*shared().peers, shared().options, "barrier", label);
  const std::uint64_t signature = signature_of(Collective::barrier, 0, 0, {});
  arrive(wait, signature, label);
  for (int p = 0; p < world_size(); ++p) {
    wait_for(wait, p);
    check_signature(wait, p, signature);
  }
  finish(wait);
}

bool BoardTransport::send_some(int peer, const Outgoing& message) {
  Progress& progress = progress_[peer];
  if (message.bytes == 0 || progress.sent == header_bytes + message.bytes) return false;
  bool moved = false;
  if (progress.sent == 0) {
    const MessageHeader header{progress.sent_messages, message.bytes};
    if (board_.write(rank(), peer, reinterpret_cast<const std::byte*>(&header), header_bytes, true) == 0) return false;
    ++progress.sent_messages;
    progress.sent = header_bytes;
    moved = true;
  }
  const std::int64_t at = progress.sent - header_bytes;
  const std::int64_t written = board_.write(rank(), peer, message.data + at, message.bytes - at);
  progress.sent += written;
  return moved || written > 0;
}

bool BoardTransport::receive_some(int peer, const Incoming& message, std::string_view kind, std::string_view label) {
  Progress& progress = progress_[peer];
  if (message.bytes == 0 || progress.received == header_bytes + message.bytes) return false;
  bool moved = false;
  if (progress.received == 0) {
    MessageHeader header{};
    if (board_.read(peer, rank(), reinterpret_cast<std::byte*>(&header), header_bytes, true) == 0) return false;
    if (header.number != progress.received_messages || header.bytes != message.bytes) {
      throw Error(Code::invalid_argument,
                  std::string(kind) + " '" + std::string(label) + "': rank " + std::to_string(root_ranks()[peer]) +
                      " sends " + std::to_string(header.bytes) + " bytes, rank " +
                      std::to_string(root_ranks()[rank()]) + " expects " + std::to_string(message.bytes));
    }
    ++progress.received_messages;
    progress.received = header_bytes;
    moved = true;
  }
  const std::int64_t at = progress.received - header_bytes;
  const std::int64_t read = board_.read(peer, rank(), message.data + at, message.bytes - at);
  progress.received += read;
  return moved || read > 0;
}

void BoardTransport::do_exchange(std::span<const Outgoing> send, std::span<const Incoming> receive,
                                 std::string_view kind, std::string_view label) {
  Wait wait(*shared().peers, shared().options, kind, label);
  for (Progress& progress : progress_) progress.sent = progress.received = 0;
  const auto complete = [&](int p) {
    return (send[p].bytes == 0 || progress_[p].sent == header_bytes + send[p].bytes) &&
           (receive[p].bytes == 0 || progress_[p].received == header_bytes + receive[p].bytes);
  };
  wait.until(
      [&] {
        bool all = true;
        for (int p = 0; p < world_size(); ++p) {
          const bool sent = send_some(p, send[p]);
          const bool received = receive_some(p, receive[p], kind, label);
          if (sent || received) wait.moved();
          all = all && complete(p);
        }
        return all;
      },
      [&](auto add) {
        for (int p = 0; p < world_size(); ++p) {
          if (!complete(p)) add(root_ranks()[p]);
        }
      });
}

SymmetricBuffer BoardTransport::do_allocate(std::int64_t bytes, int id) {
  // Every step is followed by a gather of what went wrong, so that all ranks throw or none does.
  MemorySharing::Piece mine;
  std::string problem;
  try {
    mine = sharing_->create(bytes);
  } catch (const Error& error) {
    problem = error.what();
  }
  const std::vector<std::string> handles = gather_strings(mine.handle, "memory handles");
  auto memory = std::make_shared<SymmetricMemory>();
  memory->group = group();
  memory->copies.resize(world_size());
  memory->owners.resize(world_size());
  for (int p = 0; p < world_size() && problem.empty(); ++p) {
    try {
      if (handles[p].empty()) continue;
      MemorySharing::Piece piece = p == rank() ? mine : sharing_->open(handles[p], bytes);
      memory->copies[p] = piece.data;
      memory->owners[p] = std::move(piece.owner);
    } catch (const Error& error) {
      problem = error.what();
    }
  }
  const std::vector<std::string> problems = gather_strings(problem, "memory mapped");
  if (!mine.handle.empty()) sharing_->retire(mine.handle);
  for (int p = 0; p < world_size(); ++p) {
    if (!problems[p].empty()) {
      throw Error(Code::device, "rank " + std::to_string(root_ranks()[p]) + ": " + problems[p]);
    }
  }
  return SymmetricBuffer(mine.data, bytes, id, std::move(memory));
}

}  // namespace regatta
