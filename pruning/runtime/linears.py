"""Single linear layers in encoder.c, for models whose encoder it does not compute."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pruning.runtime.compiler import Library
from pruning.runtime.encoder import linear
from pruning.runtime.packing import Blocks, PackedLinear

SMALLEST = 128 * 128
"""Weights of a matrix, below which a layer stays dense. A cautious choice: 384x384 is the smallest that was timed."""
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

A single token loses on small matrices, which the rule does not see; texts have more. Other CPUs, several threads and
dense layers in bfloat16 were not timed.
"""


class SparseLinear(nn.Module):
    """A linear layer that multiplies only the 4x1 blocks that are not zero, on one thread."""

    def __init__(self, blocks: Blocks, bias: Tensor | None, library: Library, precision: str) -> None:
        """Pack the weights.

        Args:
            blocks: of the weight (out_features, in_features).
            bias: (out_features,) or None.
            precision: of the product.
        """
        super().__init__()
        self.out_features, self.in_features = blocks.shape
        self.density, self.library = blocks.density, library
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
        flat = x.reshape(-1, self.in_features)
        out = linear(self.packed, flat, self.library)[:, : self.out_features]
        return out.reshape(*x.shape[:-1], self.out_features).to(x.dtype)


@dataclass(frozen=True)
class Swapped:
    """What `swap_linears` did."""

    swapped: int
    """Layers that are sparse."""
    dense: int
    """Layers that stay as they are."""
    packed_bytes: int
    dense_bytes: int
    """Memory of the swapped layers' weights before."""


def swap_linears(model: nn.Module, library: Library, precision: str) -> Swapped:
    """Replace the sparse linear layers of a model, which is changed; their dense weights are freed.

    A layer stays dense if it is of a subclass of nn.Linear, has hooks, shares a parameter, has fewer weights than
    SMALLEST, or has a density above DENSEST.
    """
    uses = Counter(id(p) for _, p in model.named_parameters(remove_duplicate=False))
    layers = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, nn.Linear)]
    swapped = packed = dense = 0
    for name, layer in layers:
        hooked = layer._forward_hooks or layer._forward_pre_hooks
        shared = any(uses[id(parameter)] > 1 for parameter in layer.parameters())
        if not name or type(layer) is not nn.Linear or hooked or shared or layer.weight.numel() < SMALLEST:
            continue
        if layer.in_features > 65536:  # columns of Blocks are 16-bit
            continue
        blocks = Blocks.of(layer.weight)
        if blocks.density > DENSEST:
            continue
        sparse = SparseLinear(blocks, layer.bias, library, precision)
        parent, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(parent), attribute, sparse)
        swapped, packed = swapped + 1, packed + sparse.bytes
        dense += sum(parameter.nbytes for parameter in layer.parameters())
    return Swapped(swapped, len(layers) - swapped, packed, dense)
