// clang-format off
#include <nccl.h>
// clang-format on

#include <algorithm>
#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "tests/support/late_stream.h"
#include "tests/support/scalar_kernels.h"

namespace {

std::mutex one;  // everything below

// One rank's part of a send, a receive, or a collective of all.
struct Part {
  enum Kind { send, receive, reduce, all_reduce, all_gather, broadcast } kind;
  const void* from;
  void* to;
  std::size_t count;
  ncclDataType_t type;
  int peer;  // or root
  bool done = false;
  bool computed = false;
  std::vector<char> result;
};

std::size_t size_of(ncclDataType_t type) { return type == ncclInt8 ? 1 : type == ncclFloat32 ? 4 : 2; }

struct World {
  int ranks = 0;
  int joined = 0;
  std::map<std::pair<int, int>, std::deque<Part*>> sends;  // by sender and receiver
  std::vector<std::vector<Part*>> collectives;             // by number, by rank; null until posted
  bool broken = false;
};

std::map<std::string, std::shared_ptr<World>> worlds;
int ids = 0;

}  // namespace

struct FakeNcclComm {
  std::shared_ptr<World> world;
  int rank = 0;
  std::size_t collectives = 0;
  std::deque<std::unique_ptr<Part>> parts;
  bool aborted = false;
  bool late = false;  // its calls are on a LateStream
};

namespace {

thread_local int group_depth = 0;
struct Call {
  ncclComm_t comm;
  cudaStream_t stream;
  std::unique_ptr<Part> part;
};
thread_local std::vector<Call> grouped;

void post(ncclComm_t comm, std::unique_ptr<Part> part) {
  World& world = *comm->world;
  if (part->kind == Part::send) {
    world.sends[{comm->rank, part->peer}].push_back(part.get());
  } else if (part->kind != Part::receive) {
    const std::size_t number = comm->collectives++;
    if (world.collectives.size() <= number) world.collectives.resize(number + 1);
    world.collectives[number].resize(static_cast<std::size_t>(world.ranks), nullptr);
    world.collectives[number][static_cast<std::size_t>(comm->rank)] = part.get();
  }
  comm->parts.push_back(std::move(part));
}

// What `rank` gets of a collective that all have posted. Sums run from the last rank to the first, which is not the
// tree.
void compute(const std::vector<Part*>& all, int rank) {
  Part& mine = *all[static_cast<std::size_t>(rank)];
  const std::size_t bytes = mine.count * size_of(mine.type);
  const auto copy_of = [&](int r) { return static_cast<const char*>(all[static_cast<std::size_t>(r)]->from); };
  switch (mine.kind) {
    case Part::broadcast: mine.result.assign(copy_of(mine.peer), copy_of(mine.peer) + bytes); return;
    case Part::all_gather:
      for (std::size_t r = 0; r < all.size(); ++r)
        mine.result.insert(mine.result.end(), copy_of(static_cast<int>(r)), copy_of(static_cast<int>(r)) + bytes);
      return;
    case Part::reduce:
      if (mine.peer != rank) return;
      [[fallthrough]];
    default: break;
  }
  mine.result.assign(bytes, 0);
  if (mine.type == ncclInt8) return;
  using regatta::DType;
  const DType dtype = mine.type == ncclFloat32 ? DType::f32 : mine.type == ncclBfloat16 ? DType::bf16 : DType::f16;
  for (std::size_t r = all.size(); r-- > 0;)
    for (std::size_t k = 0; k < mine.count; ++k) {
      const auto i = static_cast<std::int64_t>(k);
      const float addend = regatta::testing::read(dtype, copy_of(static_cast<int>(r)), i);
      regatta::testing::write(dtype, mine.result.data(), i,
                              regatta::testing::read(dtype, mine.result.data(), i) + addend);
    }
}

// Whether all that `comm` has posted is done.
bool progress(ncclComm_t comm) {
  World& world = *comm->world;
  for (const auto& part : comm->parts) {
    if (part->kind != Part::receive || part->done) continue;
    auto& waiting = world.sends[{part->peer, comm->rank}];
    if (waiting.empty()) continue;
    Part* const from = waiting.front();
    if (from->count != part->count) {
      world.broken = true;
      continue;
    }
    std::memcpy(part->to, from->from, part->count * size_of(part->type));
    part->done = from->done = true;
    waiting.pop_front();
  }
  for (auto& all : world.collectives) {
    if (all.empty() || std::find(all.begin(), all.end(), nullptr) != all.end()) continue;
    Part* const mine = all[static_cast<std::size_t>(comm->rank)];
    if (!mine->computed) {
      compute(all, comm->rank);
      mine->computed = true;
    }
    if (!std::all_of(all.begin(), all.end(), [](const Part* part) { return part->computed; })) continue;
    // Nobody reads the sources any more; the last to come here writes all results.
    for (Part* part : all) {
      if (!part->result.empty()) std::memcpy(part->to, part->result.data(), part->result.size());
      part->done = true;
    }
    all.clear();
  }
  while (!comm->parts.empty() && comm->parts.front()->done) comm->parts.pop_front();
  return comm->parts.empty();
}

// Calls that were made together: at once, or when their stream comes to them, which then waits for the peers.
void begin(std::vector<Call> calls) {
  if (calls.empty()) return;
  if (calls.front().stream == nullptr) {
    for (Call& one_call : calls) post(one_call.comm, std::move(one_call.part));
    return;
  }
  for (const Call& one_call : calls) one_call.comm->late = true;
  const ncclComm_t comm = calls.front().comm;
  auto& stream = regatta::testing::LateStream::of(calls.front().stream);
  stream.put([comm, left = std::make_shared<std::vector<Call>>(std::move(calls))] {
    const std::lock_guard lock(one);
    if (comm->aborted) return true;
    for (Call& one_call : *left) post(comm, std::move(one_call.part));
    left->clear();
    return progress(comm);
  });
}

ncclResult_t call(ncclComm_t comm, Part part, cudaStream_t stream) {
  auto own = std::make_unique<Part>(std::move(part));
  const std::lock_guard lock(one);
  if (comm->aborted) return ncclInvalidUsage;
  grouped.push_back({comm, stream, std::move(own)});
  if (group_depth > 0) return ncclSuccess;
  begin(std::exchange(grouped, {}));
  return ncclInProgress;
}

}  // namespace

