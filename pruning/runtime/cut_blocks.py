"""Cut the parts of a layer of blocks that compute nothing, for encoder.c: what `pruning.runtime.cut` cuts out of other
models, in groups of 4, and also single features of heads.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pruning.runtime.cut import CutReport
from pruning.runtime.packing import ROWS, Blocks

Layer = dict[str, tuple[Blocks, Tensor | None]]
"""Weight and bias of each linear module of a layer, by the names of `families.LINEARS`."""


@dataclass(frozen=True)
class Heads:
    """Features of the heads that a layer has."""

    scores: list[int]
    """Features in `query` and `key`, of each head."""
    values: list[int]
    """Features in `value` and `output`, of each head; at least 4."""


def cut_blocks(layer: Layer, head_size: int, activation: Callable[[Tensor], Tensor]) -> tuple[CutReport, Heads]:
    """Cut dead channels and heads out of a layer of blocks, a mapping that is changed.

    What is dead is as in `pruning.runtime.cut.cut`; channels go in groups of 4, so that blocks stay whole. Single
    features of heads are cut, too: in `value` and `output` as whole heads, in `query` and `key` where `key` has no
    weights: then the feature adds the same to the scores of all keys, which softmax does not see.

    Returns:
        What was cut, and the heads that remain.
    """
    report = _whole(layer, head_size)
    if not _finite(layer):
        return report, Heads([head_size] * report.all_heads, [head_size] * report.all_heads)
    channels = _cut(layer, "up", "down", activation)
    dead_values = _cut(layer, "value", "output", lambda bias: bias).view(-1, head_size)
    silent = dead_values.all(dim=1)
    dead_scores = ~layer["key"][0].used(1).view(-1, head_size) | silent[:, None]
    for name in ("query", "key"):
        layer[name] = _without(layer[name], dead_scores.flatten())
    features = int(dead_scores.sum() + dead_values.sum())
    report = replace(report, channels=int(channels.sum()), heads=int(silent.sum()), features=features)
    return report, Heads(*((~dead[~silent]).sum(dim=1).tolist() for dead in (dead_scores, dead_values)))


def _whole(layer: Layer, head_size: int) -> CutReport:
    """The report of a layer of which nothing is cut."""
    channels, features = (len(layer[name][0].used(1)) for name in ("up", "value"))
    return CutReport(all_channels=channels, all_heads=features // head_size, all_features=2 * features)


def _cut(layer: Layer, writer: str, reader: str, activation: Callable[[Tensor], Tensor]) -> Tensor:
    """Cut the dead features between two modules, in groups of 4, of which one at least remains. The rows of blocks are
    padded to a multiple of 4.

    Args:
        writer: the module that computes the features.
        reader: the module that reads activation(features).

    Returns:
        (features,) bool: those that were cut.
    """
    bias, (read, read_bias) = layer[writer][1], layer[reader]
    constant = ~layer[writer][0].used(1)
    groups = (constant | ~read.used(0)).view(-1, ROWS).all(dim=1)
    groups[0] &= not bool(groups.all())
    dead = groups.repeat_interleave(ROWS)
    outputs = torch.zeros(len(dead), dtype=torch.float64)
    if bias is not None:
        outputs[: len(bias)] = activation(bias.float()).double()
    outputs[~(dead & constant)] = 0
    if bool(outputs.any()):
        matrix = read.dense()
        moved = matrix.double() @ outputs + (0 if read_bias is None else read_bias.double())
        read_bias = moved.to(matrix.dtype)
    layer[reader] = read.select(None, ~dead), read_bias
    layer[writer] = _without(layer[writer], dead)
    return dead


def _without(parameters: tuple[Blocks, Tensor | None], dead: Tensor) -> tuple[Blocks, Tensor | None]:
    """Weight and bias without some rows."""
    weight, bias = parameters
    return weight.select(~dead), None if bias is None else bias[~dead[: len(bias)]]


def _finite(layer: Layer) -> bool:
    """True if all weights and biases are finite."""
    tensors: list[Tensor | None] = []
    for weight, bias in layer.values():
        tensors += [weight.value.float(), weight.scale, bias]
    return all(bool(tensor.isfinite().all()) for tensor in tensors if tensor is not None)
