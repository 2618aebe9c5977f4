// The emulator with a thread of the host for each thread of a device, for builds with sanitizers, which do not follow
// fibers. Threads of a cluster run at the same time, so that the thread sanitizer also sees shared memory that is read
// without a barrier after it was written.

#include <condition_variable>
#include <map>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "tests/kernels/cuda/emulator.h"

namespace regatta::kernels::cuda::emulated {

thread_local Where where;

namespace {

struct Broken {};  // thrown in threads that wait in vain

struct Barrier {
  int arrived = 0;
  unsigned round = 0;
  std::condition_variable passed;
};
struct Warp {
  Barrier barrier;
  std::uint64_t slots[2][warp_lanes];
};
struct Memory {
  std::unique_ptr<uint4[]> data;
  explicit Memory(std::size_t bytes) : data(new uint4[bytes / sizeof(uint4) + 1]) {
    std::memset(static_cast<void*>(data.get()), 0xcd, (bytes / sizeof(uint4) + 1) * sizeof(uint4));
  }
};
struct Block {
  Barrier barrier;
  std::unique_ptr<Warp[]> warps;
  std::map<int, Memory> shared;  // by line of the source
  Memory dynamic{0};
};

// The blocks that run at the same time: one cluster. `mutex` guards all but the memory that kernels see.
struct Machine {
  std::mutex mutex;
  std::unique_ptr<Block[]> blocks;
  int block_count = 0, threads = 0;
  Barrier barrier;
  int waiting = 0, ended = 0;
  std::string error;  // of the first thread that failed
  bool broken = false;

  void break_off(const std::string& why) {
    if (!broken) error = why;
    broken = true;
    barrier.passed.notify_all();
    for (int b = 0; b < block_count; ++b) {
      blocks[b].barrier.passed.notify_all();
      for (int w = 0; w < threads / warp_lanes; ++w) blocks[b].warps[w].barrier.passed.notify_all();
    }
  }
  void look_for_deadlock() {
    if (waiting + ended == block_count * threads && ended < block_count * threads)
      break_off("emulated threads wait for one another in vain");
  }
};
Machine machine;
thread_local unsigned lane_exchanges = 0;

void wait_for(Barrier& barrier, int group) {
  std::unique_lock lock(machine.mutex);
  if (machine.broken) throw Broken{};
  if (++barrier.arrived == group) {
    barrier.arrived = 0;
    ++barrier.round;
    machine.waiting -= group - 1;
    barrier.passed.notify_all();
    return;
  }
  ++machine.waiting;
  machine.look_for_deadlock();
  const unsigned round = barrier.round;
  barrier.passed.wait(lock, [&] { return barrier.round != round || machine.broken; });
  if (barrier.round == round) throw Broken{};
}

// Threads that are kept from one cluster to the next. Worker k is thread k of the cluster.
class Crew {
 public:
  ~Crew() {
    {
      std::lock_guard lock(mutex_);
      closing_ = true;
    }
    begun_.notify_all();
    for (std::thread& worker : workers_) worker.join();
  }

  template <class Body>
  void run(int count, const Body& body) {
    std::unique_lock lock(mutex_);
    body_ = [](const void* b, int k) { (*static_cast<const Body*>(b))(k); };
    argument_ = &body;
    count_ = count;
    left_ = count;
    ++turn_;
    while (static_cast<int>(workers_.size()) < count)
      workers_.emplace_back([this, k = static_cast<int>(workers_.size()), turn = turn_ - 1] { work(k, turn); });
    begun_.notify_all();
    done_.wait(lock, [&] { return left_ == 0; });
  }

 private:
  void work(int k, unsigned turn) {
    std::unique_lock lock(mutex_);
    for (;;) {
      begun_.wait(lock, [&] { return closing_ || turn_ != turn; });
      if (closing_) return;
      turn = turn_;
      if (k >= count_) continue;
      lock.unlock();
      body_(argument_, k);
      lock.lock();
      if (--left_ == 0) done_.notify_one();
    }
  }

  std::mutex mutex_;
  std::condition_variable begun_, done_;
  std::vector<std::thread> workers_;
  void (*body_)(const void*, int) = nullptr;
  const void* argument_ = nullptr;
  int count_ = 0, left_ = 0;
  unsigned turn_ = 0;
  bool closing_ = false;
};

Block& my_block() { return machine.blocks[where.rank_in_cluster]; }

}  // namespace

void run_grid(void (*body)(const void*), const void* call, std::int64_t blocks, int threads, int cluster,
              std::int64_t shared_bytes) {
  static Crew crew;
  for (std::int64_t first = 0; first < blocks; first += cluster) {
    machine.blocks = std::make_unique<Block[]>(static_cast<std::size_t>(cluster));
    machine.block_count = cluster;
    machine.threads = threads;
    machine.waiting = machine.ended = 0;
    machine.broken = false;
    for (int b = 0; b < cluster; ++b) {
      machine.blocks[b].warps = std::make_unique<Warp[]>(static_cast<std::size_t>(threads / warp_lanes));
      machine.blocks[b].dynamic = Memory(static_cast<std::size_t>(shared_bytes));
    }
    crew.run(cluster * threads, [&](int k) {
      const int block = k / threads;
      where = {{static_cast<unsigned>(k % threads)}, {static_cast<unsigned>(first + block)}, block, cluster};
      lane_exchanges = 0;
      std::string why;
      try {
        body(call);
      } catch (const Broken&) {
      } catch (const std::exception& error) {
        why = error.what();
      }
      std::lock_guard lock(machine.mutex);
      ++machine.ended;
      if (!why.empty()) machine.break_off(why);
      machine.look_for_deadlock();
    });
    if (machine.broken) throw std::runtime_error(machine.error);
  }
}

void* shared_bytes_of(int line, std::size_t bytes) {
  std::lock_guard lock(machine.mutex);
  return my_block().shared.try_emplace(line, bytes).first->second.data.get();
}
uint4* dynamic_shared() { return my_block().dynamic.data.get(); }

const void* same_of_peer(const void* mine, int rank) {
  std::lock_guard lock(machine.mutex);
  for (const auto& [line, memory] : my_block().shared)
    if (memory.data.get() == mine) return machine.blocks[rank].shared.at(line).data.get();
  throw std::runtime_error("not a shared variable");
}

void wait_for_block() { wait_for(my_block().barrier, machine.threads); }
void wait_for_cluster() { wait_for(machine.barrier, machine.threads * machine.block_count); }

std::uint64_t exchange_lanes(std::uint64_t bytes, int mask) {
  const unsigned lane = where.thread.x % warp_lanes;
  Warp& warp = my_block().warps[where.thread.x / warp_lanes];
  std::uint64_t* slots = warp.slots[lane_exchanges++ % 2];  // nobody can be two calls ahead
  slots[lane] = bytes;
  wait_for(warp.barrier, warp_lanes);
  return slots[lane ^ static_cast<unsigned>(mask)];
}

}  // namespace regatta::kernels::cuda::emulated
