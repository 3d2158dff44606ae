// SPDX-License-Identifier: Apache-2.0
//
// What the primitives do in the emulator: each checks what it is asked for, and counts it.
#include <algorithm>
#include <cstring>
#include <string>

#include "../../csrc/cuda/primitives.h"
#include "launch.h"
#include "numerics.h"

namespace cusim {
namespace {

void check_aligned(uintptr_t address, size_t size, const char* what, const Site& site, const Thread& thread) {
  if (address % size == 0) return;
  const std::string text = "the address of " + std::string(what) + " is no multiple of " + std::to_string(size);
  Launch::running->fail(FaultKind::misaligned, site, text, thread);
}

// The offset of an access to shared memory, after a check that it may be made.
size_t checked_offset(const void* shared, size_t size, const char* what, const Site& site, const Thread& thread) {
  Launch& launch = *Launch::running;
  const intptr_t offset = launch.shared.offset(shared);
  if (!launch.shared.holds(offset, size)) {
    const std::string text = std::string(what) + " of " + std::to_string(size) + " bytes at " + std::to_string(offset) +
                             " of " + std::to_string(launch.shared.bytes()) + " bytes of shared memory";
    launch.fail(FaultKind::out_of_shared_memory, site, text, thread);
  }
  check_aligned(static_cast<uintptr_t>(offset), size, what, site, thread);
  return static_cast<size_t>(offset);
}

void check_global(const void* global, size_t size, const char* what, const Site& site) {
  const Launch& launch = *Launch::running;
  check_aligned(reinterpret_cast<uintptr_t>(global), size, what, site, *launch.current);
  if (launch.options.global.empty()) return;
  for (const GlobalRange& range : launch.options.global) {
    // Of an address below the range the difference wraps, to more than any size.
    const uintptr_t at = reinterpret_cast<uintptr_t>(global) - reinterpret_cast<uintptr_t>(range.begin);
    if (size <= range.bytes && at <= range.bytes - size) return;
  }
  Launch::running->fail(FaultKind::out_of_global_memory, site, std::string(what) + " outside the memory given",
                        *launch.current);
}

void check_race(const Conflict& conflict, size_t offset, const Site& site, const Thread& thread) {
  if (conflict.what == nullptr) return;
  const std::string text = "shared memory at byte " + std::to_string(offset) + " " + conflict.what + " thread " +
                           std::to_string(conflict.thread);
  Launch::running->fail(FaultKind::race, site, text, thread);
}

void land(const Copy& copy) {
  unsigned char* target = Launch::running->shared.data(copy.offset);
  std::memset(target, 0, 16);
  if (copy.source != nullptr) std::memcpy(target, copy.source, 16);
}

template <class V>
V exchange(WarpOperation operation, V value, int selector, const Site& site) {
  static_assert(sizeof(V) == 4, "a register");
  struct Arguments {
    V value;
    int selector;
    V result;
  } arguments{value, selector, value};
  Launch::running->warp_wide(operation, site, &arguments, [operation](Warp& warp) {
    for (unsigned l = 0; l < kWarpSize; l++) {
      Arguments& to = *static_cast<Arguments*>(warp.lanes[l]->arguments);
      const unsigned from =
          operation == WarpOperation::shuffle ? to.selector % kWarpSize : l ^ static_cast<unsigned>(to.selector);
      if (from < kWarpSize) to.result = static_cast<Arguments*>(warp.lanes[from]->arguments)->value;
    }
    Launch::running->report.counters.shuffles++;
  });
  return arguments.result;
}

// Reads an element of a matrix for the lane that gets it, and that must be allowed to read it: not the lane that gave
// the address.
uint32_t receive_element(size_t offset, const Thread& receiver, const Site& site) {
  Launch& launch = *Launch::running;
  const Conflict conflict =
      launch.shared.read(offset, 2, launch.now(receiver), &launch.report.counters.uninitialised_reads);
  check_race(conflict, offset, site, receiver);
  uint16_t element;
  std::memcpy(&element, launch.shared.data(offset), sizeof(element));
  return element;
}

// Where the eight rows of matrix i lie, by the addresses that the lanes have given.
template <class Arguments>
void find_rows(const Warp& warp, int i, const char* what, const Site& site, size_t (&rows)[8]) {
  // Eight rows of 16 bytes fill the 128 bytes of all banks once, unless two distinct ones want the same banks.
  unsigned wanted[8] = {};
  unsigned passes = 1;
  for (int j = 0; j < 8; j++) {
    const Thread& lane = *warp.lanes[8 * i + j];
    rows[j] = checked_offset(static_cast<Arguments*>(lane.arguments)->row, 16, what, site, lane);
    if (std::find(rows, rows + j, rows[j]) == rows + j) passes = std::max(passes, ++wanted[rows[j] / 16 % 8]);
  }
  Launch::running->report.counters.ldmatrix_bank_conflicts += passes - 1;
}

template <int kMatrices>
void load_matrices(uint32_t (&r)[kMatrices], const void* row, bool transposed, const Site& site) {
  struct Arguments {
    uint32_t* r;
    const void* row;
  } arguments{r, row};
  constexpr bool kFour = kMatrices == 4;
  const WarpOperation operation = transposed
                                      ? (kFour ? WarpOperation::ldmatrix_x4_trans : WarpOperation::ldmatrix_x2_trans)
                                      : (kFour ? WarpOperation::ldmatrix_x4 : WarpOperation::ldmatrix_x2);
  Launch::running->warp_wide(operation, site, &arguments, [transposed, &site](Warp& warp) {
    for (int i = 0; i < kMatrices; i++) {
      size_t rows[8];
      find_rows<Arguments>(warp, i, "a row of ldmatrix", site, rows);
      for (unsigned l = 0; l < kWarpSize; l++) {
        const unsigned g = l / 4;
        const unsigned t = 2 * (l % 4);
        const Thread& lane = *warp.lanes[l];
        const size_t low = transposed ? rows[t] + 2 * g : rows[g] + 2 * t;
        const size_t high = transposed ? rows[t + 1] + 2 * g : rows[g] + 2 * t + 2;
        static_cast<Arguments*>(lane.arguments)->r[i] =
            receive_element(low, lane, site) | receive_element(high, lane, site) << 16;
      }
    }
    Launch::running->report.counters.ldmatrix++;
  });
}

// The other way: each lane writes its two elements of a row, and must be allowed to.
template <int kMatrices>
void store_matrices(const void* row, const uint32_t (&r)[kMatrices], const Site& site) {
  struct Arguments {
    const uint32_t* r;
    const void* row;
  } arguments{r, row};
  constexpr WarpOperation operation = kMatrices == 4   ? WarpOperation::stmatrix_x4
                                      : kMatrices == 2 ? WarpOperation::stmatrix_x2
                                                       : WarpOperation::stmatrix_x1;
  Launch::running->warp_wide(operation, site, &arguments, [&site](Warp& warp) {
    Launch& launch = *Launch::running;
    for (int i = 0; i < kMatrices; i++) {
      size_t rows[8];
      find_rows<Arguments>(warp, i, "a row of stmatrix", site, rows);
      for (unsigned l = 0; l < kWarpSize; l++) {
        const Thread& lane = *warp.lanes[l];
        const size_t offset = rows[l / 4] + 4 * (l % 4);
        check_race(launch.shared.write(offset, 4, launch.now(lane)), offset, site, lane);
        std::memcpy(launch.shared.data(offset), &static_cast<Arguments*>(lane.arguments)->r[i], 4);
      }
    }
    launch.report.counters.stmatrix++;
  });
}

// A product of matrices. place(register, row, half, t): puts what lane t of a row's four has in a register where it
// stands in that half of the row.
template <int kDepth, class Register, class Place>
void multiply(WarpOperation operation, float (&d)[4], const Register (&a)[4], Register b0, Register b1,
              const Place& place, const Site& site) {
  struct Arguments {
    float* d;
    const Register* a;
    Register b[2];
  } arguments{d, a, {b0, b1}};
  Launch::running->warp_wide(operation, site, &arguments, [&place](Warp& warp) {
    float left[16][kDepth];
    float right[8][kDepth];  // transposed
    float sums[16][8];
    for (int l = 0; l < static_cast<int>(kWarpSize); l++) {
      const Arguments& lane = *static_cast<Arguments*>(warp.lanes[l]->arguments);
      const int g = l / 4;
      const int t = l % 4;
      // Register i of a holds rows g and g + 8 in turn, and halves of rows in pairs of registers.
      for (int i = 0; i < 4; i++) {
        place(lane.a[i], left[g + 8 * (i % 2)], i / 2, t);
        sums[g + 8 * (i / 2)][2 * t + i % 2] = lane.d[i];
      }
      for (int i = 0; i < 2; i++) place(lane.b[i], right[g], i, t);
    }
    multiply_accumulate(left, right, sums, Launch::running->options.math);
    for (int l = 0; l < static_cast<int>(kWarpSize); l++) {
      const Arguments& lane = *static_cast<Arguments*>(warp.lanes[l]->arguments);
      for (int i = 0; i < 4; i++) lane.d[i] = sums[l / 4 + 8 * (i / 2)][2 * (l % 4) + i % 2];
    }
    Launch::running->report.counters.mma++;
  });
}

}  // namespace

const void* to_load(const void* shared, size_t size, const Site& site) {
  Launch& launch = *Launch::running;
  const size_t offset = checked_offset(shared, size, "a load", site, *launch.current);
  Counters& counters = launch.report.counters;
  counters.shared_loads++;
  check_race(launch.shared.read(offset, size, launch.now(*launch.current), &counters.uninitialised_reads), offset, site,
             *launch.current);
  return launch.shared.data(offset);
}

void* to_store(void* shared, size_t size, const Site& site) {
  Launch& launch = *Launch::running;
  const size_t offset = checked_offset(shared, size, "a store", site, *launch.current);
  launch.report.counters.shared_stores++;
  check_race(launch.shared.write(offset, size, launch.now(*launch.current)), offset, site, *launch.current);
  return launch.shared.data(offset);
}

void count_load(const void* global, size_t size, const Site& site) {
  check_global(global, size, "a load", site);
  Launch::running->report.counters.global_loads++;
}

void count_store(const void* global, size_t size, const Site& site) {
  check_global(global, size, "a store", site);
  Launch::running->report.counters.global_stores++;
}

void wait_for_copies(size_t newest) {
  Launch& launch = *Launch::running;
  Thread& thread = *launch.current;
  size_t landed = 0;
  for (; thread.groups.size() > newest; thread.groups.pop_front()) landed += thread.groups.front();
  for (size_t i = 0; i < landed; i++) {
    if (launch.options.async_copies == AsyncCopies::latest) land(thread.copies[i]);
    launch.shared.end_copy(thread.copies[i].offset, 16, launch.now(thread));
  }
  thread.copies.erase(thread.copies.begin(), thread.copies.begin() + static_cast<std::ptrdiff_t>(landed));
  launch.report.counters.copy_waits++;
}

}  // namespace cusim

