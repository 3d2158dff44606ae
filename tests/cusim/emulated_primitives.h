// SPDX-License-Identifier: Apache-2.0
//
// The primitives of csrc/cuda/primitives.h for the emulator; included by it, and described there. Those of the element
// types T are there for Half16 and BFloat16.
#pragma once

#include <cstdint>
#include <cstring>

#include "cusim.h"

namespace cusim {

// The call site of a primitive: its last argument, which no kernel gives.
#define CUSIM_SITE ::cusim::Site site = {__builtin_FILE(), __builtin_LINE()}

// Where the data of an access to shared memory lie, after a check that it may be made.
const void* to_load(const void* shared, size_t size, const Site& site);
void* to_store(void* shared, size_t size, const Site& site);

// Checks an access to global memory.
void count_load(const void* global, size_t size, const Site& site);
void count_store(const void* global, size_t size, const Site& site);

void wait_for_copies(size_t newest);

}  // namespace cusim

namespace swin_fast::cuda {

template <class T>
float to_float(uint16_t element);

template <class T>
uint16_t from_float(float value);

template <class T>
uint32_t pack(float low, float high);

template <class T>
Float2 unpack(uint32_t pair);

char* shared_memory();

template <class V>
V load_shared(const void* shared, CUSIM_SITE) {
  V value;
  std::memcpy(&value, cusim::to_load(shared, sizeof(V), site), sizeof(V));
  return value;
}

template <class V>
void store_shared(void* shared, V value, CUSIM_SITE) {
  std::memcpy(cusim::to_store(shared, sizeof(V), site), &value, sizeof(V));
}

template <class V>
V load_global(const void* global, CUSIM_SITE) {
  cusim::count_load(global, sizeof(V), site);
  V value;
  std::memcpy(&value, global, sizeof(V));
  return value;
}

template <class V>
void store_global(void* global, V value, CUSIM_SITE) {
  cusim::count_store(global, sizeof(V), site);
  std::memcpy(global, &value, sizeof(V));
}

void copy_async_16(void* shared, const void* global, bool valid, CUSIM_SITE);

void copy_async_commit();

template <int kNewest>
void copy_async_wait() {
  static_assert(kNewest >= 0, "a number of groups");
  cusim::wait_for_copies(kNewest);
}

void sync_threads(CUSIM_SITE);

void sync_team(int team, int threads, CUSIM_SITE);

void sync_warp(CUSIM_SITE);

float shuffle_xor(float value, int mask, CUSIM_SITE);

uint32_t shuffle_xor(uint32_t value, int mask, CUSIM_SITE);

float shuffle(float value, int lane, CUSIM_SITE);

uint32_t shuffle(uint32_t value, int lane, CUSIM_SITE);

bool any_lane(bool value, CUSIM_SITE);

void ldmatrix_x4(uint32_t (&r)[4], const void* row, CUSIM_SITE);

void ldmatrix_x4_trans(uint32_t (&r)[4], const void* row, CUSIM_SITE);

void ldmatrix_x2(uint32_t (&r)[2], const void* row, CUSIM_SITE);

void ldmatrix_x2_trans(uint32_t (&r)[2], const void* row, CUSIM_SITE);

template <int kMatrices>  // 1, 2 or 4: what there is an instruction for
void stmatrix(void* row, const uint32_t (&r)[kMatrices], CUSIM_SITE);

template <class T>
void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, CUSIM_SITE);

template <class T>
void mma_m16n8k8(float (&d)[4], uint32_t a0, uint32_t a1, uint32_t b0, CUSIM_SITE);

void mma_m16n8k8_tf32(float (&d)[4], const float (&a)[4], float b0, float b1, CUSIM_SITE);

float exp2_approx(float x);

float exp2_approx_here(float x);

float rsqrt_approx(float x);

float reciprocal_approx(float x);

}  // namespace swin_fast::cuda
