#include "runtime/transport/nccl/nccl_transport.h"

#include <cstdlib>
#include <cstring>
#include <numeric>

#include "runtime/transport/nccl/launcher.h"
#include "runtime/transport/nccl/meeting.h"
#include "runtime/transport/nccl/nccl_group.h"
#include "runtime/transport/nccl/notices.h"
#include "runtime/transport/shared/memory_sharing.h"
#include "runtime/transport/transport_shared.h"

namespace regatta {
namespace {

std::string text_of(const ncclUniqueId& id) {
  static constexpr char digits[] = "0123456789abcdef";
  std::string text;
  for (const char byte : id.internal) {
    text += digits[static_cast<unsigned char>(byte) >> 4];
    text += digits[byte & 15];
  }
  return text;
}

ncclUniqueId id_of(const std::string& text) {
  ncclUniqueId id = {};
  if (text.size() != 2 * sizeof id.internal)
    throw Error(Code::transport, "the first rank of a group offers no NCCL communicator");
  const auto value = [](char digit) { return digit <= '9' ? digit - '0' : digit - 'a' + 10; };
  for (std::size_t i = 0; i < sizeof id.internal; ++i)
    id.internal[i] = static_cast<char>(value(text[2 * i]) << 4 | value(text[2 * i + 1]));
  return id;
}

class NcclBackend final : public TransportBackend {
 public:
  NcclBackend(std::shared_ptr<NcclStream> stream, std::shared_ptr<Meeting> meeting)
      : stream_(std::move(stream)), meeting_(std::move(meeting)) {}

  std::string_view name() const override { return "nccl"; }
  std::string offer(std::span<const int>) override {
    ncclUniqueId id;
    const ncclResult_t result = ncclGetUniqueId(&id);
    if (result != ncclSuccess)
      throw Error(Code::transport, std::string("NCCL offers no communicator: ") + ncclGetErrorString(result));
    return text_of(id);
  }
  std::unique_ptr<Transport> join(int rank, std::vector<int> root_ranks, int group,
                                  std::shared_ptr<TransportShared> shared, const std::string& offer) override {
    return std::make_unique<NcclGroup>(rank, std::move(root_ranks), group, std::move(shared), stream_, id_of(offer));
  }
  void retire(const std::string&) noexcept override {}

 private:
  std::shared_ptr<NcclStream> stream_;  // shared with the groups
  std::shared_ptr<Meeting> meeting_;    // shared with the notices
};

}  // namespace

bool nccl_is_built_in() { return true; }

std::string nccl_library() {
  int version = 0;
  if (ncclGetVersion(&version) != ncclSuccess) return "";
  return std::to_string(version / 10000) + "." + std::to_string(version / 100 % 100) + "." +
         std::to_string(version % 100);
}

std::unique_ptr<Transport> make_nccl_transport(const TransportOptions& options) {
  if (!options.device)
    throw Error(Code::invalid_argument, "transport nccl moves the memory of CUDA devices; expected device cuda");
  auto meeting = std::make_shared<Meeting>(job_place(), options.deadline);
  const int rank = meeting->rank(), ranks = meeting->world_size();
  options.device->bind();

  const std::shared_ptr<void> memory = private_memory(ranks * static_cast<std::int64_t>(sizeof(PeerRecord)));
  std::vector<PeerRecord*> records;
  for (int r = 0; r < ranks; ++r) records.push_back(static_cast<PeerRecord*>(memory.get()) + r);
  auto peers = std::make_shared<Peers>(rank, records, std::vector<std::shared_ptr<void>>{memory},
                                       std::vector<ProcessId>{}, options.stop);
  auto counts = std::make_shared<CollectiveCounts>(ranks);
  auto backend = std::make_shared<NcclBackend>(std::make_shared<NcclStream>(options.device, counts), meeting);
  std::string offer, problem;
  try {
    if (rank == 0) offer = backend->offer({});
  } catch (const Error& error) {
    problem = error.what();
  }
  offer = meeting->gather(offer)[0];
  for (const std::string& text : meeting->gather(problem))
    if (!text.empty()) throw Error(Code::transport, text);
  // From here on the connections belong to the notices: what goes wrong on one rank reaches the others by them.
  if (ranks > 1) peers->set_link(std::make_shared<Notices>(meeting, records, counts));
  std::vector<int> everyone(static_cast<std::size_t>(ranks));
  std::iota(everyone.begin(), everyone.end(), 0);
  auto shared = std::make_shared<TransportShared>(options, peers, backend, ranks);
  try {
    return backend->join(rank, everyone, 0, shared, offer);
  } catch (const Error& error) {
    peers->fail(error.what(), error.code(), error.code() == Code::aborted);
    throw;
  }
}

}  // namespace regatta