extern "C" {

ncclResult_t ncclGetVersion(int* version) {
  *version = 22809;
  return ncclSuccess;
}
ncclResult_t ncclGetUniqueId(ncclUniqueId* id) {
  const std::lock_guard lock(one);
  std::memset(id, 0, sizeof *id);
  std::strcpy(id->internal, ("fake " + std::to_string(++ids)).c_str());
  return ncclSuccess;
}
ncclResult_t ncclCommInitRankConfig(ncclComm_t* comm, int ranks, ncclUniqueId id, int rank, ncclConfig_t*) {
  const std::lock_guard lock(one);
  std::shared_ptr<World>& world = worlds[id.internal];
  if (!world) world = std::make_shared<World>();
  world->ranks = ranks;
  ++world->joined;
  *comm = new FakeNcclComm{world, rank, 0, {}, false, false};
  if (world->joined == ranks) worlds.erase(id.internal);
  return ncclInProgress;
}
ncclResult_t ncclCommFinalize(ncclComm_t) { return ncclSuccess; }
ncclResult_t ncclCommDestroy(ncclComm_t comm) {
  const std::lock_guard lock(one);
  delete comm;
  return ncclSuccess;
}
// Kept: peers may still point at its parts.
ncclResult_t ncclCommAbort(ncclComm_t comm) {
  const std::lock_guard lock(one);
  comm->aborted = true;
  return ncclSuccess;
}
ncclResult_t ncclCommGetAsyncError(ncclComm_t comm, ncclResult_t* state) {
  const std::lock_guard lock(one);
  if (comm->aborted) {
    *state = ncclInternalError;
  } else if (comm->world->joined < comm->world->ranks) {
    *state = ncclInProgress;
  } else {
    const bool done = comm->late || progress(comm);  // on a stream, calls are done with once they are there
    *state = comm->world->broken ? ncclRemoteError : done ? ncclSuccess : ncclInProgress;
  }
  return ncclSuccess;
}
const char* ncclGetErrorString(ncclResult_t result) { return result == ncclRemoteError ? "remote error" : "an error"; }
const char* ncclGetLastError(ncclComm_t) { return ""; }
ncclResult_t ncclGroupStart() {
  ++group_depth;
  return ncclSuccess;
}
ncclResult_t ncclGroupEnd() {
  if (--group_depth > 0) return ncclSuccess;
  const std::lock_guard lock(one);
  begin(std::exchange(grouped, {}));
  return ncclInProgress;
}
ncclResult_t ncclSend(const void* from, size_t count, ncclDataType_t type, int peer, ncclComm_t comm,
                      cudaStream_t stream) {
  return call(comm, {Part::send, from, nullptr, count, type, peer}, stream);
}
ncclResult_t ncclRecv(void* to, size_t count, ncclDataType_t type, int peer, ncclComm_t comm, cudaStream_t stream) {
  return call(comm, {Part::receive, nullptr, to, count, type, peer}, stream);
}
ncclResult_t ncclReduce(const void* from, void* to, size_t count, ncclDataType_t type, ncclRedOp_t, int root,
                        ncclComm_t comm, cudaStream_t stream) {
  return call(comm, {Part::reduce, from, to, count, type, root}, stream);
}
ncclResult_t ncclAllReduce(const void* from, void* to, size_t count, ncclDataType_t type, ncclRedOp_t, ncclComm_t comm,
                           cudaStream_t stream) {
  return call(comm, {Part::all_reduce, from, to, count, type, 0}, stream);
}
ncclResult_t ncclAllGather(const void* from, void* to, size_t count, ncclDataType_t type, ncclComm_t comm,
                           cudaStream_t stream) {
  return call(comm, {Part::all_gather, from, to, count, type, 0}, stream);
}
ncclResult_t ncclBroadcast(const void* from, void* to, size_t count, ncclDataType_t type, int root, ncclComm_t comm,
                           cudaStream_t stream) {
  return call(comm, {Part::broadcast, from, to, count, type, root}, stream);
}
}
