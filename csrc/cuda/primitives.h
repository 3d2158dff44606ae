// SPDX-License-Identifier: Apache-2.0
//
// Everything that the CUDA kernels ask of the device. nvcc compiles it to one PTX instruction each, or a few; with
// SWIN_FAST_CUSIM defined, g++ compiles the same kernels against the emulator of tests/cusim instead, which executes
// them on the CPU and checks every access. Kernels use nothing else but threadIdx.x, blockIdx.x, blockDim.x,
// gridDim.x, __global__, __launch_bounds__ and csrc/window.h, or the emulator would not see what they do.
//
// All collectives (mma, ldmatrix, shuffles, votes, sync_warp) are for whole warps. Of them only sync_warp() orders
// memory; ldmatrix and mma do not. Needs compute capability 8.0.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

#ifdef SWIN_FAST_CUSIM
#define SWIN_FAST_DEVICE inline
#define SWIN_FAST_UNROLL  // gcc would warn about the pragma
#define SWIN_FAST_UNROLL_2
#define SWIN_FAST_UNROLL_4
#define SWIN_FAST_NO_UNROLL
#else
#define SWIN_FAST_DEVICE __device__ __forceinline__
#define SWIN_FAST_UNROLL _Pragma("unroll")
#define SWIN_FAST_UNROLL_2 _Pragma("unroll 2")
#define SWIN_FAST_UNROLL_4 _Pragma("unroll 4")
#define SWIN_FAST_NO_UNROLL _Pragma("unroll 1")
#endif

namespace swin_fast::cuda {

// The element types, as tags. Elements of 16 bits are uint16_t, and two of them, the lower one first, uint32_t.
struct Half16 {};
struct BFloat16 {};
struct Float32 {};

template <class T>
constexpr bool is_half = std::is_same<T, Half16>::value;

template <class T>
constexpr bool is_float = std::is_same<T, Float32>::value;

template <class T>  // of 16 bits
constexpr bool is_element = is_half<T> || std::is_same<T, BFloat16>::value;

template <class T>
constexpr int kElementBytes = is_float<T> ? 4 : 2;

struct alignas(8) Float2 {
  float x, y;
};

struct alignas(16) Float4 {
  float x, y, z, w;
};

struct alignas(8) UInt2 {
  uint32_t x, y;
};

struct alignas(16) UInt4 {
  uint32_t x, y, z, w;
};

}  // namespace swin_fast::cuda

#ifdef SWIN_FAST_CUSIM
#include "cusim/emulated_primitives.h"
#else

namespace swin_fast::cuda {

// ---------------------------------------------------------------------------------------------------------------------
// Conversions. To 16 bits they round to nearest even and make every NaN 0x7fff.

template <class T>
SWIN_FAST_DEVICE uint32_t pack(float low, float high) {
  static_assert(is_element<T>, "T is Half16 or BFloat16");
  uint32_t pair;
  if constexpr (is_half<T>) {
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  } else {
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  }
  return pair;
}

template <class T>
SWIN_FAST_DEVICE float to_float(uint16_t element) {
  static_assert(is_element<T>, "T is Half16 or BFloat16");
  if constexpr (is_half<T>) {
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(element));
    return value;
  } else {
    return __uint_as_float(static_cast<uint32_t>(element) << 16);
  }
}

template <class T>
SWIN_FAST_DEVICE uint16_t from_float(float value) {
  static_assert(is_element<T>, "T is Half16 or BFloat16");
  uint16_t element;
  if constexpr (is_half<T>) {
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(element) : "f"(value));
  } else {
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(element) : "f"(value));
  }
  return element;
}

template <class T>
SWIN_FAST_DEVICE Float2 unpack(uint32_t pair) {
  return {to_float<T>(static_cast<uint16_t>(pair & 0xffffu)), to_float<T>(static_cast<uint16_t>(pair >> 16))};
}

// ---------------------------------------------------------------------------------------------------------------------
// Memory. Addresses are multiples of the size of V, which is 2, 4, 8 or 16 bytes: one instruction. (A memcpy from or to
// the address would become one for each byte: nvcc does not believe __builtin_assume_aligned.)

// The dynamic shared memory of the block.
SWIN_FAST_DEVICE char* shared_memory() {
  extern __shared__ __align__(128) char swin_fast_shared_memory[];
  return swin_fast_shared_memory;
}

