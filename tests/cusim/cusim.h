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
// local variables that they forgot to initialise; and link cusim.cpp and emulated_primitives.cpp. Headers that kernels
// see hold declarations and what is thin: each planted bug compiles them anew.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#define __global__
#define __launch_bounds__(...)

namespace cusim {

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

const char* name_of(FaultKind kind);

// Where in the source of the kernel a primitive is called. Two calls on one line are one site.
struct Site {
  const char* file = "";
  int line = 0;

  bool operator==(const Site& other) const;
  bool operator!=(const Site& other) const { return !(*this == other); }
  std::string text() const;
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

enum class Math {
  exact,          // matrix products and functions as exact as float allows: each result is rounded once
  hardware_like,  // products aligned to the largest exponent and cut off there; subnormals flushed; functions are off
};

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
  std::vector<std::pair<const char*, uint64_t>> all() const;

  bool operator==(const Counters& other) const { return all() == other.all(); }
};

struct Report {
  std::vector<Fault> faults;  // at most one: it ends the launch
  Counters counters;
};

// Runs `kernel(context)` as every thread of every block.
Report launch(const Options& options, unsigned grid, unsigned threads, size_t shared_bytes,
              void (*kernel)(const void* context), const void* context);

// The same with a callable without arguments.
template <class Kernel>
Report launch(const Options& options, unsigned grid, unsigned threads, size_t shared_bytes, const Kernel& kernel) {
  const auto call = [](const void* context) { (*static_cast<const Kernel*>(context))(); };
  return launch(options, grid, threads, shared_bytes, call, &kernel);
}

// What threadIdx and its like stand for.
struct Index {
  unsigned x;
};

Index thread_index();
Index block_index();
Index block_size();
Index grid_size();

}  // namespace cusim

#define threadIdx (::cusim::thread_index())
#define blockIdx (::cusim::block_index())
#define blockDim (::cusim::block_size())
#define gridDim (::cusim::grid_size())
