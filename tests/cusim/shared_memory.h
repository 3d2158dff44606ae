// SPDX-License-Identifier: Apache-2.0
//
// The shared memory of one block, with a record of who touched each element and when.
//
// Kernels get addresses into a *window* that holds nothing but NaN, with red zones on both sides; the data lie
// elsewhere, and only the primitives reach them. So a plain read gives NaN, and a plain write is seen when the block
// ends. Data are NaN until written: 0xff bytes are NaN in float, half and bfloat16 alike.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

namespace cusim {

// A thread at one time. Whatever lies between two barriers of the block is of one block epoch, whatever lies between
// two barriers of the team or of the warp (within it) of one team epoch or warp epoch. Accesses by two threads are
// ordered if the block epochs differ, or if the threads are of one team and the team epochs differ, or of one warp and
// the warp epochs. By nothing else: not by the order in which the emulator happened to run them.
struct Moment {
  uint32_t thread = 0;
  uint32_t block_epoch = 0;  // 0: never
  uint32_t team_epoch = 0;
  uint32_t warp_epoch = 0;
};

// Why an access is not allowed, and against which thread; `what` is null where it is.
struct Conflict {
  const char* what = nullptr;
  uint32_t thread = 0;
};

class SharedMemory {
 public:
  static constexpr size_t kRedZone = 1024;
  static constexpr size_t kAlignment = 128;
  static constexpr unsigned char kPoison = 0xff;

  explicit SharedMemory(size_t bytes)
      : bytes_(bytes),
        arena_(bytes + 2 * kRedZone + 2 * kAlignment, kPoison),
        data_(bytes),
        cells_((bytes + kCell - 1) / kCell) {
    // An odd multiple: a kernel that needs more than the 128 bytes that are promised must not have them by luck.
    const uintptr_t address = reinterpret_cast<uintptr_t>(arena_.data()) + kRedZone;
    uintptr_t aligned = (address + kAlignment - 1) / kAlignment * kAlignment;
    if (aligned / kAlignment % 2 == 0) aligned += kAlignment;
    window_ = arena_.data() + (aligned - reinterpret_cast<uintptr_t>(arena_.data()));
  }

  // Begins a block; everything recorded before is of earlier epochs than `first_epoch`.
  void begin(uint32_t first_epoch) {
    std::fill(data_.begin(), data_.end(), kPoison);
    first_epoch_ = first_epoch;
  }

  // How many threads a team has, of kernels that have teams.
  void set_team(uint32_t threads) { team_ = threads; }

  char* window() { return reinterpret_cast<char*>(window_); }
  size_t bytes() const { return bytes_; }

  // Where in the window an address lies; may be negative or behind the end.
  intptr_t offset(const void* pointer) const {
    return static_cast<intptr_t>(reinterpret_cast<uintptr_t>(pointer) - reinterpret_cast<uintptr_t>(window_));
  }

  bool holds(intptr_t offset, size_t size) const {
    return offset >= 0 && size <= bytes_ && static_cast<size_t>(offset) <= bytes_ - size;
  }

  unsigned char* data(size_t offset) { return data_.data() + offset; }

  // The place in the window, or in the red zones around it, that a plain store has changed; false if there is none.
  bool find_plain_store(intptr_t* offset) const {
    if (arena_[0] == kPoison && std::memcmp(arena_.data(), arena_.data() + 1, arena_.size() - 1) == 0) return false;
    for (const unsigned char& byte : arena_) {
      if (byte == kPoison) continue;
      *offset = &byte - window_;
      return true;
    }
    return false;
  }

  // Each of these records an access to [offset, offset + size), which the window holds, unless it is not allowed.
  Conflict read(size_t offset, size_t size, const Moment& now, uint64_t* uninitialised) {
    for (size_t c = offset / kCell; c < (offset + size + kCell - 1) / kCell; c++) {
      Cell& cell = cells_[c];
      if (cell.in_flight) return {"is read while it is copied to, without a wait, by", cell.write.thread};
      if (unordered(cell.write, now)) return {"is read without a barrier after it was written by", cell.write.thread};
      if (cell.write.block_epoch < first_epoch_) ++*uninitialised;
      cell.note_read(now, team_);
    }
    return {};
  }