SWIN_FAST_DEVICE uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// The one register type of a size: what an access moves in one instruction.
template <size_t kBytes>
struct Word {};
template <>
struct Word<2> {
  using Type = unsigned short;
};
template <>
struct Word<4> {
  using Type = unsigned;
};
template <>
struct Word<8> {
  using Type = uint2;
};
template <>
struct Word<16> {
  using Type = uint4;
};

template <class V>
SWIN_FAST_DEVICE V from_word(typename Word<sizeof(V)>::Type word) {
  V value;
  __builtin_memcpy(&value, &word, sizeof(V));
  return value;
}

template <class V>
SWIN_FAST_DEVICE typename Word<sizeof(V)>::Type to_word(V value) {
  typename Word<sizeof(V)>::Type word;
  __builtin_memcpy(&word, &value, sizeof(V));
  return word;
}

template <class V>
SWIN_FAST_DEVICE V load_shared(const void* shared) {
  return from_word<V>(*static_cast<const typename Word<sizeof(V)>::Type*>(shared));
}

template <class V>
SWIN_FAST_DEVICE void store_shared(void* shared, V value) {
  *static_cast<typename Word<sizeof(V)>::Type*>(shared) = to_word(value);
}

// Reads what no thread of this launch writes: the load may be served by the read-only cache.
template <class V>
SWIN_FAST_DEVICE V load_global(const void* global) {
  return from_word<V>(__ldg(static_cast<const typename Word<sizeof(V)>::Type*>(global)));
}

template <class V>
SWIN_FAST_DEVICE void store_global(void* global, V value) {
  const auto word = to_word(value);
  if constexpr (sizeof(V) == 16) {  // of an assignment nvcc has made four stores of 4 bytes
    asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(global)), "r"(word.x),
                 "r"(word.y), "r"(word.z), "r"(word.w)
                 : "memory");
  } else {
    *static_cast<typename Word<sizeof(V)>::Type*>(global) = word;
  }
}

// Begins to copy 16 bytes, or to write 16 zero bytes where not `valid`; `global` is then not read. Neither this thread
// nor any other may touch the 16 bytes before this thread's copy_async_wait(), and others not before a barrier more.
SWIN_FAST_DEVICE void copy_async_16(void* shared, const void* global, bool valid) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)), "l"(global),
               "r"(valid ? 16 : 0)
               : "memory");
}

// Closes the group of all copies begun since the last call, also an empty one.
SWIN_FAST_DEVICE void copy_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until all but the last kNewest groups of this thread have landed.
template <int kNewest>
SWIN_FAST_DEVICE void copy_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kNewest) : "memory");
}

// ---------------------------------------------------------------------------------------------------------------------
// Barriers and exchange within a warp

SWIN_FAST_DEVICE void sync_threads() { __syncthreads(); }
SWIN_FAST_DEVICE void sync_warp() { __syncwarp(); }

// A barrier of a team: threads team * threads to (team + 1) * threads - 1 of the block, whole warps. At most 15 teams,
// and all of a kernel's are of one size.
SWIN_FAST_DEVICE void sync_team(int team, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(team + 1), "r"(threads) : "memory");
}

SWIN_FAST_DEVICE float shuffle_xor(float value, int mask) { return __shfl_xor_sync(0xffffffffu, value, mask); }
SWIN_FAST_DEVICE uint32_t shuffle_xor(uint32_t value, int mask) { return __shfl_xor_sync(0xffffffffu, value, mask); }
SWIN_FAST_DEVICE float shuffle(float value, int lane) { return __shfl_sync(0xffffffffu, value, lane); }
SWIN_FAST_DEVICE uint32_t shuffle(uint32_t value, int lane) { return __shfl_sync(0xffffffffu, value, lane); }
SWIN_FAST_DEVICE bool any_lane(bool value) { return __any_sync(0xffffffffu, value) != 0; }

// ---------------------------------------------------------------------------------------------------------------------
// Matrices. Lane l reads 8 x 8 matrix i into r[i]: of its row l / 4 the elements 2 * (l % 4) and the next, or of the
// transposed matrix. Row j of matrix i is the 16 bytes at the address that lane 8 * i + j gives, a multiple of 16.

SWIN_FAST_DEVICE void ldmatrix_x4(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}

SWIN_FAST_DEVICE void ldmatrix_x4_trans(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}

// Two matrices, at the addresses of lanes 0 to 15; those of the other lanes are not used.
SWIN_FAST_DEVICE void ldmatrix_x2(uint32_t (&r)[2], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(shared_address(row))
               : "memory");
}

SWIN_FAST_DEVICE void ldmatrix_x2_trans(uint32_t (&r)[2], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(shared_address(row))
               : "memory");
}

