#include "runtime/transport/nccl/nccl_group.h"

#include <algorithm>
#include <cstring>

#include "runtime/transport/transport_shared.h"
#include "runtime/transport/wait.h"

namespace regatta {
namespace {

constexpr std::int64_t alignment = 256;
std::int64_t aligned(std::int64_t bytes) { return (bytes + alignment - 1) / alignment * alignment; }

cudaStream_t stream_of(StreamHandle handle) { return static_cast<cudaStream_t>(handle); }

ncclDataType_t type_of(DType dtype) {
  switch (dtype) {
    case DType::bf16: return ncclBfloat16;
    case DType::f16: return ncclFloat16;
    case DType::f32: break;
  }
  return ncclFloat32;
}

}  // namespace

NcclGroup::NcclGroup(int rank, std::vector<int> root_ranks, int group, std::shared_ptr<TransportShared> shared,
                     std::shared_ptr<NcclStream> stream, const ncclUniqueId& id)
    : Transport(rank, std::move(root_ranks), group, std::move(shared)),
      stream_(std::move(stream)),
      begun_(*stream_->device),
      flag_(alignment, stream_->device.get()),
      pieces_(static_cast<std::size_t>(world_size())) {
  if (world_size() == 1) return;
  device()->bind();
  ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
  config.blocking = 0;  // so that every wait here has a deadline
  Wait wait(*this->shared().peers, options(), "joining", "an NCCL communicator");
  check(ncclCommInitRankConfig(&communicator_, world_size(), id, rank, &config), "join a communicator");
  try {
    settle(wait);
    // Connections are made here and not in the middle of a step.
    in_group("joining", "an NCCL communicator", [&] {
      for (int p = 0; p < world_size(); ++p) {
        if (p == rank) continue;
        check(ncclSend(flag_.data(), 1, ncclInt8, p, communicator_, stream_of(this->stream())), "send");
        check(ncclRecv(flag_.data() + 1, 1, ncclInt8, p, communicator_, stream_of(this->stream())), "receive");
      }
    });
    check(ncclAllReduce(flag_.data(), flag_.data(), 1, ncclInt8, ncclSum, communicator_, stream_of(this->stream())),
          "add up");
    settle(wait);
    Event done(*device());
    device()->record(done.handle(), this->stream());
    wait.until([&] { return device()->done(done.handle()); }, [&](const auto& add) { add_others(0, add); });
    stream_->counts->join(group);
  } catch (...) {
    abort_communicator();
    throw;
  }
}

NcclGroup::~NcclGroup() {
  drain();
  if (communicator_ == nullptr || aborted_) return;
  ncclResult_t state = ncclCommFinalize(communicator_);
  // A moment for the peers to do the same; destroying is local.
  for (int i = 0; i < 1000 && state == ncclInProgress; ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
    if (ncclCommGetAsyncError(communicator_, &state) != ncclSuccess) break;
  }
  state == ncclSuccess ? ncclCommDestroy(communicator_) : ncclCommAbort(communicator_);
}

std::string NcclGroup::data_path() const {
  return std::string("NCCL, gradients added ") +
         (options().reduction == TransportOptions::Reduction::tree ? "as a tree in rank order" : "by NCCL");
}

void NcclGroup::check(ncclResult_t result, std::string_view what) const {
  if (result == ncclSuccess || result == ncclInProgress) return;
  const char* const last = ncclGetLastError(nullptr);
  throw Error(Code::transport, "NCCL could not " + std::string(what) + ": " + ncclGetErrorString(result) +
                                   (last != nullptr && *last != '\0' ? std::string(" (") + last + ")" : ""));
}

void NcclGroup::abort_communicator() noexcept {
  const std::lock_guard lock(life_);
  if (communicator_ != nullptr && !aborted_) ncclCommAbort(communicator_);
  aborted_ = true;
}

// Throws once the communicator has been aborted, which also frees it.
ncclResult_t NcclGroup::state() {
  const std::lock_guard lock(life_);
  if (aborted_) throw Error(Code::aborted, "a collective was given up: its NCCL communicator was aborted");
  ncclResult_t state = ncclSuccess;
  check(ncclCommGetAsyncError(communicator_, &state), "ask for its state");
  return state;
}

// Calls of a communicator that must not block answer later.
void NcclGroup::settle(Wait& wait) {
  ncclResult_t state = ncclInProgress;
  wait.until(
      [&] {
        state = this->state();
        return state != ncclInProgress;
      },
      [&](const auto& add) { add_others(next_.number, add); });
  if (state != ncclSuccess) check(state, "run " + wait.what());
}

void NcclGroup::in_group(std::string_view kind, std::string_view label, const std::function<void()>& calls) {
  Wait wait(*shared().peers, options(), kind, label);
  try {
    {
      const std::lock_guard lock(life_);
      if (aborted_) throw Error(Code::aborted, wait.what() + " was given up: its NCCL communicator was aborted");
      check(ncclGroupStart(), "start a group");
      try {
        calls();
      } catch (...) {
        ncclGroupEnd();
        throw;
      }
      check(ncclGroupEnd(), "put " + wait.what() + " on its stream");
    }
    settle(wait);
  } catch (...) {
    abort_communicator();
    throw;
  }
}

// The stream goes on where the followed one is now.
void NcclGroup::do_begin() {
  next_ = {next_.number + 1, {}, {}};
  stream_->counts->begin(group());
  device()->bind();
  device()->record(begun_.handle(), followed());
  device()->wait(stream(), begun_.handle());
}

void NcclGroup::do_reduce_scatter(const SymmetricBuffer& buffer, std::int64_t offset,
                                  std::span<const std::int64_t> bounds, const Reducer& reduce, std::string_view label,
                                  std::optional<DType> elements) {
  std::byte* const data = buffer.data() + offset;
  const std::int64_t mine = bounds[rank() + 1] - bounds[rank()];
  if (elements && options().reduction == TransportOptions::Reduction::sum) {
    const std::int64_t size = size_of(*elements);
    in_group("reduce_scatter", label, [&] {
      for (int p = 0; p < world_size(); ++p) {
        if (bounds[p] == bounds[p + 1]) continue;
        check(
            ncclReduce(data + bounds[p], data + bounds[p], static_cast<std::size_t>((bounds[p + 1] - bounds[p]) / size),
                       type_of(*elements), ncclSum, p, communicator_, stream_of(stream())),
            "add up");
      }
    });
    const std::byte* const sum = data + bounds[rank()];
    if (mine > 0) reduce({&sum, 1}, bounds[rank()], bounds[rank() + 1]);
    return;
  }
  // The reducer's kernels come before the next collective on the stream, so one place for the pieces is enough.
  const std::int64_t room = aligned(mine);
  if (pieces_memory_.bytes() < room * world_size()) {
    device()->synchronize(stream());
    pieces_memory_ = Buffer(room * world_size(), device());
  }
  in_group("reduce_scatter", label, [&] {
    for (int p = 0; p < world_size(); ++p) {
      pieces_[p] = p == rank() ? data + bounds[rank()] : pieces_memory_.data() + p * room;
      if (p == rank()) continue;
      if (bounds[p] < bounds[p + 1])
        check(ncclSend(data + bounds[p], static_cast<std::size_t>(bounds[p + 1] - bounds[p]), ncclInt8, p,
                       communicator_, stream_of(stream())),
              "send");
      if (mine > 0)
        check(ncclRecv(pieces_memory_.data() + p * room, static_cast<std::size_t>(mine), ncclInt8, p, communicator_,
                       stream_of(stream())),
              "receive");
    }
  });
  if (mine > 0) reduce(pieces_, bounds[rank()], bounds[rank() + 1]);
}

void NcclGroup::do_all_gather(const SymmetricBuffer& buffer, std::int64_t offset, std::span<const std::int64_t> bounds,
                              std::string_view label) {
  std::byte* const data = buffer.data() + offset;
  const std::int64_t first = bounds[1] - bounds[0];
  bool equal = first > 0;
  for (int p = 0; p < world_size(); ++p) equal = equal && bounds[p + 1] - bounds[p] == first;
  in_group("all_gather", label, [&] {
    if (equal) {
      check(ncclAllGather(data + bounds[rank()], data + bounds[0], static_cast<std::size_t>(first), ncclInt8,
                          communicator_, stream_of(stream())),
            "gather");
      return;
    }
    for (int p = 0; p < world_size(); ++p)
      if (bounds[p] < bounds[p + 1])
        check(ncclBroadcast(data + bounds[p], data + bounds[p], static_cast<std::size_t>(bounds[p + 1] - bounds[p]),
                            ncclInt8, p, communicator_, stream_of(stream())),
              "broadcast");
  });
}

std::unique_ptr<NcclGroup::Staging> NcclGroup::staging(std::int64_t bytes) {
  {
    const std::lock_guard lock(mutex_);
    for (auto& one : free_)
      if (one->host.bytes() >= bytes) {
        std::swap(one, free_.back());
        auto found = std::move(free_.back());
        free_.pop_back();
        return found;
      }
  }
  auto made = std::make_unique<Staging>();
  const std::int64_t room = std::max<std::int64_t>(2 * bytes, 1 << 16);
  made->host = Buffer::pinned(room, *device());
  made->memory = Buffer(room, device());
  return made;
}

// The host's memory goes through pinned memory and the device; the device's goes as it is.
void NcclGroup::do_exchange(std::span<const Outgoing> send, std::span<const Incoming> receive, std::string_view kind,
                            std::string_view label) {
  const Outgoing& own = send[rank()];
  const void* some = nullptr;
  std::int64_t total = 0;
  for (int p = 0; p < world_size(); ++p) {
    if (send[p].bytes > 0) some = send[p].data;
    if (receive[p].bytes > 0) some = receive[p].data;
    if (p != rank()) total += aligned(send[p].bytes) + aligned(receive[p].bytes);
  }
  if (some == nullptr) return;
  const bool on_device = device()->owns(some);
  if (own.bytes > 0 && own.data != receive[rank()].data) {
    if (on_device) {
      device()->copy(receive[rank()].data, own.data, own.bytes, stream());
    } else {
      std::memmove(receive[rank()].data, own.data, static_cast<std::size_t>(own.bytes));
    }
  }
  if (total == 0) return;
  std::byte *host = nullptr, *memory = nullptr;
  if (!on_device) {
    next_.staging = staging(total);
    host = next_.staging->host.data();
    memory = next_.staging->memory.data();
  }
  std::int64_t at = 0;
  std::vector<std::int64_t> sent_from(send.size());
  for (int p = 0; p < world_size() && !on_device; ++p) {
    if (p == rank() || send[p].bytes == 0) continue;
    std::memcpy(host + at, send[p].data, static_cast<std::size_t>(send[p].bytes));
    sent_from[p] = at;
    at += aligned(send[p].bytes);
  }
  if (!on_device) device()->copy(memory, host, at, stream());
  const std::int64_t received_from = at;
  in_group(kind, label, [&] {
    for (int p = 0; p < world_size(); ++p) {
      if (p == rank()) continue;
      if (send[p].bytes > 0)
        check(ncclSend(on_device ? send[p].data : memory + sent_from[p], static_cast<std::size_t>(send[p].bytes),
                       ncclInt8, p, communicator_, stream_of(stream())),
              "send");
      if (receive[p].bytes == 0) continue;
      check(ncclRecv(on_device ? receive[p].data : memory + at, static_cast<std::size_t>(receive[p].bytes), ncclInt8, p,
                     communicator_, stream_of(stream())),
            "receive");
      if (on_device) continue;
      next_.copies.push_back({receive[p].data, at, receive[p].bytes});
      at += aligned(receive[p].bytes);
    }
  });
  if (!on_device) device()->copy(host + received_from, memory + received_from, at - received_from, stream());
}

void NcclGroup::do_barrier(std::string_view label) {
  in_group("barrier", label, [&] {
    check(ncclAllReduce(flag_.data(), flag_.data(), 1, ncclInt8, ncclSum, communicator_, stream_of(stream())),
          "add up");
  });
}

SymmetricBuffer NcclGroup::do_allocate(std::int64_t bytes, int id) {
  // shared_ptr: queued collectives hold the memory too.
  auto memory = std::make_shared<Buffer>(bytes, device());
  std::byte* const data = memory->data();
  auto symmetric = std::make_shared<SymmetricMemory>();
  symmetric->group = group();
  symmetric->copies.resize(static_cast<std::size_t>(world_size()), nullptr);
  symmetric->copies[rank()] = data;
  symmetric->owners.push_back(std::move(memory));
  return SymmetricBuffer(data, bytes, id, std::move(symmetric));
}

void NcclGroup::do_mark(Operation&, EventHandle event) {
  device()->record(event, stream());
  const std::lock_guard lock(mutex_);
  pending_.push_back({next_.number, std::move(next_.staging), std::move(next_.copies)});
}

void NcclGroup::do_watch(Operation& operation, EventHandle event) {
  Pending pending;
  {
    const std::lock_guard lock(mutex_);
    pending = std::move(pending_.front());
    pending_.pop_front();
  }
  if (world_size() == 1) return;  // nobody to wait for; the stream keeps the order
  watch(operation, event, pending.number);
  for (const Pending::Copy& copy : pending.copies)
    std::memcpy(copy.to, pending.staging->host.data() + copy.at, static_cast<std::size_t>(copy.bytes));
  if (!pending.staging) return;
  const std::lock_guard lock(mutex_);
  free_.push_back(std::move(pending.staging));
}

void NcclGroup::watch(const Operation& operation, EventHandle event, std::int64_t number) {
  try {
    Wait wait(*shared().peers, options(), name_of(operation.kind), operation.label);
    wait.until(
        [&] {
          if (device()->done(event)) return true;
          const ncclResult_t state = this->state();
          if (state != ncclSuccess && state != ncclInProgress) check(state, "run " + wait.what());
          return false;
        },
        [&](const auto& add) { add_others(number, add); });
  } catch (...) {
    abort_communicator();
    throw;
  }
}

}  // namespace regatta
