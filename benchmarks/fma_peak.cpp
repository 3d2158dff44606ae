// SPDX-License-Identifier: Apache-2.0
// Computes: floating point operations per second of fused multiply-adds that wait for nothing: the peak of one core.
// Grid:     one thread.
// Memory:   none, registers alone.
// Numerics: acc = acc * a + b in float32, or pairs of bfloat16 products added to float32 where the CPU has them; the
//           values stay near 1.
// Source:   latency (4 cycles) times pipes (2) is 8 on the cores of today: 12 chains are enough.
//
// Built by benchmarks/ceilings.py with -O3 -march=native: it runs on the machine that it was built on.
#include <ctime>
#if defined(__AVX512BF16__)
#include <immintrin.h>
#endif

namespace {

#if defined(__AVX512F__)
constexpr int kBytes = 64;
#elif defined(__AVX__)
constexpr int kBytes = 32;
#else
constexpr int kBytes = 16;
#endif
typedef float Vector __attribute__((vector_size(kBytes)));
constexpr int kLanes = kBytes / 4, kChains = 12;

// Twelve names and no array: an array would lie in memory.
#define EACH_CHAIN(DO) DO(c0) DO(c1) DO(c2) DO(c3) DO(c4) DO(c5) DO(c6) DO(c7) DO(c8) DO(c9) DO(c10) DO(c11)
// Nobody reads the results: this keeps the compiler from leaving the work out.
#if defined(__x86_64__)
#define KEEP(c) asm volatile("" : "+v"(c));
#else
#define KEEP(c) asm volatile("" : "+w"(c));
#endif

double cpu_seconds() {
  timespec now;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

}  // namespace

extern "C" double fma_fp32(long rounds) {
  Vector half;
  for (int lane = 0; lane < kLanes; ++lane) half[lane] = 0.5f;
#define START(c) Vector c = half;
#define STEP(c) c = c * half + half;
  EACH_CHAIN(START)
  const double start = cpu_seconds();
  for (long i = 0; i < rounds; ++i) {
    EACH_CHAIN(STEP)
    EACH_CHAIN(KEEP)
  }
  return 2.0 * kLanes * kChains * static_cast<double>(rounds) / (cpu_seconds() - start);
#undef START
#undef STEP
}

// 0 where the CPU has no such instruction.
extern "C" double fma_bf16(long rounds) {
#if defined(__AVX512BF16__)
  const __m512bh ones = _mm512_cvtne2ps_pbh(_mm512_set1_ps(1.0f), _mm512_set1_ps(1.0f));
#define START(c) __m512 c = _mm512_setzero_ps();
#define STEP(c) c = _mm512_dpbf16_ps(c, ones, ones);
  EACH_CHAIN(START)
  const double start = cpu_seconds();
  for (long i = 0; i < rounds; ++i) {
    EACH_CHAIN(STEP)
    EACH_CHAIN(KEEP)
  }
  return 4.0 * 16 * kChains * static_cast<double>(rounds) / (cpu_seconds() - start);
#else
  (void)rounds;
  return 0.0;
#endif
}