namespace swin_fast::cuda {

template <class T>
float to_float(uint16_t element) {
  return is_half<T> ? cusim::half_to_float(element) : cusim::bfloat16_to_float(element);
}

template <class T>
uint16_t from_float(float value) {
  return is_half<T> ? cusim::float_to_half(value) : cusim::float_to_bfloat16(value);
}

template <class T>
uint32_t pack(float low, float high) {
  return from_float<T>(low) | static_cast<uint32_t>(from_float<T>(high)) << 16;
}

template <class T>
Float2 unpack(uint32_t pair) {
  return {to_float<T>(static_cast<uint16_t>(pair)), to_float<T>(static_cast<uint16_t>(pair >> 16))};
}

char* shared_memory() { return cusim::Launch::running->shared.window(); }

void copy_async_16(void* shared, const void* global, bool valid, cusim::Site site) {
  cusim::Launch& launch = *cusim::Launch::running;
  cusim::Thread& thread = *launch.current;
  const size_t offset = cusim::checked_offset(shared, 16, "the target of a copy", site, thread);
  cusim::check_aligned(reinterpret_cast<uintptr_t>(global), 16, "the source of a copy", site, thread);
  if (valid) cusim::check_global(global, 16, "the source of a copy", site);
  cusim::check_race(launch.shared.begin_copy(offset, 16, launch.now(thread)), offset, site, thread);
  launch.report.counters.copies++;
  std::memset(launch.shared.data(offset), cusim::SharedMemory::kPoison, 16);
  thread.copies.push_back({offset, valid ? global : nullptr});
  thread.uncommitted++;
  if (launch.options.async_copies == cusim::AsyncCopies::earliest) cusim::land(thread.copies.back());
}

void copy_async_commit() {
  cusim::Thread& thread = *cusim::Launch::running->current;
  thread.groups.push_back(thread.uncommitted);
  thread.uncommitted = 0;
  cusim::Launch::running->report.counters.copy_commits++;
}

void sync_threads(cusim::Site site) { cusim::Launch::running->barrier(site); }

void sync_team(int team, int threads, cusim::Site site) {
  cusim::Launch::running->team_barrier(static_cast<unsigned>(team), static_cast<unsigned>(threads), site);
}

void sync_warp(cusim::Site site) {
  cusim::Launch::running->warp_wide(cusim::WarpOperation::barrier, site, nullptr, [](cusim::Warp& warp) {
    warp.epoch++;
    cusim::Launch::running->report.counters.warp_barriers++;
  });
}

float shuffle_xor(float value, int mask, cusim::Site site) {
  return cusim::exchange(cusim::WarpOperation::shuffle_xor, value, mask, site);
}

uint32_t shuffle_xor(uint32_t value, int mask, cusim::Site site) {
  return cusim::exchange(cusim::WarpOperation::shuffle_xor, value, mask, site);
}

float shuffle(float value, int lane, cusim::Site site) {
  return cusim::exchange(cusim::WarpOperation::shuffle, value, lane, site);
}

uint32_t shuffle(uint32_t value, int lane, cusim::Site site) {
  return cusim::exchange(cusim::WarpOperation::shuffle, value, lane, site);
}

bool any_lane(bool value, cusim::Site site) {
  bool vote = value;
  cusim::Launch::running->warp_wide(cusim::WarpOperation::vote, site, &vote, [](cusim::Warp& warp) {
    bool any = false;
    for (cusim::Thread* lane : warp.lanes) any |= *static_cast<bool*>(lane->arguments);
    for (cusim::Thread* lane : warp.lanes) *static_cast<bool*>(lane->arguments) = any;
    cusim::Launch::running->report.counters.votes++;
  });
  return vote;
}

void ldmatrix_x4(uint32_t (&r)[4], const void* row, cusim::Site site) { cusim::load_matrices(r, row, false, site); }

void ldmatrix_x4_trans(uint32_t (&r)[4], const void* row, cusim::Site site) {
  cusim::load_matrices(r, row, true, site);
}

void ldmatrix_x2(uint32_t (&r)[2], const void* row, cusim::Site site) { cusim::load_matrices(r, row, false, site); }

void ldmatrix_x2_trans(uint32_t (&r)[2], const void* row, cusim::Site site) {
  cusim::load_matrices(r, row, true, site);
}

template <int kMatrices>
void stmatrix(void* row, const uint32_t (&r)[kMatrices], cusim::Site site) {
  static_assert(kMatrices == 1 || kMatrices == 2 || kMatrices == 4, "what there is an instruction for");
  cusim::store_matrices(row, r, site);
}

template void stmatrix(void*, const uint32_t (&)[1], cusim::Site);
template void stmatrix(void*, const uint32_t (&)[2], cusim::Site);
template void stmatrix(void*, const uint32_t (&)[4], cusim::Site);

template <class T>
void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, cusim::Site site) {
  const auto operation = is_half<T> ? cusim::WarpOperation::mma_half : cusim::WarpOperation::mma_bfloat16;
  const auto place = [](uint32_t elements, float* row, int half, int t) {
    const Float2 pair = unpack<T>(elements);
    row[2 * t + 8 * half] = pair.x;
    row[2 * t + 8 * half + 1] = pair.y;
  };
  cusim::multiply<16>(operation, d, a, b0, b1, place, site);
}

