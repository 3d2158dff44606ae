// SPDX-License-Identifier: Apache-2.0
//
// add_slowly
// Computes  x + 1, after each thread has waited `spins` clock ticks: a kernel that visibly lasts as long as one asks.
//           benchmarks/stream_probe.py uses it to see that an op bound like ours runs where PyTorch wants it to run.
// Grid      one thread per element, blocks of 256; blocks that find no free multiprocessor wait after those that did.
// Memory    registers alone; x is read once and out written once.
// Numerics  one addition in float32.
// Source    ours. The same file is CUDA to nvcc and plain C++ to a host compiler, which leaves the waiting out.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>

#ifdef __CUDACC__
#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#endif

namespace {

using torch::stable::Tensor;

#ifdef __CUDACC__
constexpr int64_t kThreads = 256;

__global__ void add_slowly_kernel(const float* x, float* out, int64_t numel, int64_t spins) {
  const int64_t start = clock64();
  while (clock64() - start < spins) {
  }
  const int64_t i = kThreads * blockIdx.x + threadIdx.x;
  if (i < numel) out[i] = x[i] + 1.f;
}

void launch(const Tensor& x, const float* in, float* out, int64_t spins) {
  const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  void* stream = nullptr;
  STD_TORCH_CHECK(aoti_torch_get_current_cuda_stream(x.get_device_index(), &stream) == 0,
                  "add_slowly: PyTorch names no current stream");
  const auto blocks = static_cast<unsigned>((x.numel() + kThreads - 1) / kThreads);
  add_slowly_kernel<<<blocks, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(in, out, x.numel(), spins);
  const cudaError_t error = cudaGetLastError();
  STD_TORCH_CHECK(error == cudaSuccess, "add_slowly: the launch failed: ", cudaGetErrorString(error));
}
#else
void launch(const Tensor& x, const float* in, float* out, int64_t /*spins*/) {
  for (int64_t i = 0; i < x.numel(); i++) out[i] = in[i] + 1.f;
}
#endif

Tensor add_slowly(const Tensor& x, int64_t spins) {
  STD_TORCH_CHECK(x.scalar_type() == torch::headeronly::ScalarType::Float, "add_slowly: x must be float32");
  const Tensor in = torch::stable::contiguous(x);
  Tensor out = torch::stable::empty_like(in);
  if (in.numel() > 0) {  // a launch of no blocks is an error
    launch(in, static_cast<const float*>(in.const_data_ptr()), static_cast<float*>(out.mutable_data_ptr()), spins);
  }
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY(swin_fast_probe, m) { m.def("add_slowly(Tensor x, int spins) -> Tensor"); }

#ifdef __CUDACC__
STABLE_TORCH_LIBRARY_IMPL(swin_fast_probe, CUDA, m) { m.impl("add_slowly", TORCH_BOX(&add_slowly)); }
#else
STABLE_TORCH_LIBRARY_IMPL(swin_fast_probe, CPU, m) { m.impl("add_slowly", TORCH_BOX(&add_slowly)); }
#endif
