"""Weights as matrices: which parameters of a model are some, and their rows and columns."""

import math
import re

import torch
from torch import Tensor, nn

MATRIX_MODULES = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def matrix_weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """The weights of all Linear and Conv modules by parameter name; a shared one by its first name."""
    weights: dict[int, tuple[str, nn.Parameter]] = {}
    for name, module in model.named_modules():
        if isinstance(module, MATRIX_MODULES) and isinstance(module.weight, nn.Parameter):
            weights.setdefault(id(module.weight), (f"{name}.weight".lstrip("."), module.weight))
    return dict(weights.values())


def other_matrices(model: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters with two axes or more that are no weight of a Linear, Conv or embedding module, by name.

    They stay dense: their shapes do not show which axes are inputs. Such are XLNet's q, k, v, o and r, transformers'
    Conv1D, the in_proj_weight of nn.MultiheadAttention and nn.Bilinear. Biases and embeddings are known by their names.
    """
    known = {id(weight) for weight in matrix_weights(model).values()}
    known |= {id(module.weight) for module in model.modules() if isinstance(module, (nn.Embedding, nn.EmbeddingBag))}
    return {
        name: p
        for name, p in model.named_parameters()
        if id(p) not in known
        and sum(size > 1 for size in p.shape) > 1
        and not re.search(r"bias$|embed[^.]*(\.[^.]*)?$", name)
    }


def matrix_shape(shape: torch.Size) -> torch.Size:
    """[out, in, k, ...] -> [out, k * ... * in], for convolutions; other shapes stay."""
    return torch.Size((shape[0], math.prod(shape[1:]))) if len(shape) > 2 else shape


def as_matrix(tensor: Tensor) -> Tensor:
    """A tensor in its `matrix_shape`: a view where memory allows, else a copy.

    A convolution becomes the [out, in] matrices of its kernel's taps next to each other, so that consecutive columns
    are consecutive input channels (of one group, if it is grouped): sparse tensor cores count N:M along them.
    """
    return tensor.movedim(1, -1).flatten(1) if tensor.dim() > 2 else tensor


def from_matrix(matrix: Tensor, shape: torch.Size) -> Tensor:
    """The inverse of `as_matrix`: a view of the matrix in the shape of the weight."""
    return matrix.view(shape[0], *shape[2:], shape[1]).movedim(-1, 1) if len(shape) > 2 else matrix
