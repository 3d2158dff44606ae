// SPDX-License-Identifier: Apache-2.0
//
// Tests of the emulator: little kernels with one mistake each, which must be noticed and named.
#pragma once

#include <cstdint>

#include "checks.h"

namespace cusim_test {

using namespace swin_fast::cuda;  // NOLINT: the kernels are written as real ones are

inline void test_races() {
  alignas(16) static const uint32_t source[4 * 64] = {};
  const auto mine = [] { return shared_memory() + 16 * threadIdx.x; };
  const auto next = [] { return shared_memory() + 16 * (threadIdx.x ^ 1); };
  mistake(FaultKind::race, "no barrier between writing and reading by another warp", [&] {
    store_shared(mine(), 1.f);
    sync_warp();
    load_shared<float>(shared_memory() + 16 * (threadIdx.x ^ 32));
  });
  mistake(FaultKind::race, "no sync_warp between copy_async_wait and another lane's read", [&] {
    copy_async_16(mine(), source + 4 * threadIdx.x, true);
    copy_async_commit();
    copy_async_wait<0>();
    load_shared<uint32_t>(next());
  });
  mistake(FaultKind::race, "store, then ldmatrix without sync_warp", [&] {
    store_shared(mine(), UInt4{});
    uint32_t r[4];
    ldmatrix_x4(r, mine());
  });
  mistake(FaultKind::race, "a shuffle and a vote taken for a barrier", [&] {
    store_shared(mine(), 1.f);
    any_lane(shuffle(1.f, 0) == 1.f);
    load_shared<float>(next());
  });
  mistake(FaultKind::race, "stmatrix, then load without sync_warp", [&] {
    stmatrix(shared_memory() + 512 * (threadIdx.x / 32) + threadIdx.x % 32 * 16, {1, 2, 3, 4});
    load_shared<uint32_t>(shared_memory() + 512 * (threadIdx.x / 32) + (threadIdx.x + 1) % 32 * 16);
  });
  mistake(FaultKind::race, "ldmatrix taken for a barrier before its rows are written again", [&] {
    store_shared(mine(), UInt4{});
    sync_warp();
    uint32_t r[4];
    ldmatrix_x4(r, mine());
    store_shared(mine(), UInt4{});
  });
  mistake(FaultKind::race, "written for the next iteration while others still read", [&] {
    for (int i = 0; i < 3; i++) {
      if (threadIdx.x == 0) store_shared(shared_memory(), i);
      sync_threads();
      load_shared<int>(shared_memory());
    }
  });
  mistake(FaultKind::race, "written after another warp has read", [&] {
    if (threadIdx.x == 32) load_shared<float>(shared_memory());
    if (threadIdx.x < 32) sync_warp();
    if (threadIdx.x == 0) store_shared(shared_memory(), 1.f);
  });
  mistake(FaultKind::race, "written by the last lane to read", [&] {
    if (threadIdx.x < 32) load_shared<float>(shared_memory());
    if (threadIdx.x == 31) store_shared(shared_memory(), 1.f);
  });
  mistake(FaultKind::race, "written after both warps have read, with a barrier of the writer's warp only", [&] {
    load_shared<float>(shared_memory());
    sync_warp();
    if (threadIdx.x == 0) store_shared(shared_memory(), 1.f);
  });
  mistake(FaultKind::race, "a team's barrier between writing and reading by another team", [&] {
    store_shared(mine(), 1.f);
    sync_team(static_cast<int>(threadIdx.x / 32), 32);
    load_shared<float>(shared_memory() + 16 * (threadIdx.x ^ 32));
  });
  mistake(FaultKind::race, "written after another team has read, and the writer's own team before", [&] {
    load_shared<float>(shared_memory());
    sync_team(static_cast<int>(threadIdx.x / 32), 32);
    if (threadIdx.x == 0) store_shared(shared_memory(), 1.f);
  });
  mistake(FaultKind::race, "two threads write the same word", [&] { store_shared(shared_memory(), 1.f); });
  mistake(FaultKind::race, "words that overlap", [&] {
    if (threadIdx.x == 3) store_shared(shared_memory(), uint32_t{1});
    if (threadIdx.x == 4) store_shared(shared_memory() + 2, uint16_t{1});
  });
  mistake(FaultKind::race, "reading what is being copied, without a wait", [&] {
    copy_async_16(mine(), source + 4 * threadIdx.x, true);
    copy_async_commit();
    load_shared<uint32_t>(mine());
  });
  mistake(FaultKind::race, "writing where a copy of the same thread may land later", [&] {
    copy_async_16(mine(), source + 4 * threadIdx.x, true);
    copy_async_commit();
    store_shared(mine(), 1.f);
  });
  mistake(FaultKind::race, "two copies to one place", [&] {
    copy_async_16(mine(), source, true);
    copy_async_16(mine(), source, false);
  });
  mistake(FaultKind::race, "waiting for copies that were not committed", [&] {
    copy_async_16(mine(), source + 4 * threadIdx.x, true);
    copy_async_wait<0>();
    load_shared<uint32_t>(mine());
  });
  mistake(FaultKind::race, "copying over what another lane still reads", [&] {
    store_shared(mine(), UInt4{});
    sync_threads();
    load_shared<uint32_t>(next());
    copy_async_16(mine(), source, true);
    copy_async_commit();
    copy_async_wait<0>();
  });
}

inline void test_collectives() {
  mistake(FaultKind::divergence, "the lanes of a warp at two shuffles", [] {
    if (threadIdx.x % 2 == 0) {
      shuffle_xor(1.f, 2);
    } else {
      shuffle_xor(1.f, 2);
    }
  });
  mistake(FaultKind::divergence, "two kinds of collectives, on one line",
          [] { threadIdx.x < 16 ? shuffle_xor(1.f, 1) : shuffle(1.f, 0); });
  mistake(FaultKind::divergence, "a lane has ended before a collective", [] {
    if (threadIdx.x == 37) return;
    float d[4] = {};
    const uint32_t a[4] = {};
    mma_m16n8k16<Half16>(d, a, 0, 0);
  });
  mistake(FaultKind::divergence, "a lane waits at the barrier, the others at a vote", [] {
    if (threadIdx.x != 5) any_lane(true);
    sync_threads();
  });
  mistake(FaultKind::divergence, "warps at two barriers", [] {
    if (threadIdx.x < 32) {
      sync_threads();
    } else {
      sync_threads();
    }
  });
  mistake(FaultKind::divergence, "the barrier of another team", [] { sync_team(0, 32); });
  mistake(FaultKind::divergence, "teams of two sizes", [] {
    sync_team(static_cast<int>(threadIdx.x / 32), 32);
    sync_team(0, 64);
  });
  mistake(FaultKind::divergence, "a team at two barriers", [] {
    if (threadIdx.x < 32) {
      sync_team(0, 64);
    } else {
      sync_team(0, 64);
    }
  });
  mistake(FaultKind::deadlock, "a warp of a team waits for the block", [] {
    if (threadIdx.x < 32) {
      sync_team(0, 64);
    } else {
      sync_threads();
    }
  });
  mistake(FaultKind::deadlock, "a thread never reaches the barrier", [] {
    if (threadIdx.x == 63) return;
    sync_threads();
  });
  mistake(FaultKind::deadlock, "a warp passes one barrier less", [] {
    for (unsigned i = 0; i < 2 + threadIdx.x / 32; i++) sync_threads();
  });
}

inline void test_addresses() {
  alignas(16) static uint16_t global[4096] = {};
  mistake(FaultKind::out_of_shared_memory, "reading past the end",
          [] { load_shared<float>(shared_memory() + 2048 + 4 * threadIdx.x - 4); });
  mistake(FaultKind::out_of_shared_memory, "a wide access half past the end", [] {
    if (threadIdx.x == 9) store_shared(shared_memory() + 2040, Float4{});
  });
  mistake(FaultKind::out_of_shared_memory, "writing below the beginning", [] {
    if (threadIdx.x == 9) store_shared(shared_memory() - 4, 1.f);
  });
  mistake(FaultKind::out_of_shared_memory, "a row of ldmatrix past the end", [] {
    uint32_t r[4];
    ldmatrix_x4(r, shared_memory() + 1552 + threadIdx.x % 32 * 16);
  });
  mistake(FaultKind::out_of_shared_memory, "a row of stmatrix past the end", [] {
    const uint32_t r[2] = {};
    stmatrix(shared_memory() + 1808 + threadIdx.x % 32 * 16, r);
  });
  mistake(FaultKind::out_of_shared_memory, "an address of global memory", [] { load_shared<float>(global); });
  mistake(FaultKind::red_zone, "a plain store below the beginning", [] {
    if (threadIdx.x == 9) shared_memory()[-4] = 1;
  });
  mistake(FaultKind::red_zone, "a plain store past the end", [] {
    if (threadIdx.x == 9) shared_memory()[2050] = 1;
  });
  mistake(FaultKind::red_zone, "a plain store where there should be store_shared", [] {
    if (threadIdx.x == 9) shared_memory()[100] = 1;
  });
  mistake(FaultKind::misaligned, "a row of ldmatrix", [] {
    uint32_t r[4];
    ldmatrix_x4(r, shared_memory() + 8 * threadIdx.x);
  });
  const auto copy = [](char* to, const void* from) {
    copy_async_16(to, from, true);
    copy_async_commit();
    copy_async_wait<0>();
  };
  mistake(FaultKind::misaligned, "the target of a copy",
          [&] { copy(shared_memory() + 16 * threadIdx.x + (threadIdx.x == 63 ? 8 : 0), global); });
  mistake(FaultKind::misaligned, "the source of a copy",
          [&] { copy(shared_memory() + 16 * threadIdx.x, global + (threadIdx.x == 63 ? 4 : 0)); });
  mistake(FaultKind::misaligned, "a load of shared memory", [] { load_shared<Float2>(shared_memory() + 4); });
  mistake(FaultKind::misaligned, "a load of global memory", [] { load_global<Float4>(global + 4); });
  mistake(FaultKind::misaligned, "a store to global memory", [] { store_global(global + 1, 1.f); });
  expect(FaultKind::out_of_global_memory, "a load past the end", [](Options options) {
    options.global = {{global, 64}};
    return cusim::launch(options, 1, 32, 0, [] { load_global<uint16_t>(global + 1 + threadIdx.x); });
  });
  mistake(FaultKind::pending_copy_at_exit, "a committed copy", [] {
    copy_async_16(shared_memory() + 16 * threadIdx.x, global, true);
    copy_async_commit();
  });
  mistake(FaultKind::pending_copy_at_exit, "a copy that was never committed", [] {
    copy_async_16(shared_memory() + 16 * threadIdx.x, global, true);
    copy_async_wait<0>();
  });
}

}  // namespace cusim_test
