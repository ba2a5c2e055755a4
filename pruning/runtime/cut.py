"""Cut the parts of a model that compute nothing: feed-forward channels and attention heads whose weights are zero.

What remains is an ordinary dense model with smaller matrices, which every runtime computes faster. Its layers may have
different sizes, so config.json cannot describe it: it is for exporters and for encoder.c, not for save_pretrained.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from pruning.errors import PruningError
from pruning.runtime.families import LINEARS, check_layers, structure_of
from pruning.runtime.packing import Blocks

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Layer = dict[str, tuple[Tensor | Blocks, Tensor | None]]
"""Weight and bias of each linear module of a layer, by the names of LINEARS."""


@dataclass(frozen=True)
class CutReport:
    """What was cut."""

    channels: int = 0
    """Feed-forward channels that were cut, of all layers."""
    all_channels: int = 0
    heads: int = 0
    """Attention heads that were cut, of all layers."""
    all_heads: int = 0
    reason: str = ""
    """Why nothing could be cut: the architecture is not known; empty if it is."""

    def __add__(self, other: CutReport) -> CutReport:
        return CutReport(
            self.channels + other.channels, self.all_channels + other.all_channels, self.heads + other.heads,
            self.all_heads + other.all_heads, self.reason or other.reason,
        )  # fmt: skip

    def __str__(self) -> str:
        if self.reason:
            return f"nothing ({self.reason})"
        return f"{self.channels} of {self.all_channels} channels, {self.heads} of {self.all_heads} heads"


@torch.no_grad()
def cut(model: PreTrainedModel) -> CutReport:
    """Cut dead channels and heads out of a model's encoder, in place, as `cut_layer` does.

    Returns:
        The counts; of an architecture that `pruning.runtime.families` does not know, the reason, and nothing is cut.
    """
    try:
        structure = structure_of(model.config)
        check_layers(model, structure.family)
    except PruningError as reason:
        return CutReport(reason=str(reason))
    report = CutReport()
    for number in range(structure.layers):
        modules = {name: _linear(model, structure.family.parameter(number, name, "weight")) for name in LINEARS}
        layer: Layer = {name: (module.weight, module.bias) for name, module in modules.items()}
        done = cut_layer(layer, structure.head_size, structure.function)
        if done.channels or done.heads:
            for name, module in modules.items():
                _fill(module, *layer[name])
        report += done
    return report


def cut_layer(layer: Layer, head_size: int, activation: Callable[[Tensor], Tensor], step: int = 1) -> CutReport:
    """Cut dead channels and heads out of a layer, a mapping that is changed. The outputs stay what they are but for
    rounding.

    A feed-forward channel is dead if its column in `down` is zero, or its row in `up`: then its output is one number,
    activation(bias), which moves into the bias of `down`. A head is dead if the same is true of each of its features,
    with `output` for `down` and `value` for `up`: attention weights sum to 1, so the output of a feature without
    weights is its bias. One of each remains, because few runtimes multiply matrices without rows. A layer with weights
    that are not finite stays whole: 0 times infinity is not 0.

    Args:
        step: channels are cut in groups of so many; 4 keeps blocks whole.
    """
    channels, features = len(_used(layer["up"][0], 1)), len(_used(layer["value"][0], 1))
    counts = CutReport(0, channels, 0, features // head_size)
    if not all(_finite(weight) and (bias is None or _finite(bias)) for weight, bias in layer.values()):
        return counts
    channels = _cut(layer, ("up",), "down", step, activation)
    features = _cut(layer, ("value", "query", "key"), "output", head_size, lambda bias: bias)
    return counts + CutReport(channels=channels, heads=features // head_size)


def _cut(layer: Layer, writers: tuple[str, ...], reader: str, step: int, activation: Callable[[Tensor], Tensor]) -> int:
    """Cut the dead features between two modules, in groups of `step`. Returns their number.

    Args:
        writers: the module that computes the features, and others that lose the same rows.
        reader: the module that reads them.
    """
    weight, bias = layer[writers[0]]
    read, read_bias = layer[reader]
    constant, unread = ~_used(weight, 1), ~_used(read, 0)
    groups = (constant | unread).view(-1, step).all(dim=1)
    groups[0] &= not bool(groups.all())
    dead = groups.repeat_interleave(step)
    if not bool(dead.any()):
        return 0
    outputs = torch.zeros(len(dead), dtype=torch.float64)
    if bias is not None:
        outputs[: len(bias)] = activation(bias.float()).double()
    outputs[~(dead & constant)] = 0
    if bool(outputs.any()):
        matrix = read.dense() if isinstance(read, Blocks) else read
        moved = matrix.double() @ outputs + (0 if read_bias is None else read_bias.double())
        read_bias = moved.to(matrix.dtype)
    layer[reader] = _kept(read, None, ~dead), read_bias
    for name in writers:
        weight, bias = layer[name]
        layer[name] = _kept(weight, ~dead, None), None if bias is None else bias[~dead[: len(bias)]]
    return int(dead.sum())


def _used(weight: Tensor | Blocks, dim: int) -> Tensor:
    """Rows (dim=1) or columns (dim=0) that have a weight other than zero, bool. The rows of blocks are padded to a
    multiple of 4.
    """
    return weight.used(dim) if isinstance(weight, Blocks) else (weight != 0).any(dim=dim)


def _finite(weight: Tensor | Blocks) -> bool:
    return bool((weight.value.float() if isinstance(weight, Blocks) else weight).isfinite().all())


def _kept(weight: Tensor | Blocks, rows: Tensor | None, columns: Tensor | None) -> Tensor | Blocks:
    """Some rows and columns, bool; None: all."""
    if isinstance(weight, Blocks):
        return weight.select(rows, columns)
    weight = weight if rows is None else weight[rows]
    return weight if columns is None else weight[:, columns]


def _linear(model: PreTrainedModel, parameter: str) -> nn.Linear:
    module = model.base_model.get_submodule(parameter.removesuffix(".weight"))
    assert isinstance(module, nn.Linear)
    return module


def _fill(module: nn.Linear, weight: Tensor | Blocks, bias: Tensor | None) -> None:
    """Give a module other parameters."""
    assert isinstance(weight, Tensor)
    module.out_features, module.in_features = weight.shape
    module.weight = nn.Parameter(weight, requires_grad=False)
    module.register_parameter("bias", None if bias is None else nn.Parameter(bias, requires_grad=False))
