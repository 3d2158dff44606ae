// SPDX-License-Identifier: Apache-2.0
//
// The driver of the CUDA backend: picks the kernels of a problem from the table, asks the device what it has, and says
// in words what cannot be done. Torch-free.
#include "window_attention.h"

#include <limits>
#include <map>
#include <mutex>
#include <stdexcept>
#include <string>

#include "errors.h"
#include "kernels.h"

namespace swin_fast::cuda {
namespace {

[[noreturn]] void refuse(const std::string& why) { throw std::runtime_error("swin_fast cuda: " + why); }

std::string version_in_words(int version) {
  return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}

const char* name_of(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::kFloat32: return "float32";
    case ScalarType::kFloat16: return "float16";
    case ScalarType::kBFloat16: return "bfloat16";
  }
  return "?";
}

// Makes `device` the current one, for this library's copy of the runtime, and says what it has. The caller restores.
Gpu use(int device, void* stream) {
  check(cudaSetDevice(device), "no use of the device");
  static std::mutex mutex;
  static std::map<int, Gpu> known;
  const std::lock_guard<std::mutex> lock(mutex);
  auto found = known.find(device);
  if (found == known.end()) {
    int multiprocessors = 0, shared_memory = 0;
    check(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device), "no facts of the device");
    check(cudaDeviceGetAttribute(&shared_memory, cudaDevAttrMaxSharedMemoryPerBlockOptin, device),
          "no facts of the device");
    found = known.emplace(device, Gpu{multiprocessors, static_cast<size_t>(shared_memory), nullptr}).first;
  }
  Gpu gpu = found->second;
  gpu.stream = stream;
  return gpu;
}

template <class Params>
const Launches<Params>& launches(const std::vector<Kernels<Params>>& table, const Params& p, const char* direction) {
  for (const Kernels<Params>& kernels : table) {
    if (kernels.take(p)) return kernels.of(p.dtype);
  }
  refuse(std::string("there is no ") + direction + " kernel for " + name_of(p.dtype) + ", windows of " +
         std::to_string(p.window_area()) + " tokens and head_dim " + std::to_string(p.hd) +
         "; the triton backend takes it");
}

// Tokens of an image, and rows and columns of strided tensors, are counted in 32 bits.
void check_counts(const WindowAttentionParams& p, const int64_t* strides, const char* name) {
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max();
  if (p.axis_y().padded_size > kMost / p.axis_x().padded_size) refuse("an image has 2^31 tokens or more");
  if ((p.H > 1 && strides[1] > kMost) || (p.W > 1 && strides[2] > kMost)) {
    refuse(std::string("neighbouring tokens of ") + name + " are 2^31 elements or more apart");
  }
}

}  // namespace

void check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  if (error == cudaErrorNoDevice || error == cudaErrorInsufficientDriver) {
    const int driver = driver_version();
    refuse("there is no CUDA device that this library can use: " +
           (driver == 0 ? "no CUDA driver is installed"
                        : "the driver is for CUDA " + version_in_words(driver) + ", the library for CUDA " +
                              version_in_words(CUDART_VERSION)));
  }
  refuse(std::string(what) + ": " + cudaGetErrorString(error));
}

size_t window_attention_fwd_scratch(const WindowAttentionFwdParams& params, int device) {
  const auto& chosen = launches(forward_kernels(), params, "forward");
  return params.B == 0 ? 0 : chosen.scratch_bytes(params, use(device, nullptr));
}

size_t window_attention_bwd_scratch(const WindowAttentionBwdParams& params, int device) {
  const auto& chosen = launches(backward_kernels(), params, "backward");
  return params.B == 0 ? 0 : chosen.scratch_bytes(params, use(device, nullptr));
}

void window_attention_fwd(const WindowAttentionFwdParams& params, int device, void* stream, void* scratch) {
  const auto& chosen = launches(forward_kernels(), params, "forward");
  check_counts(params, params.qkv_stride, "qkv");
  if (params.B > 0) chosen.launch(params, use(device, stream), scratch);
}