// The way back: lane l writes r[i] to matrix i as it would read it, one, two or four of them; row j of matrix i is at
// the address that lane 8 * i + j gives, those of the lanes behind are not used. Before sm_90 each lane asks for the
// address of its row and writes its four bytes.
template <int kMatrices>
SWIN_FAST_DEVICE void stmatrix(void* row, const uint32_t (&r)[kMatrices]) {
  static_assert(kMatrices == 1 || kMatrices == 2 || kMatrices == 4, "what there is an instruction for");
  const uint32_t address = shared_address(row);
#if __CUDA_ARCH__ >= 900
  if constexpr (kMatrices == 1) {
    asm volatile("stmatrix.sync.aligned.m8n8.x1.shared.b16 [%0], {%1};" ::"r"(address), "r"(r[0]) : "memory");
  } else if constexpr (kMatrices == 2) {
    asm volatile("stmatrix.sync.aligned.m8n8.x2.shared.b16 [%0], {%1, %2};" ::"r"(address), "r"(r[0]), "r"(r[1])
                 : "memory");
  } else {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(r[0]),
                 "r"(r[1]), "r"(r[2]), "r"(r[3])
                 : "memory");
  }
#else
  const uint32_t lane = threadIdx.x & 31;
  SWIN_FAST_UNROLL
  for (int i = 0; i < kMatrices; ++i) {
    const uint32_t to = shuffle(address, 8 * i + static_cast<int>(lane / 4)) + lane % 4 * 4;
    asm volatile("st.shared.b32 [%0], %1;" ::"r"(to), "r"(r[i]) : "memory");
  }
#endif
}

// Computes  d += a @ b  for a of 16 x 16, b of 16 x 8 and d of 16 x 8. With g = lane / 4 and t = 2 * (lane % 4), and
// pairs of neighbours: a[0] = a(g, t), a[1] = a(g + 8, t), a[2] = a(g, t + 8), a[3] = a(g + 8, t + 8);
// b0 = b(t, g), b(t + 1, g), b1 = b(t + 8, g), b(t + 9, g); d[0], d[1] = d(g, t), and d[2], d[3] = d(g + 8, t).
// volatile, although it only computes: the compiler must not move it to where some lanes of the warp do not go.
template <class T>
SWIN_FAST_DEVICE void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  static_assert(is_element<T>, "T is Half16 or BFloat16");
  if constexpr (is_half<T>) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  } else {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
}

// The same for a of 16 x 8 and b of 8 x 8: half of the registers of a, and b0.
template <class T>
SWIN_FAST_DEVICE void mma_m16n8k8(float (&d)[4], uint32_t a0, uint32_t a1, uint32_t b0) {
  static_assert(is_element<T>, "T is Half16 or BFloat16");
  if constexpr (is_half<T>) {
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a0), "r"(a1), "r"(b0));
  } else {
    asm volatile(
        "mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a0), "r"(a1), "r"(b0));
  }
}

// The same of numbers of float32, for a of 16 x 8 and b of 8 x 8, of which the product knows 11 significant bits: the
// lowest 13 of each register are not looked at. With g = lane / 4 and t = lane % 4: a[0] = a(g, t), a[1] = a(g + 8, t),
// a[2] = a(g, t + 4), a[3] = a(g + 8, t + 4); b0 = b(t, g), b1 = b(t + 4, g); d as above.
SWIN_FAST_DEVICE void mma_m16n8k8_tf32(float (&d)[4], const float (&a)[4], float b0, float b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(__float_as_uint(a[0])), "r"(__float_as_uint(a[1])), "r"(__float_as_uint(a[2])), "r"(__float_as_uint(a[3])),
        "r"(__float_as_uint(b0)), "r"(__float_as_uint(b1)));
}

// ---------------------------------------------------------------------------------------------------------------------
// Fast functions. They take subnormal arguments for 0 and give 0 for subnormal results.

// Computes  2^x  to 2 ulp.
SWIN_FAST_DEVICE float exp2_approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// The same where it stands: the compiler does not move it behind the next product.
SWIN_FAST_DEVICE float exp2_approx_here(float x) {
  float y;
  asm volatile("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// Computes  1 / sqrt(x)  to 2 ulp.
SWIN_FAST_DEVICE float rsqrt_approx(float x) {
  float y;
  asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// Computes  1 / x  to 1 ulp.
SWIN_FAST_DEVICE float reciprocal_approx(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

}  // namespace swin_fast::cuda

#endif  // SWIN_FAST_CUSIM
