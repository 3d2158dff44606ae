// SPDX-License-Identifier: Apache-2.0
//
// How the emulator runs a launch: the order of blocks and threads, barriers, and what is said of a fault.
#include "cusim.h"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <numeric>
#include <random>
#include <stdexcept>

#include "fiber.h"
#include "launch.h"

namespace cusim {

const char* name_of(FaultKind kind) {
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

bool Site::operator==(const Site& other) const {
  return line == other.line && (file == other.file || std::strcmp(file, other.file) == 0);
}

std::string Site::text() const { return std::string(file) + ":" + std::to_string(line); }

std::vector<std::pair<const char*, uint64_t>> Counters::all() const {
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

Launch::Launch(const Options& options, unsigned grid, unsigned threads, size_t shared_bytes,
               void (*kernel)(const void*), const void* context)
    : options(options),
      grid(grid),
      shared(shared_bytes),
      threads(threads),
      warps_(threads / kWarpSize),
      kernel_(kernel),
      context_(context) {
  for (unsigned i = 0; i < threads; i++) {
    this->threads[i].index = i;
    warps_[i / kWarpSize].lanes[i % kWarpSize] = &this->threads[i];
  }
}

Report Launch::run() {
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

void Launch::fail(FaultKind kind, const Site& site, const std::string& message, const Thread& thread) {
  record(kind, site, message, thread.index);
  switch_stack(&current->stack, scheduler_stack_);
  __builtin_unreachable();
}

void Launch::barrier(const Site& site) {
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

void Launch::team_barrier(unsigned team, unsigned size, const Site& site) {
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

void Launch::record(FaultKind kind, const Site& site, const std::string& message, unsigned thread) {
  std::string text = std::string(name_of(kind)) + " (block " + std::to_string(block) + ", thread " +
                     std::to_string(thread) + (site.line != 0 ? ", " + site.text() : "") + "): " + message;
  report.faults.push_back({kind, text, block, thread, site});
}

void Launch::wait(Thread::State state, const Site& site) {
  current->state = state;
  current->site = site;
  switch_stack(&current->stack, scheduler_stack_);
}

void Launch::run_thread() {
  running->kernel_(running->context_);
  running->current->state = Thread::State::ended;
  switch_stack(&running->current->stack, running->scheduler_stack_);
  __builtin_unreachable();
}

void Launch::run_block(std::mt19937_64& random) {
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

std::string Launch::place(const Thread& thread) {
  const std::string who = "thread " + std::to_string(thread.index);
  if (thread.state == Thread::State::ended) return who + " has ended";
  return who + (thread.state == Thread::State::at_barrier ? " waits at the barrier " : " waits at ") +
         thread.site.text();
}

// Nobody can go on: says why.
void Launch::record_stuck() {
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

Report launch(const Options& options, unsigned grid, unsigned threads, size_t shared_bytes,
              void (*kernel)(const void* context), const void* context) {
  if (threads == 0 || threads > 1024 || threads % kWarpSize != 0) {
    throw std::invalid_argument("a block has 32 to 1024 threads, in whole warps");
  }
  if (shared_bytes > (227 << 10)) throw std::invalid_argument("no GPU has more than 227 KiB of shared memory a block");
  Launch now(options, grid, threads, shared_bytes, kernel, context);
  Launch::running = &now;
  Report report = now.run();
  Launch::running = nullptr;
  return report;
}

Index thread_index() { return {Launch::running->current->index}; }
Index block_index() { return {Launch::running->block}; }
Index block_size() { return {static_cast<unsigned>(Launch::running->threads.size())}; }
Index grid_size() { return {Launch::running->grid}; }

}  // namespace cusim