template <class T>
void mma_m16n8k8(float (&d)[4], uint32_t a0, uint32_t a1, uint32_t b0, cusim::Site site) {
  mma_m16n8k16<T>(d, {a0, a1, 0, 0}, b0, 0, site);  // products of zeros, which change no sum
}

void mma_m16n8k8_tf32(float (&d)[4], const float (&a)[4], float b0, float b1, cusim::Site site) {
  const auto place = [](float value, float* row, int half, int t) { row[t + 4 * half] = cusim::cut_to_tf32(value); };
  cusim::multiply<8>(cusim::WarpOperation::mma_tf32, d, a, b0, b1, place, site);
}

float exp2_approx(float x) {
  cusim::Launch::running->report.counters.functions++;
  return cusim::exp2_model(x, cusim::Launch::running->options.math);
}

float exp2_approx_here(float x) { return exp2_approx(x); }

float rsqrt_approx(float x) {
  cusim::Launch::running->report.counters.functions++;
  return cusim::rsqrt_model(x, cusim::Launch::running->options.math);
}

float reciprocal_approx(float x) {
  cusim::Launch::running->report.counters.functions++;
  return cusim::reciprocal_model(x, cusim::Launch::running->options.math);
}

template float to_float<Half16>(uint16_t);
template uint16_t from_float<Half16>(float);
template uint32_t pack<Half16>(float, float);
template Float2 unpack<Half16>(uint32_t);
template void mma_m16n8k16<Half16>(float (&)[4], const uint32_t (&)[4], uint32_t, uint32_t, cusim::Site);
template void mma_m16n8k8<Half16>(float (&)[4], uint32_t, uint32_t, uint32_t, cusim::Site);

template float to_float<BFloat16>(uint16_t);
template uint16_t from_float<BFloat16>(float);
template uint32_t pack<BFloat16>(float, float);
template Float2 unpack<BFloat16>(uint32_t);
template void mma_m16n8k16<BFloat16>(float (&)[4], const uint32_t (&)[4], uint32_t, uint32_t, cusim::Site);
template void mma_m16n8k8<BFloat16>(float (&)[4], uint32_t, uint32_t, uint32_t, cusim::Site);

}  // namespace swin_fast::cuda
