#include "runtime/transport/mpi/mpi_transport.h"

#include <algorithm>
#include <cstdlib>
#include <numeric>
#include <sstream>

#include "runtime/transport/mpi/mapped_memory.h"
#include "runtime/transport/mpi/message_transport.h"
#include "runtime/transport/mpi/mpi_communicator.h"
#include "runtime/transport/mpi/mpi_peer_link.h"
#include "runtime/transport/mpi/mpi_session.h"
#include "runtime/transport/shared/board_transport.h"
#include "runtime/transport/transport_shared.h"

namespace regatta {
namespace {

constexpr const char* by_messages = "messages";

/// Which ranks see each other's memory: those with the same number.
struct Islands {
  std::vector<int> of_rank;
  std::string data_path;  ///< of groups that do not share memory

  bool together(std::span<const int> ranks) const {
    return std::all_of(ranks.begin(), ranks.end(), [&](int r) { return of_rank[r] == of_rank[ranks.front()]; });
  }
};

class MpiBackend final : public TransportBackend {
 public:
  MpiBackend(std::shared_ptr<MpiSession> session, int epoch, Islands islands, std::shared_ptr<Device> device,
             std::shared_ptr<Peers> peers, std::shared_ptr<MpiPeerLink> link)
      : session_(std::move(session)),
        communicator_(session_->data()),
        epoch_(epoch),
        islands_(std::move(islands)),
        device_(std::move(device)),
        sharing_(std::make_shared<MappedSharing>()),
        peers_(std::move(peers)),
        link_(std::move(link)) {
    open_mpi_world();
  }

  ~MpiBackend() override {
    bool all_can_finalize = true;
    for (int r = 0; r < session_->world_size(); ++r) {
      const PeerStatus status = peers_->status(r);
      if (status.state == PeerStatus::State::gone) all_can_finalize = false;
      if (status.state == PeerStatus::State::failed && !status.closed) all_can_finalize = false;
    }
    if (link_) link_->close();
    close_mpi_world(all_can_finalize);
  }

  std::string_view name() const override { return "mpi"; }

  std::string offer(std::span<const int> root_ranks) override {
    if (between_devices(root_ranks) || !islands_.together(root_ranks)) return by_messages;
    return sharing_->create(Board::bytes(static_cast<int>(root_ranks.size()))).handle;
  }

  std::unique_ptr<Transport> join(int rank, std::vector<int> root_ranks, int group,
                                  std::shared_ptr<TransportShared> shared, const std::string& offer) override {
    if (offer == by_messages) {
      const bool devices = between_devices(root_ranks);
      return std::make_unique<MessageTransport>(
          rank, std::move(root_ranks), group, std::move(shared), session_, communicator_, epoch_,
          devices ? "messages between devices" : islands_.data_path, devices ? device_ : nullptr);
    }
    MemorySharing::Piece board = sharing_->open(offer, Board::bytes(static_cast<int>(root_ranks.size())));
    return std::make_unique<BoardTransport>(rank, std::move(root_ranks), group, std::move(shared), board.data,
                                            std::move(board.owner), sharing_, "shared memory");
  }

  void retire(const std::string& offer) noexcept override { sharing_->retire(offer); }

 private:
  bool between_devices(std::span<const int> root_ranks) const { return device_ != nullptr && root_ranks.size() > 1; }

