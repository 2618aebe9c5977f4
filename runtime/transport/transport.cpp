#include "runtime/transport/transport.h"

#include <algorithm>
#include <cstring>
#include <exception>
#include <numeric>

#include "runtime/transport/transport_shared.h"
#include "runtime/transport/wait.h"

namespace regatta {
namespace {

std::string call(std::string_view kind, std::string_view label) {
  return std::string(kind) + " '" + std::string(label) + "': ";
}

[[noreturn]] void refuse(std::string_view kind, std::string_view label, const std::string& why) {
  throw Error(Code::invalid_argument, call(kind, label) + why);
}

std::int64_t sum(std::span<const std::int64_t> values) {
  return std::accumulate(values.begin(), values.end(), std::int64_t{0});
}

std::string list(std::span<const int> ranks) {
  std::string text;
  for (const int rank : ranks) text += (text.empty() ? "" : ",") + std::to_string(rank);
  return text;
}

TransportCounters::Kind* counter(TransportCounters& counters, Collective kind) {
  switch (kind) {
    case Collective::reduce_scatter: return &counters.reduce_scatter;
    case Collective::all_gather: return &counters.all_gather;
    case Collective::exchange: return &counters.exchange;
    case Collective::all_gather_small: return &counters.all_gather_small;
    case Collective::broadcast: return &counters.broadcast;
    case Collective::barrier: return nullptr;
  }
  return nullptr;
}

}  // namespace

TransportShared::TransportShared(TransportOptions given, std::shared_ptr<Peers> known_peers,
                                 std::shared_ptr<TransportBackend> made_by, int world_size)
    : options(given), peers(known_peers), backend(std::move(made_by)), thread(world_size > 1, std::move(known_peers)) {}

TransportShared::~TransportShared() { peers->leave(); }

Transport::Transport(int rank, std::vector<int> root_ranks, int group, std::shared_ptr<TransportShared> shared)
    : rank_(rank),
      root_ranks_(std::move(root_ranks)),
      group_(group),
      outgoing_(root_ranks_.size()),
      incoming_(root_ranks_.size()),
      shared_(std::move(shared)) {}

Transport::~Transport() = default;

void Transport::drain() noexcept {
  if (shared_->thread.has_work() && std::uncaught_exceptions() > 0) shared_->peers->give_up();
  shared_->thread.drain();
}

std::string_view Transport::name() const { return shared_->backend->name(); }

const TransportOptions& Transport::options() const { return shared_->options; }

const TransportCounters& Transport::counters() const {
  for (int k = 0; k < collective_count; ++k) {
    const auto kind = static_cast<Collective>(k);
    if (auto* entry = counter(counters_, kind)) entry->busy_ns = busy_ns_[k].load(std::memory_order_relaxed);
  }
  return counters_;
}

void Transport::abort(const std::string& reason, Code code, bool secondary) noexcept {
  shared_->peers->fail(reason, code, secondary);
}

void Transport::leave() noexcept { shared_->peers->leave(); }

std::vector<PeerStatus> Transport::peers() const {
  shared_->peers->poll();
  std::vector<PeerStatus> statuses;
  for (int r = 0; r < shared_->peers->world_size(); ++r) statuses.push_back(shared_->peers->status(r));
  return statuses;
}

// ---- queueing

Ticket Transport::submit(Operation&& operation, std::int64_t sent_bytes) {
  operation.transport = this;
  const Collective kind = operation.kind;
  const bool counted = operation.counted;
  const Ticket ticket = shared_->thread.submit(std::move(operation));
  if (auto* entry = counter(counters_, kind); entry != nullptr && counted) {
    ++entry->calls;
    entry->bytes += sent_bytes;
  }
  return ticket;
}

void Transport::check_chunks(std::string_view kind, const SymmetricBuffer& buffer, std::int64_t offset,
                             std::span<const std::int64_t> bounds, std::string_view label) const {
  if (!buffer) refuse(kind, label, "the buffer is empty");
  if (buffer.memory()->group != group_) refuse(kind, label, "the buffer was allocated by another group");
  if (static_cast<int>(bounds.size()) != world_size() + 1) {
    refuse(
        kind, label,
        std::to_string(bounds.size()) + " bounds were given, " + std::to_string(world_size() + 1) + " were expected");
  }
  if (offset < 0 || bounds.front() < 0 || !std::is_sorted(bounds.begin(), bounds.end())) {
    refuse(kind, label, "offset and bounds must be ascending and not negative");
  }
  if (bounds.back() > buffer.bytes() - offset) {
    refuse(kind, label,
           "bytes up to " + std::to_string(offset + bounds.back()) + " were asked for, the buffer has " +
               std::to_string(buffer.bytes()));
  }
}

void Transport::check_counts(std::string_view kind, std::span<const std::int64_t> bytes, std::size_t available,
                             std::string_view what, std::string_view label) const {
  if (static_cast<int>(bytes.size()) != world_size()) {
    refuse(kind, label,
           std::to_string(bytes.size()) + " counts of bytes to " + std::string(what) + " were given, " +
               std::to_string(world_size()) + " were expected");
  }
  if (std::any_of(bytes.begin(), bytes.end(), [](std::int64_t count) { return count < 0; })) {
    refuse(kind, label, "a count of bytes to " + std::string(what) + " is negative");
  }
  if (sum(bytes) != static_cast<std::int64_t>(available)) {
    refuse(kind, label,
           "the counts of bytes to " + std::string(what) + " add up to " + std::to_string(sum(bytes)) +
               ", the memory has " + std::to_string(available));
  }
}

Ticket Transport::reduce_scatter(const SymmetricBuffer& buffer, std::int64_t offset,
                                 std::span<const std::int64_t> bounds, Reducer reduce, std::string_view label,
                                 std::optional<DType> elements) {
  check_chunks("reduce_scatter", buffer, offset, bounds, label);
  if (!reduce) refuse("reduce_scatter", label, "there is no reducer");
  const std::int64_t own = bounds[rank_ + 1] - bounds[rank_];
  Operation operation;
  operation.kind = Collective::reduce_scatter;
  operation.buffer = buffer;
  operation.offset = offset;
  operation.bounds = bounds;
  operation.reduce = std::move(reduce);
  operation.elements = elements;
  operation.label = label;
  return submit(std::move(operation), bounds.back() - bounds.front() - own);
}

Ticket Transport::all_gather(const SymmetricBuffer& buffer, std::int64_t offset, std::span<const std::int64_t> bounds,
                             std::string_view label) {
  check_chunks("all_gather", buffer, offset, bounds, label);
  const std::int64_t own = bounds[rank_ + 1] - bounds[rank_];
  Operation operation;
  operation.kind = Collective::all_gather;
  operation.buffer = buffer;
  operation.offset = offset;
  operation.bounds = bounds;
  operation.label = label;
  return submit(std::move(operation), own * (world_size() - 1));
}

Ticket Transport::exchange(std::span<const std::byte> send, std::span<const std::int64_t> send_bytes,
                           std::span<std::byte> receive, std::span<const std::int64_t> receive_bytes,
                           std::string_view label) {
  check_counts("exchange", send_bytes, send.size(), "send", label);
  check_counts("exchange", receive_bytes, receive.size(), "receive", label);
  if (send_bytes[rank_] != receive_bytes[rank_]) {
    refuse("exchange", label,
           "this rank sends itself " + std::to_string(send_bytes[rank_]) + " bytes but expects " +
               std::to_string(receive_bytes[rank_]));
  }
  Operation operation;
  operation.kind = Collective::exchange;
  operation.send = send;
  operation.bounds = send_bytes;
  operation.receive = receive;
  operation.receive_bytes = receive_bytes;
  operation.label = label;
  return submit(std::move(operation), static_cast<std::int64_t>(send.size()) - send_bytes[rank_]);
}

Ticket Transport::all_gather_small(std::span<const std::byte> mine, std::span<std::byte> all,
                                   std::span<const std::int64_t> bytes, std::string_view label) {
  check_counts("all_gather_small", bytes, all.size(), "gather", label);
  if (bytes[rank_] != static_cast<std::int64_t>(mine.size())) {
    refuse("all_gather_small", label,
           "this rank gives " + std::to_string(mine.size()) + " bytes but announces " + std::to_string(bytes[rank_]));
  }
  Operation operation;
  operation.kind = Collective::all_gather_small;
  operation.send = mine;
  operation.receive = all;
  operation.receive_bytes = bytes;
  operation.label = label;
  return submit(std::move(operation), static_cast<std::int64_t>(mine.size()) * (world_size() - 1));
}

Ticket Transport::broadcast(std::span<std::byte> buffer, int root, std::string_view label) {
  if (root < 0 || root >= world_size()) {
    refuse("broadcast", label,
           "root " + std::to_string(root) + " is not among the " + std::to_string(world_size()) + " ranks");
  }
  Operation operation;
  operation.kind = Collective::broadcast;
  operation.receive = buffer;
  operation.root = root;
  operation.label = label;
  const std::int64_t sent = root == rank_ ? static_cast<std::int64_t>(buffer.size()) * (world_size() - 1) : 0;
  return submit(std::move(operation), sent);
}

void Transport::barrier(std::string_view label) {
  Operation operation;
  operation.kind = Collective::barrier;
  operation.label = label;
  submit(std::move(operation), 0).wait();
}

// ---- on the communication thread

void Transport::run(Operation& operation) {
  switch (operation.kind) {
    case Collective::reduce_scatter:
      if (world_size() > 1) {
        do_reduce_scatter(operation.buffer, operation.offset, operation.bounds, operation.reduce, operation.label,
                          operation.elements);
      } else if (operation.bounds[0] < operation.bounds[1]) {
        const std::byte* piece = operation.buffer.data() + operation.offset + operation.bounds[0];
        operation.reduce(std::span(&piece, 1), operation.bounds[0], operation.bounds[1]);
      }
      return;
    case Collective::all_gather:
      if (world_size() > 1) do_all_gather(operation.buffer, operation.offset, operation.bounds, operation.label);
      return;
    case Collective::barrier:
      if (world_size() > 1) do_barrier(operation.label);
      return;
    case Collective::exchange:
    case Collective::all_gather_small:
    case Collective::broadcast: run_exchange(operation); return;
  }
}

void Transport::run_exchange(Operation& operation) {
  const std::byte* source = operation.send.data();
  std::byte* target = operation.receive.data();
  for (int p = 0; p < world_size(); ++p) {
    Outgoing& out = outgoing_[p];
    Incoming& in = incoming_[p];
    if (operation.kind == Collective::exchange) {
      out = {source, operation.bounds[p]};
      in = {target, operation.receive_bytes[p]};
      source += out.bytes;
      target += in.bytes;
    } else if (operation.kind == Collective::all_gather_small) {
      out = {source, static_cast<std::int64_t>(operation.send.size())};
      in = {target, operation.receive_bytes[p]};
      target += in.bytes;
    } else {
      const auto bytes = static_cast<std::int64_t>(operation.receive.size());
      out = {target, rank_ == operation.root ? bytes : 0};
      in = {target, p == operation.root ? bytes : 0};
    }
  }
  if (runs_on_stream()) return do_exchange(outgoing_, incoming_, name_of(operation.kind), operation.label);
  Outgoing& own_out = outgoing_[rank_];
  Incoming& own_in = incoming_[rank_];
  const bool on_device = device() != nullptr &&
                         device()->owns(operation.receive.empty() ? operation.send.data() : operation.receive.data());
  if (own_out.bytes > 0 && own_out.data != own_in.data) {
    if (on_device) {
      device()->copy(own_in.data, own_out.data, own_out.bytes, stream());
      device()->synchronize(stream());
    } else {
      std::memmove(own_in.data, own_out.data, static_cast<std::size_t>(own_out.bytes));
    }
  }
  own_out = {};
  own_in = {};
  if (world_size() > 1) do_exchange(outgoing_, incoming_, name_of(operation.kind), operation.label);
  if (options().faults && !on_device) options().faults->arrived(root_ranks_[rank_], operation.label, operation.receive);
}

// The arithmetic whose results travel may still be under way on the device.
void Transport::await_followed(const Operation& operation, EventHandle event) {
  device()->bind();
  if (device()->done(event)) return;
  Wait wait(*shared_->peers, options(), name_of(operation.kind), operation.label);
  wait.until([&] { return device()->done(event); }, [&](const auto& add) { add(root_ranks_[rank_]); });
}

void Transport::follow(StreamHandle stream) { followed_ = stream; }

// ---- set-up calls

std::vector<std::string> Transport::gather_strings(const std::string& mine, std::string_view label) {
  const auto gather = [&](std::span<const std::byte> own, std::span<std::byte> all,
                          std::span<const std::int64_t> bytes) {
    Operation operation;
    operation.kind = Collective::all_gather_small;
    operation.counted = false;
    operation.send = own;
    operation.receive = all;
    operation.receive_bytes = bytes;
    operation.label = label;
    submit(std::move(operation), 0).wait();
  };
  const auto length = static_cast<std::int64_t>(mine.size());
  std::vector<std::int64_t> lengths(world_size());
  const std::vector<std::int64_t> eight(world_size(), sizeof(std::int64_t));
  gather(std::as_bytes(std::span(&length, 1)), std::as_writable_bytes(std::span(lengths)), eight);
  std::string all(static_cast<std::size_t>(sum(lengths)), '\0');
  gather(std::as_bytes(std::span(mine)), std::as_writable_bytes(std::span(all)), lengths);
  std::vector<std::string> strings;
  std::size_t at = 0;
  for (const std::int64_t bytes : lengths) {
    strings.push_back(all.substr(at, static_cast<std::size_t>(bytes)));
    at += static_cast<std::size_t>(bytes);
  }
  return strings;
}

SymmetricBuffer Transport::allocate(std::int64_t bytes) {
  if (bytes < 0) {
    throw Error(Code::invalid_argument, "allocate: " + std::to_string(bytes) + " bytes were asked for");
  }
  if (world_size() > 1) {
    const std::vector<std::string> asked = gather_strings(std::to_string(bytes), "bytes to allocate");
    for (int p = 0; p < world_size(); ++p) {
      if (asked[p] == asked[0]) continue;
      throw Error(Code::invalid_argument, "allocate: rank " + std::to_string(root_ranks_[p]) + " asks for " + asked[p] +
                                              " bytes, rank " + std::to_string(root_ranks_[0]) + " for " + asked[0]);
    }
  }
  return do_allocate(std::max<std::int64_t>(bytes, 64), allocation_count_++);
}

SymmetricBuffer Transport::adopt(std::byte* data, std::int64_t bytes, std::shared_ptr<void> owner) {
  if (world_size() != 1)
    throw Error(Code::invalid_argument, "adopt: a group of " + std::to_string(world_size()) +
                                            " ranks has to allocate its memory; expected one rank");
  auto memory = std::make_shared<SymmetricMemory>();
  memory->group = group_;
  memory->copies = {data};
  memory->owners.push_back(std::move(owner));
  return SymmetricBuffer(data, bytes, allocation_count_++, std::move(memory));
}

std::unique_ptr<Transport> Transport::split(std::span<const int> ranks) {
  const bool ascending = std::adjacent_find(ranks.begin(), ranks.end(), std::greater_equal<>()) == ranks.end();
  const bool inside = !ranks.empty() && ranks.front() >= 0 && ranks.back() < world_size();
  const auto own = std::find(ranks.begin(), ranks.end(), rank_);
  if (!ascending || !inside || own == ranks.end()) {
    throw Error(Code::invalid_argument, "split: the ranks " + list(ranks) + " must ascend, lie within " +
                                            std::to_string(world_size()) + " ranks and include this rank, " +
                                            std::to_string(rank_));
  }
  std::vector<int> members;
  for (const int p : ranks) members.push_back(root_ranks_[p]);
  const int rank = static_cast<int>(own - ranks.begin());

  // The first member brings the meeting place; all of them bring the next free group number.
  std::string problem;
  std::string offer;
  try {
    if (rank == 0) offer = shared_->backend->offer(members);
  } catch (const Error& error) {
    problem = error.what();
  }
  const std::vector<std::string> texts =
      gather_strings(list(ranks) + " " + std::to_string(shared_->next_group) + " " + offer, "groups to split into");
  int group = 0;
  for (const int p : ranks) {
    const std::size_t end = texts[p].find(' ');
    if (texts[p].substr(0, end) != list(ranks) && problem.empty()) {
      problem = "split: rank " + std::to_string(root_ranks_[p]) + " names the group " + texts[p].substr(0, end) +
                ", rank " + std::to_string(root_ranks_[rank_]) + " names " + list(ranks);
    }
    group = std::max(group, std::stoi(texts[p].substr(end + 1)));
  }
  shared_->next_group = group + 1;
  std::unique_ptr<Transport> made;
  try {
    const std::string& text = texts[ranks[0]];
    const std::string first_offer = text.substr(text.find(' ', text.find(' ') + 1) + 1);
    if (problem.empty()) made = shared_->backend->join(rank, members, group, shared_, first_offer);
  } catch (const Error& error) {
    problem = error.what();
  }
  const std::vector<std::string> problems = gather_strings(problem, "groups split into");
  if (!offer.empty()) shared_->backend->retire(offer);
  for (const std::string& text : problems) {
    if (!text.empty()) throw Error(Code::invalid_argument, text);
  }
  return made;
}

}  // namespace regatta
