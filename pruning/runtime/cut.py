"""Cut the parts of a model that compute nothing: feed-forward channels and attention heads whose weights are zero.

What remains is an ordinary dense model with smaller matrices, which every runtime computes faster. Its layers may have
different sizes, so config.json cannot describe it: it is for exporters, not for save_pretrained.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pruning.errors import PruningError
from pruning.runtime.families import LINEARS, check_layers, structure_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel


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

    def __str__(self) -> str:
        if self.reason:
            return f"nothing ({self.reason})"
        return f"{self.channels} of {self.all_channels} channels, {self.heads} of {self.all_heads} heads"


@torch.no_grad()
def cut(model: PreTrainedModel) -> CutReport:
    """Cut dead channels and heads out of a model's encoder, in place. The outputs stay what they are but for rounding.

    A feed-forward channel is dead if its column in `down` is zero, or its row in `up`: then its output is one number,
    activation(bias), which moves into the bias of `down`. A head is dead if its columns in `output` are zero, or its
    rows and biases in `value`. Each layer keeps at least one of both. A layer with weights that
    are not finite stays whole.

    Returns:
        The counts; of an architecture that `pruning.runtime.families` does not know, the reason, and nothing is cut.
    """
    try:
        structure = structure_of(model.config)
        check_layers(model, structure.family)
    except PruningError as reason:
        return CutReport(reason=str(reason))
    activation = _activation(model)
    channels = all_channels = heads = all_heads = 0
    for number in range(structure.layers):
        names = (structure.family.parameter(number, name, "weight").removesuffix(".weight") for name in LINEARS)
        linears = [_linear(model, name) for name in names]
        query, key, value, output, up, down = linears
        all_channels, all_heads = all_channels + up.out_features, all_heads + structure.heads
        if not all(bool(p.isfinite().all()) for linear in linears for p in linear.parameters()):
            continue  # 0 times infinity is not 0
        dead = _dead_channels(up, down, activation)
        channels += _remove(dead, rows=(up,), columns=(down,))
        dead = _dead_heads(value, output, structure.head_size).repeat_interleave(structure.head_size)
        heads += _remove(dead, rows=(query, key, value), columns=(output,)) // structure.head_size
    return CutReport(channels, all_channels, heads, all_heads)


def _linear(model: PreTrainedModel, name: str) -> nn.Linear:
    module = model.base_model.get_submodule(name)
    assert isinstance(module, nn.Linear)
    return module


def _activation(model: PreTrainedModel) -> Any:
    from transformers.activations import ACT2FN

    config: Any = model.config
    return ACT2FN[getattr(config, "hidden_act", None) or config.activation]


def _dead_channels(up: nn.Linear, down: nn.Linear, activation: Any) -> Tensor:
    """(channels,) bool: channels to cut. The constant outputs of some of them move into the bias of `down`."""
    constant, unread = (up.weight == 0).all(dim=1), (down.weight == 0).all(dim=0)
    moved = constant & ~unread
    if bool(moved.any()):
        bias = torch.zeros(up.out_features) if up.bias is None else up.bias
        added = down.weight.double() @ activation(bias).masked_fill(~moved, 0).double()
        old = 0 if down.bias is None else down.bias.double()
        down.bias = nn.Parameter((old + added).to(down.weight.dtype), requires_grad=False)
        down.weight[:, moved] = 0
    return _all_but_one(constant | unread)


def _dead_heads(value: nn.Linear, output: nn.Linear, size: int) -> Tensor:
    """(heads,) bool: heads to cut."""
    silent, unread = (value.weight == 0).all(dim=1), (output.weight == 0).all(dim=0)
    if value.bias is not None:
        silent &= value.bias == 0
    return _all_but_one(silent.view(-1, size).all(dim=1) | unread.view(-1, size).all(dim=1))


def _all_but_one(dead: Tensor) -> Tensor:
    """Spare one part if all are dead: few runtimes multiply matrices without rows."""
    if bool(dead.all()):
        dead[0] = False
    return dead


def _remove(dead: Tensor, rows: tuple[nn.Linear, ...], columns: tuple[nn.Linear, ...]) -> int:
    """Remove features: rows of some layers, columns of those that read them. Returns their number."""
    alive = ~dead
    if not bool(dead.any()):
        return 0
    for layer in rows:
        layer.weight = nn.Parameter(layer.weight[alive], requires_grad=False)
        layer.out_features = len(layer.weight)
        if layer.bias is not None:
            layer.bias = nn.Parameter(layer.bias[alive], requires_grad=False)
    for layer in columns:
        layer.weight = nn.Parameter(layer.weight[:, alive], requires_grad=False)
        layer.in_features = layer.weight.shape[1]
    return int(dead.sum())
