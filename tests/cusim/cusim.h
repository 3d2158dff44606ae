// SPDX-License-Identifier: Apache-2.0
//
// Runs CUDA kernels on the CPU, to test them: one block at a time, each of its threads on a stack of its own, switched
// only where a barrier or a warp-wide operation makes them wait for each other. What a kernel does wrong is recorded as
// a *fault* and ends the launch. Whether two accesses race does not depend on the order in which threads ran
// (shared_memory.h); results that depend on it differ between seeds.
//
//   const cusim::Report report = cusim::launch({}, grid, threads, shared_bytes, [&] { kernel(arguments); });
//
// Compile the kernels with -DSWIN_FAST_CUSIM and -I tests, and with -ftrivial-auto-var-init=pattern, which fills
// local variables that they forgot to initialise.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <deque>
#include <functional>
#include <numeric>
#include <random>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "fiber.h"
#include "numerics.h"
#include "shared_memory.h"

#define __global__
#define __launch_bounds__(...)

namespace cusim {

constexpr unsigned kWarpSize = 32;

enum class FaultKind {
  race,                  // two accesses to shared memory, one of them a write, with no barrier between
  divergence,            // the threads of a warp or block wait at different places for each other
  deadlock,              // a barrier that some threads never reach, because they have ended
  misaligned,            // an address that is no multiple of the size of the access
  out_of_shared_memory,  // an address outside the dynamic shared memory of the launch
  out_of_global_memory,  // an address outside Options::global
  red_zone,              // memory changed by a plain store, inside or around the shared memory
  pending_copy_at_exit,  // a thread has ended with copies it has not waited for
};

inline const char* name_of(FaultKind kind) {
  switch (kind) {
    case FaultKind::race: return "race";
    case FaultKind::divergence: return "divergence";
    case FaultKind::deadlock: return "deadlock";
    case FaultKind::misaligned: return "misaligned";
    case FaultKind::out_of_shared_memory: return "out_of_shared_memory";
    case FaultKind::out_of_global_memory: return "out_of_global_memory";
    case FaultKind::red_zone: return "red_zone";
    case FaultKind::pending_copy_at_exit: return "pending_copy_at_exit";
  }
  return "unknown";
}

// Where in the source of the kernel a primitive is called. Two calls on one line are one site.
struct Site {
  const char* file = "";
  int line = 0;

  bool operator==(const Site& other) const {
    return line == other.line && (file == other.file || std::strcmp(file, other.file) == 0);
  }
  bool operator!=(const Site& other) const { return !(*this == other); }
  std::string text() const { return std::string(file) + ":" + std::to_string(line); }
};

struct Fault {
  FaultKind kind;
  std::string message;
  unsigned block;
  unsigned thread;
  Site site;
};

// When the bytes of an asynchronous copy are read from global memory and arrive. Either way nobody may touch the target
// before the wait of the thread that copies.
enum class AsyncCopies { latest, earliest };

struct GlobalRange {
  const void* begin;
  size_t bytes;
};

struct Options {
  uint64_t seed = 0;  // shuffles the order of blocks and, anew after each wait, of threads; 0: as they are numbered
  AsyncCopies async_copies = AsyncCopies::latest;
  Math math = Math::exact;
  std::vector<GlobalRange> global = {};  // where the kernel may read and write; empty: anywhere
};

// How often a launch did what: warp-wide operations once per warp, barriers once per block, all else once per thread.
struct Counters {
  uint64_t mma = 0;
  uint64_t ldmatrix = 0;
  uint64_t stmatrix = 0;
  uint64_t ldmatrix_bank_conflicts = 0;  // times that 8 rows had to be fetched, or written, once more
  uint64_t shuffles = 0;
  uint64_t votes = 0;
  uint64_t warp_barriers = 0;
  uint64_t barriers = 0;
  uint64_t copies = 0;
  uint64_t copy_commits = 0;
  uint64_t copy_waits = 0;
  uint64_t shared_loads = 0;
  uint64_t shared_stores = 0;
  uint64_t global_loads = 0;
  uint64_t global_stores = 0;
  uint64_t functions = 0;            // exp2, rsqrt and reciprocal
  uint64_t uninitialised_reads = 0;  // 16-bit elements of shared memory read before they were written: no fault, NaN

