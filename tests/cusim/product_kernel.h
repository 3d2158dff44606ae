// SPDX-License-Identifier: Apache-2.0
//
// A kernel with everything in it, to try the emulator on; nvcc compiles it too. Tiles of a product arrive by copies in
// two buffers in turn, and the result is turned over in shared memory. Block b computes, from its own a and b,
//   out[n][m] = sum_k a[k][m] * b[k][n]  for 64 m and 32 n,  and  sums[m] = sum_n out[n][m].
#pragma once

#include <cstdint>

#include "../../csrc/cuda/primitives.h"

namespace cusim_test {

using namespace swin_fast::cuda;  // NOLINT: the kernel is written as real ones are

enum class Mistake { none, no_barrier_after_wait, no_barrier_before_reuse, wait_too_weak, no_barrier_before_output };

constexpr int kM = 64, kN = 32, kK = 64, kStep = 16;
constexpr int kTileA = kStep * kM * 2, kTile = kTileA + kStep * kN * 2;  // bytes
constexpr int kOutputRow = 4 * (kM + 4);

template <class T, Mistake kMistake>
__global__ void __launch_bounds__(128) product(const uint16_t* a, const uint16_t* b, float* out, float* sums) {
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, warp = thread / 32;
  const int g = lane / 4, t = 2 * (lane % 4);
  char* memory = shared_memory();
  a += blockIdx.x * kK * kM;
  b += blockIdx.x * kK * kN;
  out += blockIdx.x * kN * kM;
  sums += blockIdx.x * kM;
  // Chunks of 16 bytes, so permuted that 8 rows of one column of chunks lie in different banks.
  const auto at_a = [](int k, int chunk) { return k * 128 + 16 * (chunk ^ (k & 7)); };
  const auto at_b = [](int k, int chunk) { return kTileA + k * 64 + 16 * (chunk ^ (k >> 1 & 3)); };
  const auto fetch = [&](int step) {
    char* tile = memory + step % 2 * kTile;
    const int k = thread / 8;
    copy_async_16(tile + at_a(k, thread % 8), a + (step * kStep + k) * kM + thread % 8 * 8, true);
    if (thread < 64) {
      copy_async_16(tile + at_b(thread / 4, thread % 4), b + (step * kStep + thread / 4) * kN + thread % 4 * 8, true);
    }
    copy_async_commit();
  };

  float d[4][4] = {};
  fetch(0);
  SWIN_FAST_UNROLL
  for (int step = 0; step < kK / kStep; step++) {
    if (step + 1 < kK / kStep) {
      fetch(step + 1);
      copy_async_wait<1>();
    } else {
      copy_async_wait<kMistake == Mistake::wait_too_weak ? 1 : 0>();
    }
    if (kMistake != Mistake::no_barrier_after_wait) sync_threads();
    const char* tile = memory + step % 2 * kTile;
    uint32_t a_registers[4], b_registers[4];
    ldmatrix_x4_trans(a_registers, tile + at_a((lane & 7) + (lane >> 4) * 8, 2 * warp + (lane >> 3 & 1)));
    for (int n = 0; n < 4; n += 2) {
      ldmatrix_x4_trans(b_registers, tile + at_b(lane & 15, n + (lane >> 4)));
      mma_m16n8k16<T>(d[n], a_registers, b_registers[0], b_registers[1]);
      mma_m16n8k16<T>(d[n + 1], a_registers, b_registers[2], b_registers[3]);
    }
    if (kMistake != Mistake::no_barrier_before_reuse) sync_threads();
  }

  for (int half = 0; half < 2; half++) {
    float sum = 0.f;
    for (int n = 0; n < 4; n++) sum += d[n][2 * half] + d[n][2 * half + 1];
    sum += shuffle_xor(sum, 1);
    sum += shuffle_xor(sum, 2);
    if (lane % 4 == 0) store_global(sums + 16 * warp + 8 * half + g, sum);
  }
  for (int n = 0; n < 4; n++) {
    for (int e = 0; e < 4; e++) {
      store_shared(memory + (8 * n + t + e % 2) * kOutputRow + 4 * (16 * warp + g + 8 * (e / 2)), d[n][e]);
    }
  }
  if (kMistake != Mistake::no_barrier_before_output) sync_threads();
  for (int i = thread; i < kN * kM / 4; i += static_cast<int>(blockDim.x)) {
    store_global(out + 4 * i, load_shared<Float4>(memory + i / 16 * kOutputRow + i % 16 * 16));
  }
}

}  // namespace cusim_test
