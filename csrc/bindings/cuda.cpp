// SPDX-License-Identifier: Apache-2.0
//
// The CUDA backend as torch operators: on the device of the tensors, on PyTorch's current stream, and with memory from
// PyTorch alone, so that a CUDA graph can hold a call.
#include <torch/csrc/stable/accelerator.h>

#include "../cuda/window_attention.h"
#include "problem.h"

#ifdef SWIN_FAST_CUSIM  // in the emulator of tests/cusim, on tensors of the CPU
#define SWIN_FAST_DISPATCH_KEY CPU

namespace swin_fast {
struct Where {
  int device = 0;
  void* stream = nullptr;
  explicit Where(const Arguments&) {}
};
}  // namespace swin_fast
#else
#define SWIN_FAST_DISPATCH_KEY CUDA

// Of libtorch_cuda, which a PyTorch without CUDA does not have: weak, so that this library loads beside one. libtorch,
// which it is linked to, brings it in. From a floor of torch 2.13 on, Stream::nativeHandle() takes its place.
extern "C" __attribute__((weak)) AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device_index, void** stream);

namespace swin_fast {
// The device of qkv, current while this lives, and PyTorch's current stream of it.
struct Where {
  int device;
  void* stream = nullptr;
  explicit Where(const Arguments& given) : device(checked_device(given)), guard_(device) {
    given.check(aoti_torch_get_current_cuda_stream(device, &stream) == 0, "PyTorch names no current stream");
  }

 private:
  static int checked_device(const Arguments& given) {
    given.check(given.qkv.is_cuda(), "qkv must be on a CUDA device");
    given.check(aoti_torch_get_current_cuda_stream != nullptr, "this PyTorch was built without CUDA");
    return given.qkv.get_device_index();
  }
  torch::stable::accelerator::DeviceGuard guard_;
};
}  // namespace swin_fast
#endif

namespace swin_fast {
namespace {

// Launches, once it is known where: `bytes` of scratch and launch(device, stream, scratch).
template <class ScratchBytes, class Launch>
void run(const Arguments& given, const ScratchBytes& scratch_bytes, const Launch& launch) {
  const Where where(given);
  const auto bytes = static_cast<int64_t>(scratch_bytes(where.device));
  std::optional<Tensor> scratch;
  if (bytes > 0) scratch = torch::stable::new_empty(given.qkv, {bytes}, torch::headeronly::ScalarType::Byte);
  launch(where.device, where.stream, scratch.has_value() ? scratch->mutable_data_ptr() : nullptr);
}

Tensor window_attention_fwd(const Tensor& qkv, const std::optional<Tensor>& bias,
                            const std::optional<Tensor>& logit_scale, const std::optional<Tensor>& pad_value,
                            std::vector<int64_t> window_size, std::vector<int64_t> shift_size, double scale,
                            std::string pad_order, double mask_value) {
  Arguments given{"cuda", qkv, bias, logit_scale, pad_value, window_size, shift_size, scale, pad_order, mask_value};
  return given.forward([&](const WindowAttentionFwdParams& p) {
    run(
        given, [&](int device) { return cuda::window_attention_fwd_scratch(p, device); },
        [&](int device, void* stream, void* scratch) { cuda::window_attention_fwd(p, device, stream, scratch); });
  });
}

Gradients window_attention_bwd(const Tensor& grad_out, const Tensor& qkv, const std::optional<Tensor>& bias,
                               const std::optional<Tensor>& logit_scale, const std::optional<Tensor>& pad_value,
                               std::vector<int64_t> window_size, std::vector<int64_t> shift_size, double scale,
                               std::string pad_order, double mask_value) {
  Arguments given{"cuda", qkv, bias, logit_scale, pad_value, window_size, shift_size, scale, pad_order, mask_value};
  return given.backward(grad_out, [&](const WindowAttentionBwdParams& p) {
    run(
        given, [&](int device) { return cuda::window_attention_bwd_scratch(p, device); },
        [&](int device, void* stream, void* scratch) { cuda::window_attention_bwd(p, device, stream, scratch); });
  });
}

}  // namespace
}  // namespace swin_fast

STABLE_TORCH_LIBRARY_IMPL(swin_fast, SWIN_FAST_DISPATCH_KEY, m) {
  m.impl("window_attention_fwd.cuda", TORCH_BOX(&swin_fast::window_attention_fwd));
  m.impl("window_attention_fwd.cuda_triton", TORCH_BOX(&swin_fast::window_attention_fwd));  // Python knows its backward
  m.impl("window_attention_bwd.cuda", TORCH_BOX(&swin_fast::window_attention_bwd));
}

// Read by ctypes: this library holds no Python symbol.
#define SWIN_FAST_EXPORT extern "C" __attribute__((visibility("default")))
SWIN_FAST_EXPORT const char* swin_fast_cuda_build_info() { return swin_fast::cuda::build_info(); }
SWIN_FAST_EXPORT int swin_fast_cuda_driver_version() { return swin_fast::cuda::driver_version(); }