  // All of them, for comparison and printing.
  std::vector<std::pair<const char*, uint64_t>> all() const {
    return {{"mma", mma},
            {"ldmatrix", ldmatrix},
            {"stmatrix", stmatrix},
            {"ldmatrix_bank_conflicts", ldmatrix_bank_conflicts},
            {"shuffles", shuffles},
            {"votes", votes},
            {"warp_barriers", warp_barriers},
            {"barriers", barriers},
            {"copies", copies},
            {"copy_commits", copy_commits},
            {"copy_waits", copy_waits},
            {"shared_loads", shared_loads},
            {"shared_stores", shared_stores},
            {"global_loads", global_loads},
            {"global_stores", global_stores},
            {"functions", functions},
            {"uninitialised_reads", uninitialised_reads}};
  }

  bool operator==(const Counters& other) const { return all() == other.all(); }
};

struct Report {
  std::vector<Fault> faults;  // at most one: it ends the launch
  Counters counters;
};

enum class WarpOperation {
  none,
  barrier,
  shuffle,
  shuffle_xor,
  vote,
  ldmatrix_x2,
  ldmatrix_x2_trans,
  ldmatrix_x4,
  ldmatrix_x4_trans,
  stmatrix_x1,
  stmatrix_x2,
  stmatrix_x4,
  mma_half,
  mma_bfloat16,
  mma_tf32
};

struct Copy {
  size_t offset;
  const void* source;  // null: 16 zero bytes
};

struct Thread {
  enum class State { ready, at_warp_operation, at_barrier, ended };

  unsigned index = 0;
  State state = State::ready;
  uint32_t team_epoch = 0;
  void* stack = nullptr;
  Site site;                  // where it waits
  void* arguments = nullptr;  // of the warp-wide operation it waits at
  std::vector<Copy> copies;   // not waited for, the oldest first
  std::deque<size_t> groups;  // how many of them are in each committed group, the oldest first
  size_t uncommitted = 0;

  unsigned lane() const { return index % kWarpSize; }
  unsigned warp() const { return index / kWarpSize; }
};

struct Warp {
  unsigned arrived = 0;
  WarpOperation operation = WarpOperation::none;
  Site site;
  uint32_t epoch = 1;
  Thread* lanes[kWarpSize] = {};
};

// One launch while it runs.
class Launch {
 public:
  static inline thread_local Launch* running = nullptr;

  Launch(const Options& options, unsigned grid, unsigned threads, size_t shared_bytes, std::function<void()> kernel)
      : options(options),
        grid(grid),
        shared(shared_bytes),
        threads(threads),
        warps_(threads / kWarpSize),
        kernel_(std::move(kernel)) {
    for (unsigned i = 0; i < threads; i++) {
      this->threads[i].index = i;
      warps_[i / kWarpSize].lanes[i % kWarpSize] = &this->threads[i];
    }
  }

  Report run() {
    std::mt19937_64 random(options.seed);
    std::vector<unsigned> blocks(grid);
    std::iota(blocks.begin(), blocks.end(), 0u);
    if (options.seed != 0) std::shuffle(blocks.begin(), blocks.end(), random);
    for (unsigned b : blocks) {
      block = b;
      run_block(random);
      if (!report.faults.empty()) break;
    }
    return report;
  }

  // Records a fault of `thread` and leaves the kernel for good.
  [[noreturn]] void fail(FaultKind kind, const Site& site, const std::string& message, const Thread& thread) {
    record(kind, site, message, thread.index);
    switch_stack(&current->stack, scheduler_stack_);
    __builtin_unreachable();
  }

  Moment now(const Thread& thread) const {
    return {thread.index, block_epoch_, thread.team_epoch, warps_[thread.warp()].epoch};
  }

