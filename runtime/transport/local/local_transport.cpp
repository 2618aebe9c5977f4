#include "runtime/transport/local/local_transport.h"

#include <map>
#include <mutex>
#include <numeric>

#include "runtime/transport/shared/board_transport.h"
#include "runtime/transport/transport_shared.h"

namespace regatta {
namespace {

/// Memory pieces between their creation and the moment all ranks have opened them.
class Registry {
 public:
  std::string add(std::shared_ptr<void> piece) {
    std::lock_guard lock(mutex_);
    const std::string handle = std::to_string(++count_);
    pieces_[handle] = std::move(piece);
    return handle;
  }
  std::shared_ptr<void> find(const std::string& handle) {
    std::lock_guard lock(mutex_);
    const auto found = pieces_.find(handle);
    if (found == pieces_.end()) throw Error(Code::transport, "there is no memory piece " + handle);
    return found->second;
  }
  void remove(const std::string& handle) {
    std::lock_guard lock(mutex_);
    pieces_.erase(handle);
  }

 private:
  std::mutex mutex_;
  std::int64_t count_ = 0;
  std::map<std::string, std::shared_ptr<void>> pieces_;
};

class LocalSharing final : public MemorySharing {
 public:
  explicit LocalSharing(std::shared_ptr<Registry> registry) : registry_(std::move(registry)) {}

  Piece create(std::int64_t bytes) override {
    std::shared_ptr<void> memory = private_memory(bytes);
    std::string handle = registry_->add(memory);
    return {static_cast<std::byte*>(memory.get()), std::move(memory), std::move(handle)};
  }
  Piece open(const std::string& handle, std::int64_t) override {
    std::shared_ptr<void> memory = registry_->find(handle);
    return {static_cast<std::byte*>(memory.get()), std::move(memory), {}};
  }
  void retire(const std::string& handle) noexcept override { registry_->remove(handle); }

 private:
  std::shared_ptr<Registry> registry_;  // shared by the ranks of the process
};

class LocalBackend final : public TransportBackend {
 public:
  explicit LocalBackend(std::shared_ptr<MemorySharing> sharing) : sharing_(std::move(sharing)) {}

  std::string_view name() const override { return "local"; }
  std::string offer(std::span<const int> root_ranks) override {
    return sharing_->create(Board::bytes(static_cast<int>(root_ranks.size()))).handle;
  }
  std::unique_ptr<Transport> join(int rank, std::vector<int> root_ranks, int group,
                                  std::shared_ptr<TransportShared> shared, const std::string& offer) override {
    MemorySharing::Piece board = sharing_->open(offer, Board::bytes(static_cast<int>(root_ranks.size())));
    return std::make_unique<BoardTransport>(rank, std::move(root_ranks), group, std::move(shared), board.data,
                                            std::move(board.owner), sharing_, "direct");
  }
  void retire(const std::string& offer) noexcept override { sharing_->retire(offer); }

 private:
  std::shared_ptr<MemorySharing> sharing_;  // shared with the groups
};

}  // namespace

std::vector<std::unique_ptr<Transport>> make_local_transports(int world_size, const TransportOptions& options) {
  if (world_size < 1) {
    throw Error(Code::invalid_argument, "a world of " + std::to_string(world_size) + " ranks was asked for");
  }
  const auto registry = std::make_shared<Registry>();
  const std::shared_ptr<void> record_memory =
      private_memory(world_size * static_cast<std::int64_t>(sizeof(PeerRecord)));
  std::vector<PeerRecord*> records;
  for (int r = 0; r < world_size; ++r) records.push_back(static_cast<PeerRecord*>(record_memory.get()) + r);
  std::vector<int> everyone(world_size);
  std::iota(everyone.begin(), everyone.end(), 0);

  std::vector<std::unique_ptr<Transport>> transports;
  std::string offer;
  for (int r = 0; r < world_size; ++r) {
    auto backend = std::make_shared<LocalBackend>(std::make_shared<LocalSharing>(registry));
    if (r == 0) offer = backend->offer(everyone);
    auto peers = std::make_shared<Peers>(r, records, std::vector<std::shared_ptr<void>>{record_memory},
                                         std::vector<ProcessId>{}, options.stop);
    auto shared = std::make_shared<TransportShared>(options, std::move(peers), backend, world_size);
    transports.push_back(backend->join(r, everyone, 0, std::move(shared), offer));
    if (r + 1 == world_size) backend->retire(offer);
  }
  return transports;
}

}  // namespace regatta
