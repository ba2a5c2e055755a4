"""The encoder of a model in one call: a module that takes the place of the model's own encoder."""

from __future__ import annotations

import ctypes
import inspect
import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pruning.errors import PruningError
from pruning.runtime.compiler import Library
from pruning.runtime.families import NAMES, Structure
from pruning.runtime.packing import Blocks, Linear, PackedLinear

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from transformers.modeling_outputs import ModelOutput


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


class SparseBase(nn.Module):
    """The base model (`BertModel` and its kin) with a sparse encoder: embeddings and pooler are the model's own."""

    def __init__(self, base: PreTrainedModel, encoder: SparseEncoder) -> None:
        super().__init__()
        self.config = base.config
        self.embeddings, self.encoder = base.embeddings, encoder
        self.project = getattr(base, "embeddings_project", None)
        self.pooler = getattr(base, "pooler", None)
        self._accepted = {
            name.replace("input_embeds", "inputs_embeds"): name  # DistilBERT writes it so
            for name in inspect.signature(base.embeddings.forward).parameters
        }

    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, **inputs: Any) -> ModelOutput:
        """As the base model, without hidden states of single layers, attentions and caches."""
        from transformers.modeling_outputs import BaseModelOutputWithPooling

        given = {name: value for name, value in {"input_ids": input_ids, **inputs}.items() if value is not None}
        refused = [name for name, value in given.items() if value is not False and name not in (*self._accepted, "return_dict")]
        if refused:
            raise PruningError(f"the sparse runtime has no {', '.join(refused)}")
        hidden = self.embeddings(**{self._accepted[name]: value for name, value in given.items() if name in self._accepted})
        if self.project is not None:
            hidden = self.project(hidden)
        last = self.encoder(hidden, attention_mask)
        pooled = None if self.pooler is None else self.pooler(last)
        return BaseModelOutputWithPooling(last_hidden_state=last, pooler_output=pooled)


class SparseEncoder(nn.Module):
    """Computes all layers of an encoder by encoder.c.

    Tokens that the attention mask leaves out are not computed: their hidden states are zero. The first token of each
    text always is, because classification heads read it.
    """

    def __init__(self, structure: Structure, library: Library, precision: Mapping[str, str], threads: int | None = None) -> None:
        """Pack the layers' weights; `structure` keeps the dense ones, its owner frees them.

        Args:
            precision: of the weights of each linear layer, by the names of NAMES.
            threads: of each call; None: as many as torch has.
        """
        super().__init__()
        self.library = library
        self._tensors: list[Tensor] = []
        self._local = threading.local()
        self.threads = threads
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

    def forward(self, hidden: Tensor, mask: Tensor | None = None) -> Tensor:
        """All layers.

        Args:
            hidden: (batch, length, hidden), the embeddings.
            mask: (batch, length), not zero where a token counts; None: everywhere.

        Returns:
            (batch, length, hidden), the last hidden states.
        """
        batch, length, _ = hidden.shape
        source = hidden.detach().float().contiguous()
        tokens, keys, place = selection(mask, batch, length)
        out = torch.empty_like(source) if mask is None else torch.zeros_like(source)
        threads = self.threads or torch.get_num_threads()
        tensors = (tokens, keys, place, source, out)
        self._encode(_Batch(batch, threads, *(tensor.data_ptr() for tensor in tensors)))
        return out.to(hidden.dtype)

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
    if mask is None or bool(mask.all()):
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
