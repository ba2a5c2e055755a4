"""Exceptions for some layers, by shell patterns of their names."""

import fnmatch
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any


@dataclass
class LayerOverride:
    """Exceptions for the layers whose names match."""

    pattern: str | None = None
    """Another pattern, by its name, such as 4x1 or "2:4"."""
    target: float | None = None
    """Another target sparsity. The main target then holds over the remaining layers."""
    frozen: bool = False
    """Neither pruned nor trained."""
    excluded: bool = False
    """Trained, not pruned."""
    max_per_layer: float | None = None
    """Another cap for each of these layers. They stay in the ranking and the budget of the others."""
    criterion: str | None = None
    """Another criterion, by its name, with its default options. These layers are ranked among themselves, and reach
    their target alone; if they look at calibration data, all layers have to."""
    schedule: dict[str, Any] | None = None
    """Fields of the schedule that differ, such as {start: 20%, end: 60%}. These layers are ranked among themselves, and
    reach their target alone."""
    allocation: str | None = None
    """global or uniform: another way to spread the target of these layers, among themselves. Bounds stay."""


def merged(overrides: Iterable[LayerOverride]) -> LayerOverride:
    """Several exceptions as one: each sets what it names, later ones first."""
    result = LayerOverride()
    for each in overrides:
        result = LayerOverride(
            each.pattern or result.pattern,
            result.target if each.target is None else each.target,
            each.frozen or result.frozen,
            each.excluded or result.excluded,
            result.max_per_layer if each.max_per_layer is None else each.max_per_layer,
            each.criterion or result.criterion,
            {**(result.schedule or {}), **(each.schedule or {})} or None,
            each.allocation or result.allocation,
        )
    return result


def matches(pattern: str, parameter: str) -> bool:
    """Whether a shell pattern is that of a parameter, or of its layer: its name without the last part."""
    return any(fnmatch.fnmatchcase(name, pattern) for name in (parameter, parameter.rpartition(".")[0]))
