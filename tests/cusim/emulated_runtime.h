// SPDX-License-Identifier: Apache-2.0
//
// As much of the CUDA runtime as csrc/cuda calls, over the emulator: a device of three multiprocessors with the shared
// memory of an H200, whose launches have ended when they return. What a kernel does wrong ends in an exception.
#pragma once

#include <cstddef>
#include <cstring>
#include <stdexcept>
#include <string>

#include "cusim.h"

#define CUDART_VERSION 13000

enum cudaError_t { cudaSuccess, cudaErrorInvalidValue, cudaErrorNoDevice, cudaErrorInsufficientDriver };
enum cudaDeviceAttr { cudaDevAttrMultiProcessorCount, cudaDevAttrMaxSharedMemoryPerBlockOptin };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
using cudaStream_t = struct CUstream_st*;

constexpr int kEmulatedSharedMemory = 227 * 1024;

inline const char* cudaGetErrorString(cudaError_t) { return "invalid value"; }
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline cudaError_t cudaSetDevice(int device) { return device == 0 ? cudaSuccess : cudaErrorNoDevice; }
inline cudaError_t cudaDriverGetVersion(int* version) {
  *version = CUDART_VERSION;
  return cudaSuccess;
}
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  *value = attribute == cudaDevAttrMultiProcessorCount ? 3 : kEmulatedSharedMemory;
  return cudaSuccess;
}
template <class Kernel>
cudaError_t cudaFuncSetAttribute(Kernel, cudaFuncAttribute, int bytes) {
  return bytes <= kEmulatedSharedMemory ? cudaSuccess : cudaErrorInvalidValue;
}
inline cudaError_t cudaMemsetAsync(void* memory, int value, size_t bytes, cudaStream_t) {
  std::memset(memory, value, bytes);
  return cudaSuccess;
}

namespace cusim {

// What a launch has done wrong is an exception. Where SWIN_FAST_CUSIM_COUNTERS names a file, what it did becomes a line
// of JSON there.
void judge_launch(const char* name, const Report& report);

// SWIN_FAST_CUSIM_MATH names the model of the arithmetic, as Math has them; exact if it is not set.
Math chosen_math();

template <class Kernel>
void launch_and_judge(unsigned blocks, unsigned threads, size_t shared_bytes, const char* name, const Kernel& kernel) {
  if (blocks == 0) throw std::runtime_error(std::string(name) + ": a launch of no blocks");
  Options options;
  options.seed = 5;
  options.math = chosen_math();
  judge_launch(name, launch(options, blocks, threads, shared_bytes, kernel));
}

}  // namespace cusim