  Conflict write(size_t offset, size_t size, const Moment& now) {
    for (size_t c = offset / kCell; c < (offset + size + kCell - 1) / kCell; c++) {
      Cell& cell = cells_[c];
      if (cell.in_flight) return {"is written while it is copied to, without a wait, by", cell.write.thread};
      if (unordered(cell.write, now)) return {"is written without a barrier after it was by", cell.write.thread};
      Conflict conflict = cell.unordered_reader(now, team_);
      if (conflict.what != nullptr) return conflict;
      cell.write = now;
    }
    return {};
  }

  // A copy may land at once, so beginning it is writing.
  Conflict begin_copy(size_t offset, size_t size, const Moment& now) {
    const Conflict conflict = write(offset, size, now);
    if (conflict.what == nullptr) mark(offset, size, now, true);
    return conflict;
  }

  // Nobody touched it in the meantime, and what other threads see is ordered by what they and this one do from now on.
  void end_copy(size_t offset, size_t size, const Moment& now) { mark(offset, size, now, false); }

 private:
  static constexpr size_t kCell = 2;  // bytes of one record: no access is smaller, and neighbours may be of two threads
  static constexpr uint32_t kWarp = 32;

  static bool passed_team_barrier(const Moment& earlier, const Moment& now, uint32_t team) {
    return earlier.thread / team == now.thread / team && earlier.team_epoch != now.team_epoch;
  }

  bool unordered(const Moment& earlier, const Moment& now) const {
    if (earlier.block_epoch != now.block_epoch || earlier.thread == now.thread) return false;
    if (passed_team_barrier(earlier, now, team_)) return false;
    return earlier.thread / kWarp != now.thread / kWarp || earlier.warp_epoch == now.warp_epoch;
  }

  struct Cell {
    Moment write;
    bool in_flight = false;
    // Who has read in block epoch last_read.block_epoch: the lanes (of last_read.thread's warp, in
    // last_read.warp_epoch), and whether other warps have too, of which other_reader is one thread. If only one team
    // has, in its epoch last_read.team_epoch.
    bool several_warps = false;
    bool several_teams = false;
    uint32_t lanes = 0;
    uint32_t other_reader = 0;
    Moment last_read;

    void note_read(const Moment& now, uint32_t team) {
      if (last_read.block_epoch != now.block_epoch || (!several_teams && passed_team_barrier(last_read, now, team))) {
        several_warps = several_teams = false;
        lanes = 0;
      } else if (last_read.thread / kWarp != now.thread / kWarp) {
        several_warps = true;
        several_teams = several_teams || last_read.thread / team != now.thread / team;
        other_reader = last_read.thread;
        lanes = 0;
      } else if (last_read.warp_epoch != now.warp_epoch) {
        lanes = 0;
      }
      lanes |= 1u << now.thread % kWarp;
      last_read = now;
    }

    Conflict unordered_reader(const Moment& now, uint32_t team) const {
      const char* what = "is written without a barrier after it was read by";
      if (last_read.block_epoch != now.block_epoch) return {};
      if (!several_teams && passed_team_barrier(last_read, now, team)) return {};
      const uint32_t warp = last_read.thread / kWarp;
      if (warp != now.thread / kWarp) return {what, last_read.thread};
      if (several_warps) return {what, other_reader};
      const uint32_t others = lanes & ~(1u << now.thread % kWarp);
      if (last_read.warp_epoch != now.warp_epoch || others == 0) return {};
      return {what, warp * kWarp + static_cast<uint32_t>(__builtin_ctz(others))};
    }
  };

  void mark(size_t offset, size_t size, const Moment& now, bool in_flight) {
    for (size_t c = offset / kCell; c < (offset + size + kCell - 1) / kCell; c++) {
      cells_[c].write = now;
      cells_[c].in_flight = in_flight;
    }
  }

  size_t bytes_;
  std::vector<unsigned char> arena_;
  std::vector<unsigned char> data_;
  std::vector<Cell> cells_;
  unsigned char* window_ = nullptr;
  uint32_t first_epoch_ = 0;
  uint32_t team_ = kWarp;
};

}  // namespace cusim
