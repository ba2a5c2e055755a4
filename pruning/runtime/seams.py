"""Seams between matrices of a model: where one writes the features of heads or channels and another reads them.

`pruning.runtime.cut` takes units out there. Any model has them whose names of matrices `pruning.architectures` knows.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pruning.architectures import ATTENTIONS
from pruning.coupled import CoupledWeights, FeedForward, Heads, Part
from pruning.errors import PruningError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_ACTIVATIONS = ("hidden_act", "hidden_activation", "activation", "activation_function", "dense_act_fn")
"""Names that configurations give to the activation of feed-forward networks."""
_HEADS = ("num_attention_heads", "num_heads", "n_heads")
"""Attributes of attention modules with their number of heads."""


@dataclass(frozen=True)
class Seam:
    """Units between the modules that write their features and the one that reads them."""

    weights: CoupledWeights
    writers: list[nn.Linear]
    reader: nn.Linear
    attention: Any
    """The module of attention, which has `writers`; None: the units are feed-forward channels."""
    activation: Callable[[Tensor], Tensor] | None
    """Activation between writers and reader of a feed-forward network; None: not known."""
    bias: str = ""
    """The argument of `attention` with a score for each head that all layers share, (1, heads, ...)."""
    can_be_cut: bool = True

    @property
    def heads(self) -> bool:
        """Whether the units are attention heads."""
        return self.attention is not None

    def dead(self) -> tuple[Tensor, Tensor]:
        """bool [units]: those that compute nothing; and [features] of the reader: the constant outputs of features
        whose rows are zero, 0 elsewhere.
        """
        weights = [self.reader.weight, *(p for writer in self.writers for p in writer.parameters(recurse=False))]
        nothing = torch.zeros(self.weights.units, dtype=torch.bool)
        if not all(not p.is_meta and bool(p.isfinite().all()) for p in weights):
            return nothing, torch.zeros(self.reader.in_features, dtype=torch.float64)
        constant, outputs = self._of_heads() if self.heads else self._of_channels()
        dead = ((self.reader.weight == 0).all(0) | constant).view(self.weights.units, -1).all(1)
        return dead, outputs.double() * constant

    def _of_heads(self) -> tuple[Tensor, Tensor]:
        """bool [features]: those without weights in the matrix of values; and their outputs."""
        module = self.writers[min(2, len(self.writers) - 1)]  # after query and key
        repeat, units = 3 if len(self.writers) == 1 else 1, self.weights.units
        weight, bias = _rows(module, repeat)
        alone = torch.stack([(weight[-1] == 0).all(1).double(), bias[-1].double()])
        shared = self.reader.in_features * repeat // module.out_features  # heads of one value
        constant, outputs = alone.view(2, units, 1, -1).expand(-1, -1, shared, -1).reshape(2, -1)
        return constant.bool(), outputs

    def _of_channels(self) -> tuple[Tensor, Tensor]:
        """bool [features]: channels whose outputs are constant; and their outputs."""
        width = self.reader.in_features
        rows = [_rows(writer, writer.out_features // width) for writer in self.writers]
        weight, bias = torch.cat([weight for weight, _ in rows]), torch.cat([bias for _, bias in rows])
        empty, outputs = (weight == 0).all(2), torch.zeros(width)
        if self.activation is None:
            return torch.zeros(width, dtype=torch.bool), outputs
        if len(weight) == 1:
            return empty[0], self.activation(bias[0].float())
        zero = not bool(self.activation(outputs[:1]))  # a product of both is zero if either is
        return (empty & (bias == 0)).any(0) & zero, outputs

    def cut(self, dead: Tensor, outputs: Tensor) -> None:
        """Take units out of all modules.

        Args:
            dead: bool [units].
            outputs: [features]: constants that move into the bias of the reader.
        """
        if not bool(dead.any()):
            return
        moved = outputs * self._spread(dead, self.weights.parts[-1])
        if bool(moved.any()):
            old = 0 if self.reader.bias is None else self.reader.bias.double()
            values = (self.reader.weight.double() @ moved + old).to(self.reader.weight.dtype)
            self.reader.register_parameter("bias", nn.Parameter(values, requires_grad=False))
        parts = iter(self.weights.parts)
        for module in (*self.writers, self.reader):
            for name in ("weight", "bias") if module is not self.reader else ("weight",):
                if getattr(module, name) is not None:
                    part = next(parts)
                    left = (~self._spread(dead, part)).nonzero().flatten()
                    value = getattr(module, name).detach().index_select(part.axis, left)
                    module.register_parameter(name, nn.Parameter(value, requires_grad=False))
            module.out_features, module.in_features = module.weight.shape
        if self.attention is not None:
            self._count_heads(dead)

    def _spread(self, units: Tensor, part: Part) -> Tensor:
        """bool [units] -> bool along the part's axis: all slices of these units."""
        length = part.parameter.shape[part.axis] // (part.units * part.repeat)
        return units[None, :, None].expand(part.repeat, -1, length).flatten()

    def _count_heads(self, dead: Tensor) -> None:
        """Let the module of attention know how many heads are left."""
        for name in _HEADS:
            if hasattr(self.attention, name):
                count = int(getattr(self.attention, name))
                setattr(self.attention, name, count * int((~dead).sum()) // len(dead))
        if hasattr(self.attention, "all_head_size"):
            self.attention.all_head_size = self.reader.in_features
        if self.bias:
            self.attention.register_forward_pre_hook(_selecting(self.bias, ~dead), with_kwargs=True)


def _selecting(name: str, heads: Tensor) -> Callable[..., Any]:
    """A hook that leaves the scores of some heads in an argument, which has those of all."""
    chosen = heads.nonzero().flatten()

    def select(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        given = inspect.signature(module.forward).bind(*args, **kwargs)
        value = given.arguments.get(name)
        if value is not None:
            given.arguments[name] = value.index_select(1, chosen.to(value.device))
        return given.args, given.kwargs

    return select


def but_one(dead: Tensor) -> Tensor:
    """The units that are cut: all that are dead, but the first stays if there is no other."""
    return dead if not bool(dead.all()) else dead.index_fill(0, torch.tensor([0]), False)


def _rows(module: nn.Linear, repeat: int) -> tuple[Tensor, Tensor]:
    """[repeat, features, in] and [repeat, features]: weights and biases of the matrices in a module, one below the
    other.
    """
    bias = torch.zeros(module.out_features) if module.bias is None else module.bias.detach()
    return module.weight.detach().unflatten(0, (repeat, -1)), bias.unflatten(0, (repeat, -1))


def seams_of(model: PreTrainedModel) -> list[Seam]:
    """All units of a model, in the order of their layers. Raises PruningError if no name of a matrix is known."""
    modules = {
        name: module
        for name, module in model.named_modules()
        if type(module) is nn.Linear and "weight" in dict(module.named_parameters())
    }
    heads = getattr(model.config, "num_attention_heads", 0)
    found = [*FeedForward().find(modules, heads), *Heads().find(modules, heads if isinstance(heads, int) else 0)]
    if not found:
        raise PruningError(
            f"no heads or channels of the architecture {model.config.model_type!r} are known by their names"
        )
    return [_seam(model, modules, name, weights) for name, weights in found]


def _seam(model: PreTrainedModel, modules: dict[str, nn.Linear], name: str, weights: CoupledWeights) -> Seam:
    names = list(dict.fromkeys(part.name.rpartition(".")[0] for part in weights.parts))
    linears = [modules[name] for name in names]
    if not weights.products:
        return Seam(weights, linears[:-1], linears[-1], None, _activation(model))
    known = next(n for n in ATTENTIONS if names[-1].endswith(n.reader) and names[0].endswith(n.writers[0]))
    attention = model.get_submodule(names[0].rpartition(".")[0])
    norms = [module for module in attention.modules() if isinstance(module, nn.LayerNorm)]  # ALBERT's, after the output
    ours = {id(p) for module in (*linears, *norms) for p in module.parameters()}
    alone = all(id(p) in ours for p in attention.parameters())  # convolutions and such have sizes of all heads
    return Seam(weights, linears[:-1], linears[-1], attention, None, known.bias, known.can_be_cut and alone)


def _activation(model: PreTrainedModel) -> Callable[[Tensor], Tensor] | None:
    """The activation that the configuration names, None if it names none."""
    from transformers.activations import ACT2FN

    names: Iterable[Any] = (getattr(model.config, name, None) for name in _ACTIVATIONS)
    return next((ACT2FN[name] for name in names if isinstance(name, str) and name in ACT2FN), None)
