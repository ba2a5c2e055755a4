"""Cut the parts of a model that compute nothing: feed-forward channels and attention heads whose weights are zero.

What remains is an ordinary dense model with smaller matrices, which every runtime computes faster. Layers cut by `cut`
may have different sizes, which config.json cannot describe: it is for exporters. Layers cut by `cut_evenly` have one
size, for save_pretrained. Both work on any model whose names of matrices `pruning.architectures` knows.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import torch

from pruning.errors import PruningError
from pruning.runtime.seams import Seam, but_one, seams_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CHANNELS = ("intermediate_size", "hidden_dim", "encoder_ffn_dim", "decoder_ffn_dim", "d_ff", "ffn_dim")
"""Names that configurations give to the number of feed-forward channels."""


@dataclass(frozen=True)
class CutReport:
    """What was cut."""

    channels: int = 0
    """Feed-forward channels that were cut, of all layers."""
    all_channels: int = 0
    heads: int = 0
    """Attention heads that were cut, of all layers. Heads that share a key and a value are one."""
    all_heads: int = 0
    features: int = 0
    """Features of heads that were cut, if single ones were: those of scores (query and key) and of values."""
    all_features: int = 0
    reason: str = ""
    """Why nothing could be cut: the architecture is not known; empty if it is."""
    idle_heads: int = 0
    """Heads that compute nothing and remain, as the only ones of their layers."""

    def __add__(self, other: CutReport) -> CutReport:
        counts = (getattr(self, f.name) + getattr(other, f.name) for f in fields(self))
        return CutReport(*counts)

    def __str__(self) -> str:
        if self.reason:
            return f"nothing ({self.reason})"
        features = f", {self.features:,} of {self.all_features:,} features of heads" if self.features else ""
        return f"{self.channels:,} of {self.all_channels:,} channels, {self.heads} of {self.all_heads} heads{features}"


@torch.no_grad()
def cut(model: PreTrainedModel) -> CutReport:
    """Cut dead channels and heads out of a model's layers, in place. The outputs stay what they are but for rounding.

    A feed-forward channel is dead if its column in the second matrix is zero, or its row in the first: then its output
    is one number, activation(bias), which moves into the bias of the second. A channel of a gated network is dead if
    its column is zero, or a row and its bias. A head is dead if each of its features has a column of zeros in the
    output matrix, or a row of zeros in that of values: attention weights sum to 1, so the output of a feature without
    weights is its bias. One unit of each remains, because few runtimes multiply matrices without rows. Layers with
    weights that are not finite stay whole, as 0 times infinity is not 0; and those without memory.

    Returns:
        The counts; of an architecture whose names are not known, the reason, and nothing is cut.
    """
    try:
        seams = seams_of(model)
    except PruningError as reason:
        return CutReport(reason=str(reason))
    report = CutReport()
    for seam in seams:
        dead, outputs = seam.dead()
        every, dead = bool(dead.all()), but_one(dead)
        seam.cut(dead if seam.can_be_cut else torch.zeros_like(dead), outputs)
        report += _report(seam, int(dead.sum()) if seam.can_be_cut else 0, every)
    return report


def channels_in_use(model: PreTrainedModel) -> list[int]:
    """Feed-forward channels of each layer that are not dead; at least 1. ALBERT's layers are one, MobileBERT's have
    several feed-forward networks each.

    Raises:
        PruningError: the names of its matrices are not known.
    """
    found = [but_one(seam.dead()[0]) for seam in seams_of(model) if not seam.heads]
    if not found:
        raise PruningError(f"no feed-forward channels of {model.config.model_type!r} are known by their names")
    return [len(dead) - int(dead.sum()) for dead in found]


@torch.no_grad()
def cut_evenly(model: PreTrainedModel) -> CutReport:
    """Cut as many dead channels out of each layer as the layer with the fewest has, in place, and set the configuration
    to the number that remains. Heads stay: in configurations their number decides their size.

    Raises:
        PruningError: as `channels_in_use`; or the configuration cannot name the number, then the model is spoiled.
    """
    seams, width = [seam for seam in seams_of(model) if not seam.heads], max(channels_in_use(model))
    before = {len(seam.dead()[0]) for seam in seams}
    report = CutReport(all_heads=sum(seam.weights.units for seam in seams_of(model) if seam.heads))
    for seam in seams:
        dead, outputs = seam.dead()
        dead &= dead.cumsum(0) <= len(dead) - width
        seam.cut(dead, outputs)
        report += _report(seam, int(dead.sum()))
    names = [name for name in CHANNELS if getattr(model.config, name, None) in before]
    config = copy.deepcopy(model.config)
    for name in names:
        setattr(config, name, width)
    with torch.device("meta"):
        named: Any = type(model)(config)
    mine, theirs = model.state_dict(), named.state_dict()
    biases = {f"{seam.weights.parts[-1].name.removesuffix('weight')}bias" for seam in seams}
    added = (biases & mine.keys()) - theirs.keys()
    if added or any(name not in mine or mine[name].shape != tensor.shape for name, tensor in theirs.items()):
        raise PruningError(
            f"the configuration of {model.config.model_type} cannot say that its layers have {width} feed-forward "
            f"channels" + (f" (it names them {', '.join(names)})" if names else "")
        )
    for name in names:
        setattr(model.config, name, width)
    return report


def _report(seam: Seam, cut_off: int, every: bool = False) -> CutReport:
    """What was cut of one seam.

    Args:
        cut_off: how many units.
        every: whether all units are dead.
    """
    if not seam.heads:
        return CutReport(channels=cut_off, all_channels=seam.weights.units)
    return CutReport(heads=cut_off, all_heads=seam.weights.units, idle_heads=int(every and seam.can_be_cut))
