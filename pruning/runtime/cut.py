"""Cut the parts of a model that compute nothing: feed-forward channels and attention heads whose weights are zero.

What remains is an ordinary dense model with smaller matrices, which every runtime computes faster. Layers cut by `cut`
may have different sizes, which config.json cannot describe: it is for exporters and for encoder.c. Layers cut by
`cut_evenly` have one size, for save_pretrained.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from pruning.errors import PruningError
from pruning.runtime.families import LINEARS, Structure, check_layers, structure_of
from pruning.runtime.packing import ROWS, Blocks

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
    features: int = 0
    """Features of heads that were cut, if single ones were: those of scores (query and key) and of values."""
    all_features: int = 0
    reason: str = ""
    """Why nothing could be cut: the architecture is not known; empty if it is."""

    def __add__(self, other: CutReport) -> CutReport:
        counts = (getattr(self, f.name) + getattr(other, f.name) for f in fields(self))
        return CutReport(*counts)

    def __str__(self) -> str:
        if self.reason:
            return f"nothing ({self.reason})"
        features = f", {self.features} of {self.all_features} features of heads" if self.features else ""
        return f"{self.channels} of {self.all_channels} channels, {self.heads} of {self.all_heads} heads{features}"


@torch.no_grad()
def cut(model: PreTrainedModel) -> CutReport:
    """Cut dead channels and heads out of a model's encoder, in place, as `cut_layer` does.

    Returns:
        The counts; of an architecture that `pruning.runtime.families` does not know, the reason, and nothing is cut.
    """
    try:
        structure, layers = _layers(model)
    except PruningError as reason:
        return CutReport(reason=str(reason))
    report = CutReport()
    for modules in layers:
        layer = _parameters(modules)
        done = cut_layer(layer, structure.head_size, structure.function)
        if done.channels or done.heads:
            _fill_all(modules, layer)
        report += done
    return report


def channels_in_use(model: PreTrainedModel) -> list[int]:
    """Feed-forward channels of each layer that are not dead; at least 1.

    Raises:
        PruningError: `pruning.runtime.families` does not know the architecture.
    """
    _, layers = _layers(model)
    counts = []
    for modules in layers:
        layer = _parameters(modules)
        dead = int(_dead(layer, "up", "down", 1)[0].sum()) if _finite(layer) else 0
        counts.append(modules["up"].out_features - dead)
    return counts


@torch.no_grad()
def cut_evenly(model: PreTrainedModel) -> CutReport:
    """Cut as many dead channels out of each layer as the layer with the fewest has, in place, and set the configuration
    to the number that remains. Heads stay: no configuration has fewer heads of the same size.

    Raises:
        PruningError: as `channels_in_use`.
    """
    structure, layers = _layers(model)
    width, report = max(channels_in_use(model)), CutReport()
    for modules in layers:
        layer = _parameters(modules)
        whole = _whole(layer, structure.head_size)
        cut_off = _cut(layer, "up", "down", 1, structure.function, whole.all_channels - width)
        _fill_all(modules, layer)
        report += replace(whole, channels=int(cut_off.sum()))
    setattr(model.config, structure.family.channels, width)
    return report


def _layers(model: PreTrainedModel) -> tuple[Structure, list[dict[str, nn.Linear]]]:
    """The structure of a model and the linear modules of each layer, by the names of LINEARS. Raises PruningError if
    the architecture is not known.
    """
    structure = structure_of(model.config)
    check_layers(model, structure.family)
    name = structure.family.parameter
    return structure, [
        {module: _linear(model, name(number, module, "weight")) for module in LINEARS}
        for number in range(structure.layers)
    ]


def _parameters(modules: dict[str, nn.Linear]) -> Layer:
    return {name: (module.weight, module.bias) for name, module in modules.items()}


def _fill_all(modules: dict[str, nn.Linear], layer: Layer) -> None:
    for name, module in modules.items():
        _fill(module, *layer[name])


def cut_layer(layer: Layer, head_size: int, activation: Callable[[Tensor], Tensor]) -> CutReport:
    """Cut dead channels and heads out of a layer, a mapping that is changed. The outputs stay what they are but for
    rounding.

    A feed-forward channel is dead if its column in `down` is zero, or its row in `up`: then its output is one number,
    activation(bias), which moves into the bias of `down`. A head is dead if the same is true of each of its features,
    with `output` for `down` and `value` for `up`: attention weights sum to 1, so the output of a feature without
    weights is its bias. One of each remains, because few runtimes multiply matrices without rows. A layer with weights
    that are not finite stays whole: 0 times infinity is not 0.
    """
    report = _whole(layer, head_size)
    if not _finite(layer):
        return report
    channels = _cut(layer, "up", "down", 1, activation)
    heads = _cut(layer, "value", "output", head_size, lambda bias: bias)
    for name in ("query", "key"):
        layer[name] = _without(layer[name], heads)
    return replace(report, channels=int(channels.sum()), heads=int(heads.sum()) // head_size)


@dataclass(frozen=True)
class Heads:
    """Features of the heads that a layer has."""

    scores: list[int]
    """Features in `query` and `key`, of each head."""
    values: list[int]
    """Features in `value` and `output`, of each head; at least 4."""


def cut_blocks(layer: Layer, head_size: int, activation: Callable[[Tensor], Tensor]) -> tuple[CutReport, Heads]:
    """Cut what `cut_layer` does out of a layer of blocks, in groups of 4 so that blocks stay whole, and also single
    features of heads: in `value` and `output` as whole heads, in `query` and `key` where `key` has no weights: then
    the feature adds the same to the scores of all keys, which softmax does not see.

    Returns:
        What was cut, and the heads that remain.
    """
    report = _whole(layer, head_size)
    if not _finite(layer):
        return report, Heads([head_size] * report.all_heads, [head_size] * report.all_heads)
    channels = _cut(layer, "up", "down", ROWS, activation)
    dead_values = _cut(layer, "value", "output", ROWS, lambda bias: bias).view(-1, head_size)
    silent = dead_values.all(dim=1)
    dead_scores = ~_used(layer["key"][0], 1).view(-1, head_size) | silent[:, None]
    for name in ("query", "key"):
        layer[name] = _without(layer[name], dead_scores.flatten())
    features = int(dead_scores.sum() + dead_values.sum())
    report = replace(report, channels=int(channels.sum()), heads=int(silent.sum()), features=features)
    return report, Heads(*((~dead[~silent]).sum(dim=1).tolist() for dead in (dead_scores, dead_values)))


def _whole(layer: Layer, head_size: int) -> CutReport:
    """The report of a layer of which nothing is cut."""
    channels, features = (len(_used(layer[name][0], 1)) for name in ("up", "value"))
    return CutReport(all_channels=channels, all_heads=features // head_size, all_features=2 * features)


def _cut(
    layer: Layer,
    writer: str,
    reader: str,
    step: int,
    activation: Callable[[Tensor], Tensor],
    most: int | None = None,
) -> Tensor:
    """Cut the dead features between two modules, in groups of `step`.

    Args:
        writer: the module that computes the features.
        reader: the module that reads activation(features).
        most: cut so many groups only, the first; None: all that are dead.

    Returns:
        (features,) bool: those that were cut.
    """
    bias, (read, read_bias) = layer[writer][1], layer[reader]
    groups, constant = _dead(layer, writer, reader, step)
    if most is not None:
        groups &= groups.cumsum(0) <= most
    dead = groups.repeat_interleave(step)
    outputs = torch.zeros(len(dead), dtype=torch.float64)
    if bias is not None:
        outputs[: len(bias)] = activation(bias.float()).double()
    outputs[~(dead & constant)] = 0
    if bool(outputs.any()):
        matrix = read.dense() if isinstance(read, Blocks) else read
        moved = matrix.double() @ outputs + (0 if read_bias is None else read_bias.double())
        read_bias = moved.to(matrix.dtype)
    layer[reader] = read.select(None, ~dead) if isinstance(read, Blocks) else read[:, ~dead], read_bias
    layer[writer] = _without(layer[writer], dead)
    return dead


def _dead(layer: Layer, writer: str, reader: str, step: int) -> tuple[Tensor, Tensor]:
    """The groups of features between two modules that compute nothing, (features / step,) bool, but one at least; and
    the features that are constant, (features,) bool.
    """
    constant, unread = ~_used(layer[writer][0], 1), ~_used(layer[reader][0], 0)
    groups = (constant | unread).view(-1, step).all(dim=1)
    groups[0] &= not bool(groups.all())
    return groups, constant


def _without(parameters: tuple[Tensor | Blocks, Tensor | None], dead: Tensor) -> tuple[Tensor | Blocks, Tensor | None]:
    """Weight and bias without some rows."""
    weight, bias = parameters
    weight = weight.select(~dead) if isinstance(weight, Blocks) else weight[~dead]
    return weight, None if bias is None else bias[~dead[: len(bias)]]


def _used(weight: Tensor | Blocks, dim: int) -> Tensor:
    """Rows (dim=1) or columns (dim=0) that have a weight other than zero, bool. The rows of blocks are padded to a
    multiple of 4.
    """
    return weight.used(dim) if isinstance(weight, Blocks) else (weight != 0).any(dim=dim)


def _finite(layer: Layer) -> bool:
    """True if all weights and biases are finite."""
    tensors: list[Tensor | None] = []
    for weight, bias in layer.values():
        tensors += [weight.value.float(), weight.scale, bias] if isinstance(weight, Blocks) else [weight, bias]
    return all(bool(tensor.isfinite().all()) for tensor in tensors if tensor is not None)


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