  std::shared_ptr<MpiSession> session_;  // shared with the groups and the link
  MPI_Comm communicator_;
  int epoch_;
  Islands islands_;
  std::shared_ptr<Device> device_;          // null when messages go between the hosts' memories; shared with the groups
  std::shared_ptr<MappedSharing> sharing_;  // shared with the groups
  std::shared_ptr<Peers> peers_;            // shared with the communication thread
  std::shared_ptr<MpiPeerLink> link_;       // shared with the peers
};

/// The device whose memory messages carry; null when that goes through the host. All ranks decide alike.
std::shared_ptr<Device> device_of_messages(const MpiSession& session, const TransportOptions& options) {
  using DeviceMessages = TransportOptions::DeviceMessages;
  const bool takes = options.device != nullptr && session.world_size() > 1 &&
                     options.device_messages != DeviceMessages::never &&
                     (options.device_messages == DeviceMessages::always || mpi_takes_cuda_memory());
  const std::vector<std::string> answers = session.gather(takes ? "yes" : "no");
  const bool all = std::find(answers.begin(), answers.end(), "no") == answers.end();
  return all ? options.device : nullptr;
}

struct Neighbour {
  int host_leader = 0;
  ProcessId process;
};

std::vector<Neighbour> meet(const MpiSession& session) {
  const ProcessId self = ProcessId::self();
  std::vector<Neighbour> all;
  for (const std::string& text : session.gather(std::to_string(session.host_leader()) + " " + std::to_string(self.pid) +
                                                " " + std::to_string(self.started))) {
    Neighbour one;
    std::istringstream(text) >> one.host_leader >> one.process.pid >> one.process.started;
    all.push_back(one);
  }
  return all;
}

/// The processes whose end can be seen from here: of this host, and in the same process-number space.
std::vector<ProcessId> watched_processes(const MpiSession& session, const std::vector<Neighbour>& neighbours) {
  std::vector<ProcessId> processes(neighbours.size());
  for (std::size_t r = 0; r < neighbours.size(); ++r) {
    const bool visible = neighbours[r].host_leader == session.host_leader() && !neighbours[r].process.ended();
    if (visible) processes[r] = neighbours[r].process;
  }
  return processes;
}

std::vector<int> wished_islands(const MpiSession& session, const std::vector<Neighbour>& neighbours,
                                const TransportOptions& options) {
  std::vector<int> island(neighbours.size());
  const int block = options.shared_memory_ranks > 0 ? options.shared_memory_ranks : session.world_size();
  for (int r = 0; r < session.world_size(); ++r) {
    island[r] = r;
    for (int q = 0; options.shared_memory && q < r && island[r] == r; ++q) {
      if (neighbours[q].host_leader == neighbours[r].host_leader && q / block == r / block) island[r] = q;
    }
  }
  return island;
}

struct Records {
  Islands islands;
  std::vector<PeerRecord*> records;
  std::vector<std::shared_ptr<void>> owners;
};

/// Opens the records of this rank's island. If that fails anywhere, no ranks share memory, and the data path says why.
Records open_records(const MpiSession& session, std::vector<int> island) {
  const int ranks = session.world_size();
  const int mine = session.rank();
  const auto bytes = ranks * static_cast<std::int64_t>(sizeof(PeerRecord));
  Records result;
  result.islands = {std::move(island), by_messages};
  std::vector<int>& of_rank = result.islands.of_rank;

  MappedSharing sharing;
  MemorySharing::Piece piece;
  std::string problem;
  const bool company = std::count(of_rank.begin(), of_rank.end(), of_rank[mine]) > 1;
  try {
    if (company && of_rank[mine] == mine) piece = sharing.create(bytes);
  } catch (const Error& error) {
    problem = error.what();
  }
  const std::string handle = session.gather(piece.handle)[of_rank[mine]];
  try {
    if (company && of_rank[mine] != mine && !handle.empty()) piece = sharing.open(handle, bytes);
  } catch (const Error& error) {
    problem = error.what();
  }
  const std::vector<std::string> problems = session.gather(problem);
  const auto failed = std::find_if(problems.begin(), problems.end(), [](const auto& text) { return !text.empty(); });
  if (failed != problems.end()) {
    result.islands.data_path += " (memory cannot be shared: " + *failed + ")";
    std::iota(of_rank.begin(), of_rank.end(), 0);
  }

  const std::shared_ptr<void> own_copies = private_memory(bytes);
  result.owners.push_back(own_copies);
  const bool shares = piece.data != nullptr && failed == problems.end();
  if (shares) result.owners.push_back(piece.owner);
  for (int r = 0; r < ranks; ++r) {
    const bool shared = shares && of_rank[r] == of_rank[mine];
    void* base = shared ? static_cast<void*>(piece.data) : own_copies.get();
    result.records.push_back(static_cast<PeerRecord*>(base) + r);
  }
  return result;
}

}  // namespace

bool mpi_is_built_in() { return true; }

std::string mpi_library() {
  char text[MPI_MAX_LIBRARY_VERSION_STRING] = {};
  int length = 0;
  MPI_Get_library_version(text, &length);
  const std::string version(text, static_cast<std::size_t>(length));
  return version.substr(0, version.find_first_of(",\n"));
}

namespace {

std::unique_ptr<Transport> make_root(const std::shared_ptr<MpiSession>& session, const TransportOptions& options) {
  const int epoch = session->next_epoch();
  const std::vector<Neighbour> neighbours = meet(*session);
  const std::shared_ptr<Device> device = device_of_messages(*session, options);
  // A farewell must not overtake a message, so both go the same way.
  std::vector<int> islands(neighbours.size());
  std::iota(islands.begin(), islands.end(), 0);
  if (!device) islands = wished_islands(*session, neighbours, options);
  Records records = open_records(*session, std::move(islands));

  const std::vector<ProcessId> processes = watched_processes(*session, neighbours);
  auto peers = std::make_shared<Peers>(session->rank(), records.records, records.owners, processes, options.stop);
  std::vector<int> distant;
  for (int r = 0; r < session->world_size(); ++r) {
    if (records.islands.of_rank[r] != records.islands.of_rank[session->rank()]) distant.push_back(r);
  }
  std::shared_ptr<MpiPeerLink> link;
  if (!distant.empty()) {
    link = std::make_shared<MpiPeerLink>(session, epoch, records.records, distant, processes);
    peers->set_link(link);
  }
  auto backend = std::make_shared<MpiBackend>(session, epoch, std::move(records.islands), device, peers, link);
  std::vector<int> everyone(static_cast<std::size_t>(session->world_size()));
  std::iota(everyone.begin(), everyone.end(), 0);
  // What goes wrong here is thrown by all ranks alike.
  std::string offer;
  std::string problem;
  try {
    if (session->rank() == 0) offer = backend->offer(everyone);
  } catch (const Error& error) {
    problem = error.what();
  }
  const std::string first_offer = session->gather(offer)[0];
  std::unique_ptr<Transport> root;
  auto shared = std::make_shared<TransportShared>(options, peers, backend, session->world_size());
  try {
    if (!first_offer.empty()) root = backend->join(session->rank(), everyone, 0, shared, first_offer);
  } catch (const Error& error) {
    problem = error.what();
  }
  const std::vector<std::string> problems = session->gather(problem);
  backend->retire(offer);
  for (const std::string& text : problems) {
    if (!text.empty()) throw Error(Code::transport, text);
  }
  return root;
}

}  // namespace

std::unique_ptr<Transport> make_mpi_transport(const TransportOptions& options) {
  if (options.device) options.device->bind();  // MPI libraries that know devices take the current one when they start
  return make_root(MpiSession::of_job(), options);
}

std::unique_ptr<Transport> make_mpi_transport(MPI_Comm communicator, const TransportOptions& options) {
  return make_root(MpiSession::over(communicator), options);
}

void kill_mpi_job(int exit_code) {
  if (mpi_is_running()) MPI_Abort(MPI_COMM_WORLD, exit_code);
  std::_Exit(exit_code);
}

}  // namespace regatta
