"""Count zeros and broken units in the saved file, not in memory: the file that is shipped is what is checked."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch

from pruning import LayerReport, as_matrix, matrix_weights, parse
from runner.models.checkpoint import skeleton
from runner.models.configuration import read_config
from runner.models.structure import left_out
from runner.models.weights import opened


class VerificationError(Exception):
    """The saved model differs from the pruner's report: a defect of this program, never the user's."""


@dataclass
class Verification:
    """Counts in the file of a saved model."""

    linear_ratio: float
    """Zeros in pruned Linear and Conv weights over the elements of all of them."""
    overall_ratio: float
    """Zeros in pruned weights and biases over the elements of all parameters, embeddings included."""
    sparsity: float
    """Zeros over elements, of the weights that a pattern prunes, and of the biases if it prunes these too."""
    violations: int
    """Units that break the pattern."""
    left_out: dict[str, float] = field(default_factory=dict)
    """Matrices that are no Linear or Conv weight and so stay dense, by kind, as fractions of all parameters."""


def read_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a saved model, by parameter name. Raises UserError if a file is damaged."""
    tensors = {}
    for file in sorted(folder.glob("*.safetensors")):
        with opened(file, str(folder)) as (names, read):
            tensors |= {name: read(name) for name in names}
    return tensors


def verify(folder: Path, architecture: str, layers: list[LayerReport]) -> Verification:
    """Recount the zeros of a saved model.

    Args:
        layers: the pruner's report, which the file must agree with.

    Raises:
        VerificationError: a unit breaks the pattern, or a weight has fewer zeros than reported.
    """
    tensors = read_tensors(folder)
    net = skeleton(architecture, read_config(str(folder), "FOLDER"))
    matrices = sum(weight.numel() for weight in matrix_weights(net).values())
    everything = sum(weight.numel() for weight in net.parameters())
    zeros = linear_zeros = pruned_elements = violations = 0
    for layer in layers:
        if layer.skipped:
            continue
        matrix = as_matrix(tensors[layer.name])
        wrong = fault(layer, matrix)
        if wrong is not None:
            raise VerificationError(f"{folder}: {layer.name}: {wrong}")
        pruned_elements += matrix.numel()
        if layer.pruned_units:
            count = int((matrix == 0).sum())
            zeros, linear_zeros = zeros + count, linear_zeros + (count if matrix.dim() > 1 else 0)
            violations += parse(layer.pattern).violations(matrix)
    sparsity = zeros / pruned_elements if pruned_elements else 0.0
    return Verification(linear_zeros / matrices, zeros / everything, sparsity, violations, left_out(net))


def fault(layer: LayerReport, matrix: torch.Tensor) -> str | None:
    """How a matrix contradicts its layer's report, or None."""
    if not layer.pruned_units:
        return None
    pattern = parse(layer.pattern)
    zeros, broken = int((matrix == 0).sum()), pattern.violations(matrix)
    if zeros < layer.zeros:
        return f"{zeros} zeros, but the pruner made {layer.zeros}"
    # A weight that was not pruned may be exactly zero: it breaks at most one unit, and the masks are still right.
    if broken > zeros - layer.zeros + pattern.open_units(layer.units, layer.pruned_units):
        return f"{broken} of {layer.units} units break {pattern}"
    return None