  void barrier(const Site& site) {
    if (arrived_ == 0) barrier_site_ = site;
    if (barrier_site_ != site) {
      fail(FaultKind::divergence, site, "other threads wait at another barrier, " + barrier_site_.text(), *current);
    }
    if (++arrived_ < threads.size()) return wait(Thread::State::at_barrier, site);
    arrived_ = 0;
    block_epoch_++;
    report.counters.barriers++;
    for (Thread& thread : threads) thread.state = Thread::State::ready;
  }

  // Waits for the threads of the team, which `current` must be of.
  void team_barrier(unsigned team, unsigned size, const Site& site) {
    if (size == 0 || size % kWarpSize != 0 || current->index / size != team || team > 14 ||
        (!teams_.empty() && team_size_ != size)) {
      fail(FaultKind::divergence, site, "not the barrier of this thread's team", *current);
    }
    if (teams_.empty()) {
      team_size_ = size;
      teams_.resize((threads.size() + size - 1) / size);
      shared.set_team(size);
    }
    Team& own = teams_[team];
    if (own.arrived == 0) own.site = site;
    if (own.site != site) {
      fail(FaultKind::divergence, site, "others of the team wait at another barrier, " + own.site.text(), *current);
    }
    if (++own.arrived < size) return wait(Thread::State::at_barrier, site);
    own.arrived = 0;
    report.counters.barriers++;
    for (unsigned i = team * size; i < (team + 1) * size; i++) {
      threads[i].team_epoch++;
      threads[i].state = Thread::State::ready;
    }
  }

  // Waits for all lanes of the warp. The last to arrive calls perform(warp), in which lanes[l]->arguments are those of
  // lane l.
  template <class Perform>
  void warp_wide(WarpOperation operation, const Site& site, void* arguments, Perform perform) {
    Warp& warp = warps_[current->warp()];
    if (warp.arrived == 0) {
      warp.operation = operation;
      warp.site = site;
    } else if (warp.operation != operation || warp.site != site) {
      fail(FaultKind::divergence, site, "other lanes of the warp wait at another operation, " + warp.site.text(),
           *current);
    }
    current->arguments = arguments;
    if (++warp.arrived < kWarpSize) return wait(Thread::State::at_warp_operation, site);
    warp.arrived = 0;
    perform(warp);
    for (Thread* lane : warp.lanes) lane->state = Thread::State::ready;
  }

  Options options;
  unsigned grid;
  unsigned block = 0;
  SharedMemory shared;
  std::vector<Thread> threads;
  Thread* current = nullptr;
  Report report;

 private:
  void record(FaultKind kind, const Site& site, const std::string& message, unsigned thread) {
    std::string text = std::string(name_of(kind)) + " (block " + std::to_string(block) + ", thread " +
                       std::to_string(thread) + (site.line != 0 ? ", " + site.text() : "") + "): " + message;
    report.faults.push_back({kind, text, block, thread, site});
  }

  void wait(Thread::State state, const Site& site) {
    current->state = state;
    current->site = site;
    switch_stack(&current->stack, scheduler_stack_);
  }

  static void run_thread() {
    running->kernel_();
    running->current->state = Thread::State::ended;
    switch_stack(&running->current->stack, running->scheduler_stack_);
    __builtin_unreachable();
  }

  void run_block(std::mt19937_64& random) {
    static thread_local Stacks stacks;
    block_epoch_++;
    shared.begin(block_epoch_);
    arrived_ = 0;
    for (Team& team : teams_) team.arrived = 0;
    std::vector<unsigned> order(threads.size());
    std::iota(order.begin(), order.end(), 0u);
    for (Thread& thread : threads) {
      thread.stack = stacks.fresh(thread.index, run_thread);
      thread.state = Thread::State::ready;
    }
    for (size_t left = threads.size(); left > 0;) {
      if (options.seed != 0) std::shuffle(order.begin(), order.end(), random);
      bool progress = false;
      for (unsigned i : order) {
        current = &threads[i];
        if (current->state != Thread::State::ready) continue;
        progress = true;
        switch_stack(&scheduler_stack_, current->stack);
        if (!report.faults.empty()) return;
        if (current->state != Thread::State::ended) continue;
        left--;
        if (!current->copies.empty()) {
          const std::string count = std::to_string(current->copies.size());
          return record(FaultKind::pending_copy_at_exit, {}, "ended before " + count + " of its copies", i);
        }
      }
      if (!progress) return record_stuck();
    }
    intptr_t offset;
    if (shared.find_plain_store(&offset)) {
      record(FaultKind::red_zone, {},
             "a plain store has changed byte " + std::to_string(offset) + " of " + std::to_string(shared.bytes()) +
                 " bytes of shared memory; the thread is not known",
             0);
    }
  }

