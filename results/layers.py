"""Names of weights for people: layer 3, Q instead of bert.encoder.layer.3.attention.self.query.weight."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

KINDS = ("Q", "K", "V", "O", "FFN-in", "FFN-out")
"""Matrices of a Transformer layer."""
_NAMES = {
    "Q": "attention.self.query attention.self.query_proj attention.query attention.attn.q attention.q_lin q_lin "
         "self_attn.q_proj",
    "K": "attention.self.key attention.self.key_proj attention.key attention.attn.k attention.k_lin k_lin "
         "self_attn.k_proj",
    "V": "attention.self.value attention.self.value_proj attention.value attention.attn.v attention.v_lin v_lin "
         "self_attn.v_proj",
    "QKV": "attention.self.in_proj attn.Wqkv",
    "O": "attention.output.dense attention.dense attention.attn.o attention.out_lin out_lin self_attn.out_proj "
         "self_attn.o_proj attn.Wo post_attention.conv1d",
    "FFN-in": "intermediate.dense intermediate.conv1d ffn ffn.lin1 lin1 fc1 mlp.Wi ff.layer_1",
    "FFN-out": "output.dense output.conv1d ffn_output ffn.lin2 lin2 fc2 mlp.Wo ff.layer_2",
}  # fmt: skip
"""Names of matrices in transformers' encoders, after the number of the layer."""
_SHORT = {name: kind for kind, names in _NAMES.items() for name in names.split()}


def place(name: str) -> tuple[str, str]:
    """The layer and the kind of matrix of a weight: "bert.encoder.layer.3.output.dense.weight" is 3, output.dense.
    Weights outside of numbered layers are in layer ""."""
    numbered = re.search(r"(?:^|\.)(\d+)\.(.+)$", name.removesuffix(".weight"))
    return (numbered[1], numbered[2]) if numbered else ("", name.removesuffix(".weight"))


def short_kind(kind: str) -> str:
    """Q, K, V, O, FFN-in or FFN-out (QKV: the first three in one) where a name is that of one; any other stays."""
    return _SHORT.get(kind.removeprefix("albert_layers.0."), kind)


def places(names: Iterable[str]) -> dict[str, tuple[str, str]]:
    """The layer and the kind of each weight, such as ("3", "Q"): different for different weights.

    Where two stacks of layers have the same numbers, the layers have the stack's name too: "encoder 3". Where two
    weights of a layer would have one short kind, both have their long one.
    """
    names = list(dict.fromkeys(names))
    found = {name: place(name) for name in names}
    if len(set(found.values())) < len(names):
        found = {name: (_in_stack(name, names), kind) for name, (_, kind) in found.items()}
    short = {name: (layer, short_kind(kind)) for name, (layer, kind) in found.items()}
    count = Counter(short.values())
    ambiguous = {kind for (_, kind), number in count.items() if number > 1}
    return {name: found[name] if short[name][1] in ambiguous else short[name] for name in names}


def _stack(name: str) -> list[str]:
    """The parts of a name before the number of the layer."""
    layer, kind = place(name)
    return name.removesuffix(".weight").removesuffix(kind).rstrip(".").removesuffix(layer).rstrip(".").split(".")


def _in_stack(name: str, names: Iterable[str]) -> str:
    """The layer with those parts of its stack's name in which the stacks differ."""
    stacks = [_stack(each) for each in names if place(each)[0]]
    layer, own = place(name)[0], _stack(name)
    if not layer:
        return layer
    parts = [part for at, part in enumerate(own) if any(other[at : at + 1] != [part] for other in stacks)]
    return " ".join([".".join(parts), layer]).strip()


def in_order(kinds: Iterable[str]) -> list[str]:
    """Kinds of matrices: `KINDS` first, in their order, then the others in theirs."""
    kinds = list(dict.fromkeys(kinds))
    return [kind for kind in KINDS if kind in kinds] + [kind for kind in kinds if kind not in KINDS]
