"""Single linear layers in encoder.c, for models whose encoder it does not compute."""

from __future__ import annotations

import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn

from pruning.runtime.compiler import Library
from pruning.runtime.encoder import linear
from pruning.runtime.packing import Blocks, PackedLinear

SMALLEST = 256 * 256
"""Weights of a matrix, below which a layer stays dense: models of width 256 win (docs/speed.md), of 128 do not."""
DENSEST = 0.5
"""Share of 4x1 blocks up to which a layer is swapped; 0.5 is the densest that was timed.

nn.Linear in float32 against SparseLinear, random blocks, bias, one thread, CPU with AVX-512 and bfloat16 that others
used at the same time: medians of 10 ratios of CPU time, lowest and highest of 384x384, 768x768, 3072x768, 768x3072.

| zeros | tokens | float32 | bfloat16 | int8 |
| 50 % | 1 | 0.73 to 1.49 | 0.94 to 1.47 | 1.06 to 2.54 |
| 50 % | 16 and 128 | 1.87 to 2.96 | 1.84 to 4.10 | 2.65 to 5.69 |
| 70 % | 1 | 0.82 to 2.13 | 0.79 to 2.05 | 1.01 to 2.90 |
| 70 % | 16 and 128 | 1.75 to 5.63 | 1.51 to 5.81 | 1.93 to 8.48 |
| 80 % | 1 | 1.20 to 2.68 | 1.16 to 2.45 | 1.51 to 4.28 |
| 80 % | 16 and 128 | 2.30 to 7.77 | 1.93 to 7.49 | 2.30 to 11.06 |

A single token loses on small matrices, which the rule does not see; texts have more. Whole models: docs/speed.md.
Other CPUs and several threads were not timed.
"""


_TOKENS = 16
"""Tokens of a thread are a multiple of this, a vector of encoder.c."""


class SparseLinear(nn.Module):
    """A linear layer that multiplies only the 4x1 blocks that are not zero."""

    def __init__(
        self, blocks: Blocks, bias: Tensor | None, library: Library, precision: str, threads: int | None = None
    ) -> None:
        """Pack the weights.

        Args:
            blocks: of the weight (out_features, in_features).
            bias: (out_features,) or None.
            precision: of the product.
            threads: of each call; None: as many as torch has.
        """
        super().__init__()
        self.out_features, self.in_features = blocks.shape
        self.library, self.threads = library, threads
        self.packed = PackedLinear.of(blocks.to(precision), bias, precision)

    @property
    def bytes(self) -> int:
        """Memory of the packed weights."""
        return sum(tensor.nbytes for tensor in self.packed.tensors)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) -> (..., out_features), in the type of `x`.

        Raises:
            ValueError: another number of features.
        """
        if x.shape[-1] != self.in_features:
            raise ValueError(f"{x.shape[-1]} features; the layer has {self.in_features}")
        flat = x.detach().reshape(-1, self.in_features)
        threads = self.threads or torch.get_num_threads()
        parts = flat.split(max(1, -(-len(flat) // (threads * _TOKENS))) * _TOKENS)
        run = map if len(parts) == 1 else _pool(threads, os.getpid()).map
        out = torch.cat(list(run(self._rows, parts)))
        return out.reshape(*x.shape[:-1], self.out_features).to(x.dtype)

    def _rows(self, x: Tensor) -> Tensor:
        return linear(self.packed, x, self.library)[:, : self.out_features]


@cache
def _pool(threads: int, process: int) -> ThreadPoolExecutor:  # a forked process has no threads of its parent
    return ThreadPoolExecutor(threads, thread_name_prefix="sparse-linear")


@dataclass(frozen=True)
class Swapped:
    """What `swap_linears` did."""

    sparse: dict[str, nn.Linear]
    """Name -> dense layer, of those that are sparse now."""
    dense: int
    """Layers that stay as they are."""
    density: float
    """Share of the blocks of the sparse layers that are not zero."""
    packed_bytes: int
    dense_bytes: int
    """Memory of the swapped layers' weights before."""

    def undo(self, model: nn.Module) -> None:
        """Put the dense layers back."""
        for name, layer in self.sparse.items():
            _put(model, name, layer)


def candidates(model: nn.Module) -> dict[str, nn.Linear]:
    """Linear layers that may become sparse, by name. Their parameters may be on the meta device.

    Others are of a subclass of nn.Linear, have hooks, share a parameter, have fewer weights than SMALLEST, or more
    columns than `Blocks` has numbers for.
    """
    uses = Counter(id(p) for _, p in model.named_parameters(remove_duplicate=False))
    return {
        name: layer
        for name, layer in model.named_modules()
        if name and type(layer) is nn.Linear and layer.weight.numel() >= SMALLEST and layer.in_features <= 65536
        and not (layer._forward_hooks or layer._forward_pre_hooks)
        and all(uses[id(parameter)] == 1 for parameter in layer.parameters())
    }  # fmt: skip


def swap_linears(model: nn.Module, library: Library, precision: str, threads: int | None = None) -> Swapped:
    """Replace those `candidates` of a model whose density is at most DENSEST; the model is changed.

    Args:
        precision, threads: as in `SparseLinear`.
    """
    layers = sum(isinstance(layer, nn.Linear) for layer in model.modules())
    replaced: dict[str, nn.Linear] = {}
    packed = present = possible = 0
    for name, layer in candidates(model).items():
        blocks = Blocks.of(layer.weight)
        if blocks.density > DENSEST:
            continue
        sparse = SparseLinear(blocks, layer.bias, library, precision, threads)
        _put(model, name, sparse)
        replaced[name], packed = layer, packed + sparse.bytes
        present, possible = present + len(blocks.value), possible + (len(blocks.start) - 1) * blocks.shape[1]
    before = sum(parameter.nbytes for layer in replaced.values() for parameter in layer.parameters())
    return Swapped(replaced, layers - len(replaced), present / max(possible, 1), packed, before)


def _put(model: nn.Module, name: str, layer: nn.Module) -> None:
    parent, _, attribute = name.rpartition(".")
    setattr(model.get_submodule(parent), attribute, layer)
