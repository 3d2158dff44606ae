# SPDX-License-Identifier: Apache-2.0
"""A module exported to ONNX, and its inference by ONNX Runtime and by OpenVINO on a CPU.

Both send telemetry when they are imported, unless they are told not to before that.
"""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

os.environ["ORT_DISABLE_TELEMETRY"] = "1"
sys.modules.setdefault("openvino_telemetry", None)  # cannot be imported; OpenVINO then takes its own stub


def onnx_file(module: nn.Module, x: Tensor, folder: Path) -> Path:
    """The module, of float32, in `eval` and for inputs of the shape of `x`; its weights lie beside it."""
    path = folder / "module.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(module.eval(), (x,), path, dynamo=True, opset_version=20, external_data=True, verbose=False)
    return path


class OnnxRuntime:
    """float32 to float32; neither is copied."""

    def __init__(self, path: Path, threads: int, dtype_name: str) -> None:
        if dtype_name != "fp32":
            raise NotImplementedError("ONNX Runtime's CPU provider has no bfloat16 kernels")
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        # Threads that wait would take time from other contenders, and from those that work.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.input = self.session.get_inputs()[0].name

    def __call__(self, x: Tensor) -> Tensor:
        return torch.from_numpy(self.session.run(None, {self.input: x.numpy()})[0])


class OpenVino:
    """float32 to float32, whatever it computes in; neither is copied, and the next call overwrites the result."""

    def __init__(self, path: Path, threads: int, dtype_name: str) -> None:
        import openvino

        precision = {"fp32": "f32", "bf16": "bf16"}[dtype_name]
        options = {
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
            "INFERENCE_NUM_THREADS": threads,
            "INFERENCE_PRECISION_HINT": precision,
        }
        compiled = openvino.Core().compile_model(path, "CPU", options)
        if compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name() != precision:
            raise NotImplementedError(f"OpenVINO does not compute in {precision} on this CPU")
        self.request = compiled.create_infer_request()

    def __call__(self, x: Tensor) -> Tensor:
        return torch.from_numpy(self.request.infer([x.numpy()], share_inputs=True, share_outputs=True)[0])
