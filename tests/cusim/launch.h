// SPDX-License-Identifier: Apache-2.0
//
// One launch while it runs: its threads, what they wait for, and the block's memory. Of the emulator alone; kernels are
// compiled without it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <random>
#include <string>
#include <vector>

#include "cusim.h"
#include "shared_memory.h"

namespace cusim {

constexpr unsigned kWarpSize = 32;

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

  Launch(const Options& options, unsigned grid, unsigned threads, size_t shared_bytes, void (*kernel)(const void*),
         const void* context);

  Report run();

  // Records a fault of `thread` and leaves the kernel for good.
  [[noreturn]] void fail(FaultKind kind, const Site& site, const std::string& message, const Thread& thread);

  Moment now(const Thread& thread) const {
    return {thread.index, block_epoch_, thread.team_epoch, warps_[thread.warp()].epoch};
  }

  void barrier(const Site& site);

  // Waits for the threads of the team, which `current` must be of.
  void team_barrier(unsigned team, unsigned size, const Site& site);

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
  void record(FaultKind kind, const Site& site, const std::string& message, unsigned thread);
  void wait(Thread::State state, const Site& site);
  void run_block(std::mt19937_64& random);
  void record_stuck();
  static void run_thread();
  static std::string place(const Thread& thread);

  struct Team {
    unsigned arrived = 0;
    Site site;
  };

  std::vector<Warp> warps_;
  std::vector<Team> teams_;  // of kernels that have some
  unsigned team_size_ = 0;
  void (*kernel_)(const void*);
  const void* context_;
  void* scheduler_stack_ = nullptr;
  unsigned arrived_ = 0;  // at the barrier
  Site barrier_site_;
  uint32_t block_epoch_ = 0;
};

}  // namespace cusim