  static std::string place(const Thread& thread) {
    const std::string who = "thread " + std::to_string(thread.index);
    if (thread.state == Thread::State::ended) return who + " has ended";
    return who + (thread.state == Thread::State::at_barrier ? " waits at the barrier " : " waits at ") +
           thread.site.text();
  }

  // Nobody can go on: says why.
  void record_stuck() {
    for (const Warp& warp : warps_) {
      if (warp.arrived == 0) continue;
      uint32_t mask = 0;
      const Thread* waiting = nullptr;
      const Thread* other = nullptr;
      for (const Thread* lane : warp.lanes) {
        const bool here = lane->state == Thread::State::at_warp_operation;
        if (here) mask |= 1u << lane->lane();
        if (here && waiting == nullptr) waiting = lane;
        if (!here && other == nullptr) other = lane;
      }
      char lanes[64];
      std::snprintf(lanes, sizeof(lanes), "only the lanes of mask 0x%08x arrive, ", mask);
      return record(FaultKind::divergence, warp.site, lanes + place(*other), waiting->index);
    }
    const auto at = [this](Thread::State state) {
      return *std::find_if(threads.begin(), threads.end(), [&](const Thread& thread) { return thread.state == state; });
    };
    const bool some_ended = std::any_of(threads.begin(), threads.end(),
                                        [](const Thread& thread) { return thread.state == Thread::State::ended; });
    const Thread& waiting = at(Thread::State::at_barrier);
    record(FaultKind::deadlock, waiting.site,
           "not all threads reach the barrier" + (some_ended ? ", " + place(at(Thread::State::ended)) : std::string()),
           waiting.index);
  }

  struct Team {
    unsigned arrived = 0;
    Site site;
  };

  std::vector<Warp> warps_;
  std::vector<Team> teams_;  // of kernels that have some
  unsigned team_size_ = 0;
  std::function<void()> kernel_;
  void* scheduler_stack_ = nullptr;
  unsigned arrived_ = 0;  // at the barrier
  Site barrier_site_;
  uint32_t block_epoch_ = 0;
};

// Runs `kernel`, a callable without arguments, as every thread of every block.
template <class Kernel>
Report launch(const Options& options, unsigned grid, unsigned threads, size_t shared_bytes, const Kernel& kernel) {
  if (threads == 0 || threads > 1024 || threads % kWarpSize != 0) {
    throw std::invalid_argument("a block has 32 to 1024 threads, in whole warps");
  }
  if (shared_bytes > (227 << 10)) throw std::invalid_argument("no GPU has more than 227 KiB of shared memory a block");
  Launch now(options, grid, threads, shared_bytes, kernel);
  Launch::running = &now;
  Report report = now.run();
  Launch::running = nullptr;
  return report;
}

// What threadIdx and its like stand for.
struct Index {
  unsigned x;
};

inline Index thread_index() { return {Launch::running->current->index}; }
inline Index block_index() { return {Launch::running->block}; }
inline Index block_size() { return {static_cast<unsigned>(Launch::running->threads.size())}; }
inline Index grid_size() { return {Launch::running->grid}; }

}  // namespace cusim

#define threadIdx (::cusim::thread_index())
#define blockIdx (::cusim::block_index())
#define blockDim (::cusim::block_size())
#define gridDim (::cusim::grid_size())