void window_attention_bwd(const WindowAttentionBwdParams& params, int device, void* stream, void* scratch) {
  const auto& chosen = launches(backward_kernels(), params, "backward");
  check_counts(params, params.qkv_stride, "qkv");
  check_counts(params, params.grad_out_stride, "grad_out");
  const Gpu gpu = use(device, stream);
  if (params.B > 0) {
    chosen.launch(params, gpu, scratch);
    return;
  }
  // No window, so sums of nothing.
  const auto zero = [&](void* gradient, int64_t elements, size_t bytes) {
    if (gradient == nullptr) return;
    check(cudaMemsetAsync(gradient, 0, static_cast<size_t>(elements) * bytes, static_cast<cudaStream_t>(stream)),
          "no zeros for an empty batch");
  };
  const int64_t N = params.window_area(), nH = params.nH;
  const int64_t relative = (2 * int64_t{params.window_size[0]} - 1) * (2 * int64_t{params.window_size[1]} - 1);
  zero(params.dbias, nH * (params.bias_form == BiasForm::kDense ? N * N : relative), sizeof(float));
  zero(params.dlogit_scale, nH, sizeof(float));
  zero(params.dpad_value, 3 * nH * params.hd, static_cast<size_t>(element_bytes(params.dtype)));
}

int driver_version() {
  int version = 0;
  return cudaDriverGetVersion(&version) == cudaSuccess ? version : 0;
}

#define SWIN_FAST_STRING_(...) #__VA_ARGS__
#define SWIN_FAST_STRING(...) SWIN_FAST_STRING_(__VA_ARGS__)

#ifdef SWIN_FAST_CUSIM
#define SWIN_FAST_DEVICE_TYPE "cpu"  // in the emulator of tests/cusim
#else
#define SWIN_FAST_DEVICE_TYPE "cuda"
#endif

const char* build_info() {
  static const std::string facts = [] {
    const auto listed = [](std::string* list, const std::string& one) { *list += (list->empty() ? "" : ", ") + one; };
    const auto rows = [&listed](const auto& table) {
      std::string text;
      for (const auto& kernels : table) {
        std::string head_dims, dtypes;
        for (const int32_t hd : kernels.head_dims) listed(&head_dims, std::to_string(hd));
        for (const ScalarType dtype : {ScalarType::kFloat32, ScalarType::kFloat16, ScalarType::kBFloat16}) {
          if (kernels.of(dtype).launch != nullptr) listed(&dtypes, '"' + std::string(name_of(dtype)) + '"');
        }
        listed(&text, R"({"name": ")" + std::string(kernels.name) + R"(", "dtypes": [)" + dtypes +
                          R"(], "window_area": [)" + std::to_string(kernels.least_area) + ", " +
                          std::to_string(kernels.most_area) + R"(], "head_dims": [)" + head_dims + "]}");
      }
      return "[" + text + "]";
    };
    // clang-format off
    return R"({"version": ")" SWIN_FAST_STRING(SWIN_FAST_VERSION)
           R"(", "compiler": "nvcc )" SWIN_FAST_STRING(SWIN_FAST_NVCC_VERSION)
           R"(", "architectures": [)" SWIN_FAST_STRING(SWIN_FAST_CUDA_REAL)
           R"(], "ptx": [)" SWIN_FAST_STRING(SWIN_FAST_CUDA_VIRTUAL)
           R"(], "torch_target": "2.10", "device": ")" SWIN_FAST_DEVICE_TYPE
           R"(", "cuda_runtime": ")" +
           version_in_words(CUDART_VERSION) + R"(", "forward": )" + rows(forward_kernels()) +
           R"(, "backward": )" + rows(backward_kernels()) + "}";
    // clang-format on
  }();
  return facts.c_str();
}

}  // namespace swin_fast::cuda
