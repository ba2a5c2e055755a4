"""ONNX: the exporter, and a session of ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from runner.exports.libraries import installed

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Inputs = dict[str, Tensor]
Run = Callable[[Inputs], list[Tensor]]
"""Runs a model: from its inputs to its outputs."""


class _Outputs(nn.Module):
    """A model with its outputs as a tuple, as exporters need it."""

    def __init__(self, model: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.model, self.names = model, names
        self.eval()  # the exporter restores the mode of this module in all that are in it

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return tuple(v for v in self.model(**dict(zip(self.names, inputs, strict=True))).values() if v is not None)


@torch.inference_mode()
def output_axes(model: PreTrainedModel, inputs: Inputs) -> dict[str, dict[int, str]]:
    """Names of a model's outputs, and their axes that change with batch and length.

    Args:
        inputs: (batch, length) each, of 2 tokens at least.
    """
    whole = model(**inputs)
    shorter = model(**{name: value[:, :-1] for name, value in inputs.items()})
    axes = {}
    for name, value in whole.items():
        if value is not None:
            lengths = [i for i, (a, b) in enumerate(zip(value.shape, shorter[name].shape, strict=True)) if a != b]
            axes[name] = {0: "batch"} | dict.fromkeys(lengths, "length")
    return axes


def export_onnx(model: PreTrainedModel, inputs: Inputs, file: Path) -> Path:
    """Write the model as ONNX, with any batch and length. Inputs that the model does not read are left out.

    torch's exporter by tracing, and not that by torch.export (dynamo=True): ONNX Runtime computes the graph of the
    latter about 10 % slower (MiniLM, torch 2.13), and it stores paths of this machine.

    Raises:
        Missing: onnx is not installed.
    """
    installed("onnx")
    names, outputs = tuple(inputs), output_axes(model, inputs)
    axes = {name: {0: "batch", 1: "length"} for name in names} | outputs
    torch.onnx.export(
        _Outputs(model, names), tuple(inputs.values()), file, input_names=list(names), output_names=list(outputs),
        dynamic_axes=axes, opset_version=17, dynamo=False,
    )  # fmt: skip
    return file


def graph_inputs(file: Path) -> list[str]:
    """The inputs of an ONNX file."""
    return [value.name for value in installed("onnx").load(file, load_external_data=False).graph.input]


def session(file: Path, threads: int) -> Run:
    """ONNX Runtime on the CPU. Raises Missing if it is not installed."""
    onnxruntime = installed("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads, options.log_severity_level = threads, 1, 3
    made = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    names = [value.name for value in made.get_inputs()]

    def run(inputs: Inputs) -> list[Tensor]:
        return [torch.from_numpy(value) for value in made.run(None, {name: inputs[name].numpy() for name in names})]

    return run
