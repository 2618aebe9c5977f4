#include "runtime/transport/communication_thread.h"

#include <sys/prctl.h>

#include <chrono>

#include "runtime/transport/peers.h"

namespace regatta {

std::string_view name_of(Collective kind) {
  switch (kind) {
    case Collective::reduce_scatter: return "reduce_scatter";
    case Collective::all_gather: return "all_gather";
    case Collective::exchange: return "exchange";
    case Collective::all_gather_small: return "all_gather_small";
    case Collective::broadcast: return "broadcast";
    case Collective::barrier: return "barrier";
  }
  return "unknown";
}

CommunicationThread::CommunicationThread(bool threaded, std::shared_ptr<Peers> peers)
    : peers_(std::move(peers)), slots_(Transport::max_in_flight) {
  if (threaded) thread_ = std::thread([this] { loop(); });
}

CommunicationThread::~CommunicationThread() {
  if (!thread_.joinable()) return;
  {
    std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  work_.notify_one();
  thread_.join();
}

Ticket CommunicationThread::submit(Operation&& operation) {
  check();
  const std::uint64_t number = submitted_ + 1;
  if (number > Transport::max_in_flight && !done(number - Transport::max_in_flight)) {
    throw Error(Code::invalid_argument, std::string(name_of(operation.kind)) + " '" + std::string(operation.label) +
                                            "': " + std::to_string(Transport::max_in_flight) +
                                            " collectives are in flight already; wait for the oldest ticket first");
  }
  Slot& slot = slots_[number % Transport::max_in_flight];
  slot.operation = std::move(operation);
  slot.busy_ns.store(0, std::memory_order_relaxed);
  start(slot, number);
  if (!thread_.joinable()) {
    submitted_ = number;
    execute(slot, number);
    completed_.store(number, std::memory_order_release);
    return Ticket(this, number);
  }
  {
    std::lock_guard lock(mutex_);
    submitted_ = number;
  }
  work_.notify_one();
  return Ticket(this, number);
}

void CommunicationThread::loop() {
  // Waits for peers sleep a few tens of microseconds; the default slack of 50 would double that.
  prctl(PR_SET_TIMERSLACK, 1000UL, 0UL, 0UL, 0UL);
  std::uint64_t next = 1;
  for (;;) {
    {
      std::unique_lock lock(mutex_);
      work_.wait(lock, [&] { return stopping_ || submitted_ >= next; });
      if (submitted_ < next) return;
    }
    execute(slots_[next % Transport::max_in_flight], next);
    {
      std::lock_guard lock(mutex_);
      completed_.store(next, std::memory_order_release);
    }
    progress_.notify_all();
    ++next;
  }
}

// What runs on a stream goes there here, so that streams see collectives in the order of the calls. Other collectives
// of a device's memory only note how far the followed stream is.
void CommunicationThread::start(Slot& slot, std::uint64_t number) {
  Transport& transport = *slot.operation.transport;
  slot.device = transport.device();
  slot.on_stream = transport.runs_on_stream();
  if (slot.device == nullptr) return;
  try {
    if (slot.event.handle() == nullptr) slot.event = Event(*slot.device);
    if (!slot.on_stream) return slot.device->record(slot.event.handle(), transport.followed());
    transport.do_begin();
    transport.run(slot.operation);
    transport.do_mark(slot.operation, slot.event.handle());
  } catch (const Error& error) {
    poison(number, error.code(), error.what());
    throw;
  }
}

void CommunicationThread::then(std::uint64_t number, StreamHandle stream) const {
  check();
  const Slot& slot = slots_[number % Transport::max_in_flight];
  if (!slot.on_stream) return wait(number);
  slot.device->wait(stream, slot.event.handle());
}

void CommunicationThread::execute(Slot& slot, std::uint64_t number) {
  Operation& operation = slot.operation;
  if (failed_from_.load(std::memory_order_relaxed) == 0) {
    const auto start = std::chrono::steady_clock::now();
    try {
      if (slot.on_stream) {
        operation.transport->do_watch(operation, slot.event.handle());
      } else {
        if (slot.device != nullptr) operation.transport->await_followed(operation, slot.event.handle());
        operation.transport->run(operation);
      }
    } catch (const Error& error) {
      poison(number, error.code(), error.what());
    } catch (const std::exception& error) {
      poison(number, Code::transport,
             std::string(name_of(operation.kind)) + " '" + std::string(operation.label) + "': " + error.what());
    }
    const std::int64_t spent =
        std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now() - start).count();
    slot.busy_ns.store(spent, std::memory_order_relaxed);
    if (operation.counted)
      operation.transport->busy_ns_[static_cast<int>(operation.kind)].fetch_add(spent, std::memory_order_relaxed);
  }
  operation.buffer = {};
  operation.reduce = nullptr;
}

void CommunicationThread::poison(std::uint64_t number, Code code, const std::string& sentence) {
  error_code_ = code;
  error_sentence_ = sentence;
  failed_from_.store(number, std::memory_order_release);
  if (!peers_->gave_up()) peers_->fail(sentence, code, code == Code::aborted);
}

void CommunicationThread::check() const {
  if (failed_from_.load(std::memory_order_acquire) != 0) throw Error(error_code_, error_sentence_);
}

void CommunicationThread::block_until(std::uint64_t number) const {
  if (done(number)) return;
  std::unique_lock lock(mutex_);
  progress_.wait(lock, [&] { return done(number); });
}

void CommunicationThread::wait(std::uint64_t number) const {
  block_until(number);
  const std::uint64_t failed = failed_from_.load(std::memory_order_acquire);
  if (failed != 0 && number >= failed) throw Error(error_code_, error_sentence_);
}

void CommunicationThread::drain() noexcept { block_until(submitted_); }

void Ticket::wait() const {
  if (thread_ != nullptr) thread_->wait(number_);
}

void Ticket::then(StreamHandle stream) const {
  if (thread_ != nullptr) thread_->then(number_, stream);
}

bool Ticket::done() const { return thread_ == nullptr || thread_->done(number_); }

std::int64_t Ticket::busy_ns() const {
  if (thread_ == nullptr) return 0;
  return thread_->slots_[number_ % Transport::max_in_flight].busy_ns.load(std::memory_order_relaxed);
}

}  // namespace regatta
