"""Count zeros and broken units on the saved file, not on the object in memory: what is shipped is what is checked."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open

from pruning import LayerReport, Pattern
from runner import models


class VerificationError(Exception):
    """The saved model is not what the pruner says it made: a defect of this program, never the user's."""


@dataclass
class Verification:
    """What the file holds."""

    linear_ratio: float
    """Zeros in pruned weights over the elements of all Linear and Conv weights."""
    sparsity: float
    """Zeros over elements, of the weights that the pattern prunes."""
    violations: int
    """Units that break the pattern."""


def read_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a saved model, by parameter name."""
    tensors = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as stored:
            tensors |= {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 (no mapping)
    return tensors


def verify(folder: Path, architecture: str, pattern: Pattern, layers: list[LayerReport]) -> Verification:
    """Recount a saved model.

    Args:
        layers: the pruner's report, which the file must agree with.

    Raises:
        VerificationError: a unit breaks the pattern, or a weight has fewer zeros than reported.
    """
    from transformers import AutoConfig

    tensors = read_tensors(folder)
    net = models.skeleton(architecture, AutoConfig.from_pretrained(folder))
    elements = sum(weight.numel() for weight in models.matrix_weights(net).values())
    zeros = pruned_elements = violations = 0
    for layer in layers:
        if layer.skipped:
            continue
        weight = tensors[layer.name]
        count, broken = int((weight == 0).sum()), 0
        if layer.pruned_units:
            # A kept weight may be exactly zero by itself: it breaks at most one block, and is no fault of the masks.
            broken, by_chance = pattern.violations(weight), count - layer.zeros
            if by_chance < 0 or broken > by_chance:
                raise VerificationError(
                    f"{folder}: {layer.name} has {count} zeros and {broken} broken {pattern} units on disk, "
                    f"but the pruner made {layer.zeros} zeros"
                )
            zeros += count
        pruned_elements += weight.numel()
        violations += broken
    return Verification(zeros / elements, zeros / pruned_elements if pruned_elements else 0.0, violations)
