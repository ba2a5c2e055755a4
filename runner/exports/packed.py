"""The packed file of the sparse runtime."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pruning import PruningError, runtime
from pruning.runtime import compiler
from runner.exports.onnx import Run
from runner.system.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def pack(model: PreTrainedModel, place: Path, precision: str) -> Path:
    """Write the packed file. Raises UserError if the sparse runtime does not know the architecture."""
    try:
        runtime.pack(model, place, precision)
    except PruningError as error:
        raise UserError(f"--to packed: {error}; use --to onnx or --to openvino") from error
    return place


def loaded(file: Path, precision: str) -> Run:
    """A packed file in the sparse runtime; in dense torch where that is not available. A CPU that does not multiply the
    precision computes the values of the file in float32."""
    try:
        has = compiler.precisions(compiler.library().instructions)
    except runtime.Unavailable:
        has = ()
    fast = runtime.load(file, precision if precision in has else "float32", threads=1)
    return lambda inputs: [value for value in fast(**inputs).values() if value is not None]
