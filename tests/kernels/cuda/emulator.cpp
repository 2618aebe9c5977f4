#include "tests/kernels/cuda/emulator.h"

#include <setjmp.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <map>
#include <memory>
#include <random>
#include <stdexcept>
#include <vector>

namespace regatta::kernels::cuda::emulated {

thread_local Where where;

namespace {

constexpr std::size_t stack_bytes = 64 << 10;

struct Barrier {
  int arrived = 0;
  unsigned round = 0;
};
struct Warp {
  Barrier barrier;
  std::uint64_t slots[2][warp_lanes];
};
struct Memory {
  std::unique_ptr<uint4[]> data;
  std::size_t count = 0;
  void spoil() { std::memset(static_cast<void*>(data.get()), 0xcd, count * sizeof(uint4)); }
  explicit Memory(std::size_t bytes) : data(new uint4[bytes / sizeof(uint4) + 1]), count(bytes / sizeof(uint4) + 1) {
    spoil();
  }
};
struct Block {
  Barrier barrier;
  std::vector<Warp> warps;
  std::map<int, Memory> shared;  // by line of the source
  Memory dynamic{0};
  int done = 0;  // threads
};
struct Fiber {
  Where where;
  jmp_buf state;
  bool started = false, done = false;
  unsigned calls = 0;  // of exchange_lanes
  const Barrier* waits_for = nullptr;
  unsigned round = 0;
};

// The blocks that run at the same time: one cluster.
struct Machine {
  std::vector<Block> blocks;
  Barrier barrier;
  std::vector<Fiber> fibers;
  int threads = 0;
  std::int64_t dynamic_bytes = 0;
  void (*body)(const void*) = nullptr;
  const void* call = nullptr;
  Fiber* current = nullptr;
  jmp_buf scheduler;
};
Machine machine;

char* stack_of(std::size_t fiber) {
  static std::vector<char*> stacks;
  while (stacks.size() <= fiber) {
    void* stack = mmap(nullptr, stack_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (stack == MAP_FAILED) throw std::runtime_error("no memory for the stack of an emulated thread");
    stacks.push_back(static_cast<char*>(stack));
  }
  return stacks[fiber];
}

void enter_fiber() {
  machine.body(machine.call);
  machine.current->done = true;
  _longjmp(machine.scheduler, 1);
}

void resume(std::size_t index) {
  Fiber& fiber = machine.fibers[index];
  machine.current = &fiber;
  where = fiber.where;
  if (_setjmp(machine.scheduler) != 0) return;
  if (fiber.started) _longjmp(fiber.state, 1);
  fiber.started = true;
  ucontext_t context;
  getcontext(&context);
  context.uc_stack.ss_sp = stack_of(index);
  context.uc_stack.ss_size = stack_bytes;
  context.uc_link = nullptr;
  makecontext(&context, enter_fiber, 0);
  setcontext(&context);
}

void wait_for(Barrier& barrier, int group) {
  if (++barrier.arrived == group) {
    barrier.arrived = 0;
    ++barrier.round;
    return;
  }
  Fiber& fiber = *machine.current;
  fiber.waits_for = &barrier;
  fiber.round = barrier.round;
  if (_setjmp(fiber.state) == 0) _longjmp(machine.scheduler, 1);
}

// A block's shared memory goes with its last thread: peers that still read it get rubbish.
void finish_thread(Block& block) {
  if (++block.done < machine.threads) return;
  for (auto& [line, memory] : block.shared) memory.spoil();
}

void run_cluster(std::int64_t first_block, int cluster) {
  static std::mt19937 random(7);
  machine.barrier = {};
  machine.blocks.clear();
  machine.blocks.resize(cluster);
  machine.fibers.clear();
  machine.fibers.resize(static_cast<std::size_t>(cluster) * machine.threads);
  for (int b = 0; b < cluster; ++b) {
    machine.blocks[b].warps.resize(machine.threads / warp_lanes);
    machine.blocks[b].dynamic = Memory(machine.dynamic_bytes);
    for (int t = 0; t < machine.threads; ++t)
      machine.fibers[b * machine.threads + t].where = {
          {static_cast<unsigned>(t)}, {static_cast<unsigned>(first_block + b)}, b, cluster};
  }
  // One block is favoured for a while, so that it gets as far ahead of the others as the barriers let it.
  const std::size_t count = machine.fibers.size();
  int favoured = 0;
  for (std::size_t done = 0; done < count;) {
    if (random() % 8 == 0) favoured = static_cast<int>(random() % cluster);
    bool moved = false;
    for (const bool others : {false, true}) {
      if (moved) break;
      const std::size_t start = random() % count, step = random() % 2 == 0 ? 1 : count - 1;
      for (std::size_t k = 0, i = start; k < count; ++k, i = (i + step) % count) {
        Fiber& fiber = machine.fibers[i];
        if ((fiber.where.rank_in_cluster != favoured) != others || fiber.done) continue;
        if (fiber.waits_for != nullptr && fiber.waits_for->round == fiber.round) continue;
        fiber.waits_for = nullptr;
        moved = true;
        resume(i);
        if (!fiber.done) continue;
        ++done;
        finish_thread(machine.blocks[fiber.where.rank_in_cluster]);
      }
    }
    if (!moved) throw std::runtime_error("emulated threads wait for one another in vain");
  }
}

Block& my_block() { return machine.blocks[where.rank_in_cluster]; }

}  // namespace

void run_grid(void (*body)(const void*), const void* call, std::int64_t blocks, int threads, int cluster,
              std::int64_t shared_bytes) {
  machine.body = body;
  machine.call = call;
  machine.threads = threads;
  machine.dynamic_bytes = shared_bytes;
  for (std::int64_t block = 0; block < blocks; block += cluster) run_cluster(block, cluster);
}

void* shared_bytes_of(int line, std::size_t bytes) {
  return my_block().shared.try_emplace(line, bytes).first->second.data.get();
}
uint4* dynamic_shared() { return my_block().dynamic.data.get(); }

const void* same_of_peer(const void* mine, int rank) {
  for (const auto& [line, memory] : my_block().shared)
    if (memory.data.get() == mine) return machine.blocks.at(rank).shared.at(line).data.get();
  throw std::runtime_error("not a shared variable");
}

void wait_for_block() { wait_for(my_block().barrier, machine.threads); }
void wait_for_cluster() { wait_for(machine.barrier, machine.threads * static_cast<int>(machine.blocks.size())); }

std::uint64_t exchange_lanes(std::uint64_t bytes, int mask) {
  const unsigned lane = where.thread.x % warp_lanes;
  Warp& warp = my_block().warps[where.thread.x / warp_lanes];
  std::uint64_t* slots = warp.slots[machine.current->calls++ % 2];  // nobody can be two calls ahead
  slots[lane] = bytes;
  wait_for(warp.barrier, warp_lanes);
  return slots[lane ^ static_cast<unsigned>(mask)];
}

}  // namespace regatta::kernels::cuda::emulated
