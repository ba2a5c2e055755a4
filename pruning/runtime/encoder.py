"""The encoder of a model in one call of encoder.c."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from pruning.runtime.compiler import Library
from pruning.runtime.cut import CutReport
from pruning.runtime.cut_blocks import Layer, cut_blocks
from pruning.runtime.families import ACTIVATIONS, LINEARS, NORMS, Structure
from pruning.runtime.packing import ROWS, Blocks, Linear, PackedLinear

_TILE = 64
"""Tokens of a tile of encoder.c."""


_WIDTHS = ("query", "value", "up")
"""Modules whose rows differ from layer to layer: dead ones are cut."""


class _Layer(ctypes.Structure):
    """`struct layer` of encoder.c."""

    _fields_ = [
        *((name, Linear) for name in LINEARS),
        *((f"{norm}_{what}", ctypes.c_void_p) for norm in NORMS for what in ("weight", "bias")),
        ("heads", ctypes.c_int32),
        *((name, ctypes.c_void_p) for name in ("score_start", "value_start")),
    ]


class _Encoder(ctypes.Structure):
    """`struct encoder` of encoder.c; widths: the most rows of these modules, of all layers."""

    _fields_ = [
        *((name, ctypes.c_int32) for name in ("layers", "hidden", *_WIDTHS, "activation")),
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

    Dead channels, heads and features of heads are cut; `cut` counts them.

    Tokens that the attention mask leaves out are not computed: their hidden states are zero. The first token of each
    text always is, because classification heads read it.
    """

    def __init__(
        self,
        structure: Structure,
        tensors: Mapping[str, Tensor | Blocks],
        library: Library,
        precision: Mapping[str, str],
        threads: int | None = None,
    ) -> None:
        """Pack the weights.

        Args:
            tensors: the parameters of the base model by name; the weights of linear layers may be blocks.
            precision: of the weights, by the names of LINEARS.
            threads: of each call; None: as many as torch has.
        """
        super().__init__()
        self.structure, self.library, self.precision, self.threads = structure, library, dict(precision), threads
        self._tensors: list[Tensor] = []
        self._local = threading.local()
        self._present, self._possible, self.cut = 0, 0, CutReport()
        heads, size = structure.heads, structure.head_size
        self._layers = (_Layer * structure.layers)()
        for number, layer in enumerate(self._layers):
            parts: Layer = {}
            for name in LINEARS:
                weight = tensors[structure.family.parameter(number, name, "weight")]
                bias = tensors.get(structure.family.parameter(number, name, "bias"))
                assert not isinstance(bias, Blocks)
                weight, bias = padded(name, weight, bias, heads, size)
                parts[name] = self._blocks(weight, precision[name]), bias
            cut, remaining = cut_blocks(parts, -(-size // ROWS) * ROWS, structure.function)
            self.cut += cut
            for name, (blocks, bias) in parts.items():
                assert isinstance(blocks, Blocks)
                packed = PackedLinear.of(blocks, bias, precision[name])
                self._tensors += packed.tensors
                setattr(layer, name, packed.struct)
            for name in NORMS:
                for what in ("weight", "bias"):
                    address = self._own(tensors[structure.family.parameter(number, name, what)])
                    setattr(layer, f"{name}_{what}", address)
            layer.heads = len(remaining.values)
            layer.score_start, layer.value_start = self._starts(remaining.scores), self._starts(remaining.values)
        most = (max((getattr(layer, name).rows for layer in self._layers), default=0) for name in _WIDTHS)
        self._encoder = _Encoder(
            len(self._layers), structure.hidden, *most, ACTIVATIONS[structure.activation], structure.epsilon,
            size**-0.5, ctypes.addressof(self._layers),
        )  # fmt: skip

    def _own(self, tensor: Tensor | Blocks) -> int:
        """Address of a float32 copy that lives as long as this module."""
        assert isinstance(tensor, Tensor)
        self._tensors.append(tensor.detach().float().clone())
        return self._tensors[-1].data_ptr()

    def _starts(self, sizes: list[int]) -> int:
        """Address of the place where each of these parts begins, and where the last ends, int32."""
        self._tensors.append(torch.tensor([0, *sizes]).cumsum(0).int())
        return self._tensors[-1].data_ptr()

    def _blocks(self, weight: Tensor | Blocks, precision: str) -> Blocks:
        blocks = Blocks.of(weight, precision) if isinstance(weight, Tensor) else weight.to(precision)
        self._possible += (len(blocks.start) - 1) * blocks.shape[1]
        self._present += len(blocks.value)
        return blocks

    @property
    def density(self) -> float:
        """Share of the 4x1 blocks that are not zero, before anything is cut."""
        return self._present / max(self._possible, 1)

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


def padded(
    name: str, weight: Tensor | Blocks, bias: Tensor | None, heads: int, size: int
) -> tuple[Tensor | Blocks, Tensor | None]:
    """Weight and bias as encoder.c has them: the features of each head, and those of the feed-forward network, padded
    with zeros to a multiple of 4.
    """
    more = -size % 4 if name in LINEARS[:4] else -weight.shape[1] % 4 if name == "down" else 0
    if not more:
        return weight, bias
    weight = weight.dense() if isinstance(weight, Blocks) else weight.detach()
    if name == "down":
        return nn.functional.pad(weight, (0, more)), bias
    if name == "output":
        return nn.functional.pad(weight.view(-1, heads, size), (0, more)).flatten(1), bias
    weight = nn.functional.pad(weight.view(heads, size, -1), (0, 0, 0, more)).flatten(0, 1)
    return weight, None if bias is None else nn.functional.pad(bias.detach().view(heads, size), (0, more)).flatten()


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


def linear(packed: PackedLinear, x: Tensor, library: Library, activation: int = 0) -> Tensor:
    """One linear layer: activation(x W^T + bias).

    Args:
        x: (tokens, columns).
        activation: a value of families.ACTIVATIONS, or 0 for none.

    Returns:
        (tokens, rows), rows a multiple of 4.
    """
    x = x.detach().float().contiguous()
    out = torch.empty(len(x), packed.struct.rows)
    tile = torch.empty(x.shape[1], _TILE)
    memory = (x, out, tile, torch.empty_like(tile), torch.empty(packed.struct.rows, _TILE))
    addresses = (ctypes.c_void_p(tensor.data_ptr()) for tensor in memory)
    library.code.linear_rows(ctypes.byref(packed.struct), len(x), activation, *addresses)
    return out
