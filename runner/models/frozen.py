"""Parameters that the pruning does not train: `model.frozen`."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from typing import TYPE_CHECKING

from torch import nn

from runner.models import heads
from runner.system.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

KINDS = ("embeddings", "layer_norms", "biases", "head")
"""Words of `model.frozen` that stand for parameters of many modules."""


def freeze(net: PreTrainedModel, names: Iterable[str]) -> None:
    """Let gradients, weight decay and the optimizer leave these parameters out.

    Args:
        names: words of `KINDS`, or shell patterns of parameter and module names.

    Raises:
        UserError: a name matches no parameter, or nothing is left to train.
    """
    given = list(names)
    for parameter in [p for name in given for p in _matching(net, name)]:
        parameter.requires_grad_(False)
    if given and not any(p.requires_grad for p in net.parameters()):
        raise UserError(f"model.frozen={given} leaves nothing to train")


def trained_parameters(net: nn.Module) -> int:
    """Number of parameters that have gradients and moments of an optimizer."""
    return sum(p.numel() for p in net.parameters() if p.requires_grad)


def _matching(net: PreTrainedModel, name: str) -> list[nn.Parameter]:
    """The parameters that a name stands for."""
    named = dict(net.named_parameters())
    if name in KINDS:
        matching = list(_of_kind(net, name))
    else:
        places = [{n, *_prefixes(n)} for n in named]
        matching = [p for p, where in zip(named.values(), places, strict=True) if fnmatch.filter(where, name)]
    if not matching:
        raise UserError(_no_match(name, named))
    return matching


def _of_kind(net: PreTrainedModel, kind: str) -> Iterator[nn.Parameter]:
    if kind == "biases":
        yield from (p for name, p in net.named_parameters() if name.rpartition(".")[2] == "bias")
    elif kind == "head":
        yield from (p for module in heads.head(net).values() for p in module.parameters())
    else:
        for module in net.modules():
            is_norm = "norm" in type(module).__name__.lower()  # LayerNorm, RMSNorm, MobileBERT's NoNorm
            if is_norm if kind == "layer_norms" else isinstance(module, nn.Embedding):
                yield from module.parameters(recurse=False)


def _prefixes(parameter: str) -> Iterator[str]:
    """The names of the modules that hold a parameter."""
    while parameter := parameter.rpartition(".")[0]:
        yield parameter


def _no_match(name: str, named: Iterable[str]) -> str:
    known = dict.fromkeys((*KINDS, *(place for n in named for place in (n, *_prefixes(n)))))
    nearest = get_close_matches(name, known, 1)
    hint = f"did you mean {nearest[0]}?" if nearest else f"write {', '.join(KINDS)}, or a shell pattern such as"
    example = "" if nearest else f" {next(n for n in known if n not in KINDS)} (* matches any text)"
    return f"model.frozen: {name!r} matches no parameter of the model; {hint}{example}"
