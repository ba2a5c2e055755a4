"""OpenVINO: the conversion of an ONNX file, and a compiled model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from runner.exports.libraries import Missing, installed
from runner.exports.onnx import Inputs, Run


def convert(file: Path, place: Path) -> Path:
    """Convert an ONNX file to OpenVINO's form in float32: `place` (.xml) and a .bin next to it."""
    openvino = installed("openvino")
    openvino.save_model(openvino.convert_model(file), place, compress_to_fp16=False)
    return place


def compiled(model: Any, precision: str, threads: int) -> Run:
    """A model of OpenVINO, or its file, on the CPU.

    Args:
        precision: float32; bfloat16 (also of what int8 leaves) where the CPU has it.

    Raises:
        Missing: OpenVINO is not installed, or the CPU has no bfloat16.
    """
    core = installed("openvino").Core()
    has_bfloat16 = "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    if precision == "bfloat16" and not has_bfloat16:
        raise Missing("this CPU has no bfloat16 for OpenVINO")
    hint = "f32" if precision == "float32" or not has_bfloat16 else "bf16"
    settings = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": hint}
    made = core.compile_model(model, "CPU", settings | {"PERFORMANCE_HINT": "LATENCY"})
    request, names = made.create_infer_request(), [value.any_name for value in made.inputs]

    def run(inputs: Inputs) -> list[Tensor]:
        outputs = request.infer({name: inputs[name].numpy() for name in names})
        return [torch.from_numpy(value.copy()).float() for value in outputs.values()]

    return run
