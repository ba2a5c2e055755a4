"""Runtimes that can run a model on the CPU: the sparse one, and every dense one that is installed."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from pruning import runtime
from pruning.runtime import compiler
from pruning.runtime.cut import cut
from results.columns import SPARSE, SPARSE_LINEARS
from runner.exports.libraries import Missing, installed, quiet
from runner.exports.onnx import Inputs, Run, export_onnx, session
from runner.exports.openvino import compiled as compiled_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel

log = logging.getLogger(__name__)

TOLERANCE = {"float32": 1e-3, "bfloat16": 0.1, "int8": 0.35}
"""Mean difference to torch in float32, relative to the outputs' mean size, above which a runtime is not timed: it
computes something else. int8 activations of a model that was not trained for them may come close."""


@dataclass(frozen=True)
class Runtime:
    """A way to run a model."""

    name: str
    precision: str
    run: Run
    sparse: bool = False
    bytes: int | None = None
    """Memory of the weights, if it is known."""

    def __str__(self) -> str:
        return f"{self.name} {self.precision}"


def parameters_bytes(model: nn.Module) -> int:
    """Memory of a model's parameters."""
    return sum(parameter.nbytes for parameter in model.parameters())


def torch_dense(model: PreTrainedModel, precision: str, compiled: bool) -> Runtime:
    """torch, eager or compiled."""
    net: Any = copy.deepcopy(model).to(getattr(torch, precision))
    size = parameters_bytes(net)
    if compiled:
        net = torch.compile(net)
    return Runtime("torch.compile" if compiled else "torch", precision, calling(net), bytes=size)


def calling(net: Any) -> Run:
    """Run a torch model: its outputs in float32, those that are None left out."""
    return lambda inputs: [value.float() for value in net(**inputs).values() if value is not None]


def sparse(model: PreTrainedModel, precision: str, threads: int) -> Runtime:
    """The sparse runtime, of the whole encoder or of single layers. Raises Missing with its reason if it would run
    dense.
    """
    fast = runtime.accelerate(copy.deepcopy(model), precision, threads)
    if fast.report.runtime not in (SPARSE, SPARSE_LINEARS):
        raise Missing(fast.report.reason)
    rest = parameters_bytes(fast.model)
    return Runtime(
        fast.report.runtime, precision, lambda inputs: [v for v in fast(**inputs).values() if v is not None], True,
        fast.report.packed_bytes + rest,
    )  # fmt: skip


def onnx_runtime(file: Path, precision: str, threads: int) -> Runtime:
    """ONNX Runtime, float32 or dynamically quantised to int8."""
    installed("onnxruntime")
    if precision == "int8":
        quantization = installed("onnxruntime.quantization")
        quantized = file.with_name("int8.onnx")
        quantization.quantize_dynamic(file, quantized, per_channel=True, weight_type=quantization.QuantType.QInt8)
        file = quantized
    return Runtime("ONNX Runtime", precision, session(file, threads), bytes=file.stat().st_size)


def openvino(file: Path, precision: str, threads: int, inputs: Inputs) -> Runtime:
    """OpenVINO; int8 is quantised by nncf on random inputs, which is enough to time it."""
    model = installed("openvino").Core().read_model(file)
    if precision == "int8":
        nncf = installed("nncf")
        nncf.set_log_level(logging.ERROR)
        data = [{name: value.numpy() for name, value in inputs.items()}] * 4
        model = nncf.quantize(model, nncf.Dataset(data), model_type=nncf.ModelType.TRANSFORMER, subset_size=4)
    return Runtime("OpenVINO", precision, compiled_model(model, precision, threads))


@contextmanager
def available(
    model: PreTrainedModel,
    inputs: Inputs,
    precisions: tuple[str, ...],
    threads: int,
    compiled: bool,
    only: Callable[[str], bool] = lambda name: True,
) -> Iterator[list[Runtime]]:
    """Every runtime that runs this model here; those that do not are logged with the reason.

    Args:
        inputs: an example batch, for exporters.
        compiled: whether torch.compile is tried, which takes a minute.
        only: whether a runtime of this name is wanted, such as "OpenVINO int8" or "sparse float32".
    """
    with TemporaryDirectory() as folder:
        exported: list[Path] = []

        def onnx() -> Path:
            if not exported:  # as runner.export writes it: without the parts that compute nothing
                smaller = copy.deepcopy(model)
                cut(smaller)
                exported.append(export_onnx(smaller, inputs, Path(folder) / "model.onnx"))
            return exported[0]

        wanted: list[tuple[str, Callable[[], Runtime]]] = []
        for precision in precisions:
            wanted.append((f"sparse {precision}", lambda p=precision: sparse(model, p, threads)))
        for precision in ("float32", "bfloat16"):
            wanted.append((f"torch {precision}", lambda p=precision: torch_dense(model, p, compiled=False)))
            if compiled:
                wanted.append((f"torch.compile {precision}", lambda p=precision: torch_dense(model, p, compiled=True)))
        for precision in ("float32", "int8"):
            wanted.append((f"ONNX Runtime {precision}", lambda p=precision: onnx_runtime(onnx(), p, threads)))
        for precision in ("float32", "bfloat16", "int8"):
            wanted.append((f"OpenVINO {precision}", lambda p=precision: openvino(onnx(), p, threads, inputs)))
        made = []
        for name, make in filter(lambda each: only(each[0]), wanted):
            try:
                with quiet():
                    made.append(make())
            except Missing as reason:
                log.info("%s: %s", name, reason)
            except Exception as error:  # whatever exporters and quantisers raise: the rest can be timed
                log.warning("%s is not timed: %s: %s", name, type(error).__name__, " ".join(str(error).split())[:300])
        yield made


def default_precisions() -> tuple[str, ...]:
    """The sparse runtime's precisions on this CPU; float32 if it does not run here, so that the reason is logged."""
    try:
        return compiler.precisions(compiler.library().instructions)
    except runtime.Unavailable:
        return ("float32",)
