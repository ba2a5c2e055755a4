"""Speed on an NVIDIA GPU: the dense model in bfloat16, and its 2:4 layers in the compressed form of torch.

torch 2.13 compresses 2:4 weights for two libraries, CUTLASS and cuSPARSELt. Small batches lose with either, so nothing
is assumed: `verdicts` names the form to keep for each batch and length. All times are times on the clock.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.sparse import (
    SparseSemiStructuredTensor,
    SparseSemiStructuredTensorCUSPARSELT,
    SparseSemiStructuredTensorCUTLASS,
    to_sparse_semi_structured,
)

from runner.exports.libraries import quiet
from runner.speed.machine import machine
from runner.speed.measure import Speed, batch_of
from runner.speed.runtimes import Inputs, Runtime, calling, torch_dense
from runner.speed.timing import Timing, time_all
from runner.system.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

log = logging.getLogger(__name__)

BACKENDS = {"CUTLASS": SparseSemiStructuredTensorCUTLASS, "cuSPARSELt": SparseSemiStructuredTensorCUSPARSELT}
"""Libraries that multiply 2:4 weights, and the torch classes that hold the weights for them."""
PREFIX = "2:4 "
"""First letters of the names of sparse runtimes."""
Convert = Callable[[Tensor, str], Tensor]
"""Compresses a 2:4 weight (rows, columns) for a backend."""


def require_cuda() -> None:
    """Refuse a machine without a GPU that torch can use.

    Raises:
        UserError: there is none.
    """
    if not torch.cuda.is_available():
        raise UserError(
            f"--device cuda: torch {torch.__version__} finds no CUDA GPU here; "
            "use a machine with one and a CUDA build of torch, or --device cpu"
        )


def measure_cuda(
    model: PreTrainedModel,
    batches: Sequence[int],
    lengths: Sequence[int],
    seconds: float = 8,
    *,
    compiled: bool = False,
) -> Speed:
    """Time a model on the GPU, dense and 2:4; what is not timed is logged with the reason.

    Args:
        lengths: in tokens, at most the model's positions.
        seconds: for each combination of batch and length.
        compiled: each form also by torch.compile.
    """
    here, timings = machine(gpu=True), []
    model = model.to("cuda")  # pyright: ignore[reportArgumentType]
    made = [synchronised(runtime) for runtime in runtimes(model, compiled, torch.cuda.get_device_capability())]
    for batch in batches:
        for length in lengths:
            torch.compiler.reset()  # otherwise the second shape is compiled for any shape, which is slower
            inputs = {name: value.to("cuda") for name, value in batch_of(model, batch, length).items()}
            try:
                timings += time_all(made, inputs, 1, seconds, wall=True)
            except torch.OutOfMemoryError:
                log.warning("batch %d, length %d is not timed: the GPU has too little memory", batch, length)
    return Speed(here, timings)


def synchronised(runtime: Runtime, wait: Callable[[], object] = torch.cuda.synchronize) -> Runtime:
    """A runtime whose call lasts until the GPU has finished, from when it has nothing else to do."""

    def run(inputs: Inputs) -> list[Tensor]:
        wait()
        outputs = runtime.run(inputs)
        wait()
        return outputs

    return replace(runtime, run=run)


def runtimes(
    model: PreTrainedModel, compiled: bool, capability: tuple[int, int], convert: Convert | None = None
) -> list[Runtime]:
    """Dense in float32 (the reference) and bfloat16, and the 2:4 form for each backend, on the model's device.

    Args:
        capability: compute capability of the GPU.
        convert: compresses a weight; default: torch's own.
    """
    ways = (False, True) if compiled else (False,)
    made = [torch_dense(model, "float32", compiled=False)]
    made += [torch_dense(model, "bfloat16", compiled=way) for way in ways]
    if reason := why_dense(model, capability):
        log.warning("%s; dense alone is timed", reason)
        return made
    for backend in BACKENDS:
        for way in ways:
            try:
                with quiet():
                    made.append(sparse(model, backend, way, convert or compress))
            except Exception as error:  # a library that this GPU or this build of torch lacks: the rest can be timed
                log.warning("%s%s is not timed: %s", PREFIX, backend, " ".join(str(error).split())[:300])
                break
    return made


def why_dense(model: nn.Module, capability: tuple[int, int]) -> str | None:
    """Why no layer of a model has a sparse form on a GPU, or None if one has."""
    if capability < (8, 0):
        return "2:4 needs compute capability 8.0 (Ampere), and this GPU has {}.{}".format(*capability)
    if any(layers(model, backend) for backend in BACKENDS):
        return None
    weights = [each.weight for each in model.modules() if isinstance(each, nn.Linear)]
    if blocks := sum(map(is_4x1, weights)):
        return f"{blocks} layers are 4x1, and a GPU has no form for it: only 2:4 has one"
    return "no layer is 2:4 in a shape that the GPU multiplies"


def layers(model: nn.Module, backend: str) -> dict[str, nn.Linear]:
    """Layers by name that a backend holds in its 2:4 form in bfloat16."""
    least: Any = BACKENDS[backend]._DTYPE_SHAPE_CONSTRAINTS[torch.bfloat16]
    chosen = {}
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Linear):
            rows, columns = layer.weight.shape
            fits = rows % least.sparse_min_rows == 0 and columns % least.sparse_min_cols == 0
            if fits and is_2_of_4(layer.weight):
                chosen[name] = layer
    return chosen


def is_2_of_4(weight: Tensor) -> bool:
    """Whether each 4 neighbours along the input have at most 2 non-zeros, in a weight (rows, columns)."""
    rows, columns = weight.shape
    return columns % 4 == 0 and int((weight != 0).view(rows, -1, 4).sum(-1).max()) <= 2


def is_4x1(weight: Tensor) -> bool:
    """Whether each 4 neighbours along the output are zero together, in a weight (rows, columns) with some zeros."""
    zero = weight == 0
    if len(weight) % 4 or not zero.any():
        return False
    blocks = zero.view(-1, 4, weight.shape[1])
    return torch.equal(blocks.any(1), blocks.all(1))


def sparse(model: PreTrainedModel, backend: str, compiled: bool, convert: Convert) -> Runtime:
    """The model in bfloat16 with its 2:4 layers compressed for a backend."""
    net: Any = copy.deepcopy(model)
    net = net.to(torch.bfloat16)
    for layer in layers(net, backend).values():
        layer.weight = nn.Parameter(convert(layer.weight.detach().contiguous(), backend), requires_grad=False)
    net = torch.compile(net) if compiled else net
    return Runtime(f"{PREFIX}{backend}{' compiled' * compiled}", "bfloat16", calling(net), sparse=True)


def why_not(backend: str, capability: tuple[int, int]) -> str | None:
    """Why this GPU or this build of torch lacks a backend, or None if it has it.

    Args:
        capability: compute capability of the GPU.
    """
    if backend == "CUTLASS" and capability[0] != 8:  # torch compresses all the same, and fails to multiply
        return "torch's CUTLASS kernels need compute capability 8.x, and this GPU has {}.{}".format(*capability)
    if backend == "cuSPARSELt" and not torch.backends.cusparselt.is_available():
        return "this build of torch lacks cuSPARSELt"
    return None


def compress(weight: Tensor, backend: str) -> Tensor:
    """A weight on the GPU in torch's 2:4 form.

    Raises:
        RuntimeError: this GPU or this build of torch lacks the backend.
    """
    if reason := why_not(backend, torch.cuda.get_device_capability()):
        raise RuntimeError(reason)
    before = SparseSemiStructuredTensor._FORCE_CUTLASS
    SparseSemiStructuredTensor._FORCE_CUTLASS = backend == "CUTLASS"
    try:
        return to_sparse_semi_structured(weight)
    finally:
        SparseSemiStructuredTensor._FORCE_CUTLASS = before


def verdicts(timings: Sequence[Timing]) -> list[str]:
    """Which form to keep, one line for each batch and length.

    A gain that rounds to 1.00x is none: the dense form needs no library.
    """
    lines = []
    for batch, length in dict.fromkeys((t.batch, t.length) for t in timings):
        alike = [t for t in timings if (t.batch, t.length) == (batch, length)]
        forms = [t for t in alike if t.runtime.startswith(PREFIX)]
        dense = [t for t in alike if not t.runtime.startswith(PREFIX)]
        where = f"at batch {batch}, length {length}"
        if not forms or not dense:
            lines.append(f"no 2:4 form was timed {where}: keep the dense form")
            continue
        best, base = max(forms, key=lambda t: t.ratio_to_best_dense), min(dense, key=lambda t: t.ms)
        text = f"{best.runtime} is {best.ratio_to_best_dense:.2f}x the best dense ({base.runtime} {base.precision})"
        wins = round(best.ratio_to_best_dense, 2) > 1
        lines.append(f"{text} {where}{'' if wins else ': it loses: keep the dense form'}")
    return lines
