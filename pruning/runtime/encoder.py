"""The encoder of a model in one call: a module that takes the place of the model's own encoder."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from pruning.runtime.compiler import Library
from pruning.runtime.families import NAMES, Structure
from pruning.runtime.packing import Blocks, Linear, PackedLinear

if TYPE_CHECKING:
    from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions


class _Layer(ctypes.Structure):
    """`struct layer` of encoder.c."""

    _fields_ = [
        *((name, Linear) for name in NAMES),
        *((f"{norm}_{what}", ctypes.c_void_p) for norm in ("attention", "ffn") for what in ("weight", "bias")),
    ]


class _Encoder(ctypes.Structure):
    """`struct encoder` of encoder.c."""

    _fields_ = [
        *((name, ctypes.c_int32) for name in ("layers", "hidden", "ffn", "heads", "head_size", "activation")),
        *((name, ctypes.c_float) for name in ("epsilon", "scale")),
        ("layer", ctypes.c_void_p),
    ]


class _Batch(ctypes.Structure):
    """`struct batch` of encoder.c."""

    _fields_ = [
        *((name, ctypes.c_int32) for name in ("sequences", "threads")),
        *((name, ctypes.c_void_p) for name in ("tokens", "keys", "source", "in", "out")),
    ]


class SparseEncoder(nn.Module):
    """Computes all layers of an encoder by encoder.c.

    Tokens that the attention mask leaves out are not computed: their hidden states are zero. The first token of each
    text always is, because classification heads read it.
    """

    def __init__(self, structure: Structure, library: Library, precision: Mapping[str, str]) -> None:
        """Pack the layers' weights; `structure` keeps the dense ones, its owner frees them.

        Args:
            precision: of the weights of each linear layer, by the names of NAMES.
        """
        super().__init__()
        self.library = library
        self._tensors: list[Tensor] = []
        self._local = threading.local()
        self.mask: Tensor | None = None
        self.threads: int | None = None
        heads, size = structure.heads, structure.head_size
        layers = (_Layer * len(structure.layers))()
        self.blocks, self.present = 0, 0
        for struct, layer in zip(layers, structure.layers, strict=True):
            for name, linear in layer.linears.items():
                weight, bias = padded_heads(name, linear, heads, size)
                setattr(struct, name, self._pack(weight, bias, precision[name]))
            for name, norm in (("attention", layer.attention_norm), ("ffn", layer.ffn_norm)):
                setattr(struct, f"{name}_weight", self._own(norm.weight))
                setattr(struct, f"{name}_bias", self._own(norm.bias))
        first = structure.layers[0]
        hidden, ffn = first.linears["up"].in_features, first.linears["up"].out_features
        self.hidden = hidden
        self._layers = layers
        self._encoder = _Encoder(
            len(layers), hidden, -(-ffn // 4) * 4, heads, -(-size // 4) * 4, structure.activation,
            first.attention_norm.eps, size**-0.5, ctypes.addressof(layers),
        )  # fmt: skip

    def _own(self, tensor: Tensor) -> int:
        """Address of a float32 copy that lives as long as this module; 16 floats more than the tensor has."""
        copy = torch.zeros(len(tensor) + 16)
        copy[: len(tensor)] = tensor.detach().float()
        self._tensors.append(copy)
        return copy.data_ptr()

    def _pack(self, weight: Tensor, bias: Tensor | None, precision: str) -> Linear:
        blocks = Blocks.of(weight, precision)
        self.blocks += (len(blocks.start) - 1) * blocks.shape[1]
        self.present += len(blocks.value)
        packed = PackedLinear.of(blocks, bias, precision)
        self._tensors += packed.tensors
        return packed.struct

    @property
    def bytes(self) -> int:
        """Memory that the packed weights take."""
        return sum(tensor.nbytes for tensor in self._tensors)

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None = None, **_: object) -> BaseModelOutputWithPastAndCrossAttentions:
        """All layers, for float32 (batch, length, hidden). The mask is `self.mask`; the argument is made from it."""
        from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions

        batch, length, width = hidden_states.shape
        hidden = hidden_states.detach().float().contiguous()
        tokens, keys, source = selection(self.mask, batch, length)
        out = torch.zeros(hidden.shape) if self.mask is not None else torch.empty(hidden.shape)
        call = _Batch(
            batch, self.threads or torch.get_num_threads(), tokens.data_ptr(), keys.data_ptr(), source.data_ptr(),
            hidden.data_ptr(), out.data_ptr(),
        )  # fmt: skip
        self._encode(call)
        return BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=out.to(hidden_states.dtype))  # pyright: ignore[reportArgumentType]

    def _encode(self, call: _Batch) -> None:
        """Call encoder.c with this thread's memory; it grows to the largest batch."""
        arena = getattr(self._local, "arena", None)
        while True:
            size = arena.numel() if arena is not None else 0
            address = ctypes.c_void_p(arena.data_ptr() if arena is not None else None)
            needed = self.library.code.encode(
                ctypes.byref(self._encoder), ctypes.byref(call), address, ctypes.c_int64(size)
            )
            if needed <= size:
                return
            arena = self._local.arena = torch.empty(needed, dtype=torch.uint8)


def padded_heads(name: str, linear: nn.Linear, heads: int, size: int) -> tuple[Tensor, Tensor | None]:
    """Weight and bias with each head's features padded with zeros to a multiple of 4, as encoder.c has them."""
    weight, bias, more = linear.weight.detach(), linear.bias, -size % 4
    if name in ("query", "key", "value") and more:
        weight = nn.functional.pad(weight.view(heads, size, -1), (0, 0, 0, more)).flatten(0, 1)
        if bias is not None:
            bias = nn.functional.pad(bias.detach().view(heads, size), (0, more)).flatten()
    elif name == "output" and more:
        weight = nn.functional.pad(weight.view(-1, heads, size), (0, more)).flatten(1)
    elif name == "down":
        weight = nn.functional.pad(weight, (0, -weight.shape[1] % 4))
    return weight, bias


def selection(mask: Tensor | None, batch: int, length: int) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens to compute, longest text first.

    Args:
        mask: (batch, length), not zero where a token counts; None: everywhere.

    Returns:
        Number of tokens of each text (batch,), number of those that are keys, and place of each token in the flat
        batch; all int32. A first token that the mask leaves out is the last of its text and no key.
    """
    if mask is None:
        counts = torch.full((batch,), length, dtype=torch.int32)
        return counts, counts, torch.arange(batch * length, dtype=torch.int32)
    present = mask != 0
    keys = present.sum(dim=1)
    tokens = keys + ~present[:, 0]
    longest = tokens.argsort(descending=True, stable=True)
    order = (~present).to(torch.uint8).argsort(dim=1, stable=True)  # the first that is left out comes after all keys
    taken = torch.arange(length) < tokens[:, None]
    source = order + torch.arange(batch)[:, None] * length
    return tokens[longest].int(), keys[longest].int(), source[longest][taken[longest]].int()
