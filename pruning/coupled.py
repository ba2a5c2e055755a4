"""Units that span several matrices: an attention head, a feed-forward channel.

A head is rows of the query, key and value matrices with columns of the output matrix; a channel is a row of the first
feed-forward matrix (two of a gated one) with a column of the second. Biases of rows belong to the unit. One part of a
unit is worth nothing without the others: a unit whose weights are all zero computes nothing and can be cut out.

`CoupledWeights` shows all weights of such units as one matrix with a row for each unit, so that criteria, allocations
and schedules treat it as any other.
"""

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Self

import torch
from torch import Tensor, nn

from pruning.architectures import ATTENTIONS, FEED_FORWARDS
from pruning.blocks import Block
from pruning.errors import PruningError
from pruning.patterns import Pattern, Reduction, not_a_matrix


@dataclass(frozen=True)
class Part:
    """The slices of one parameter that belong to units."""

    name: str
    """Name of the parameter."""
    parameter: nn.Parameter
    axis: int
    """Axis along which it is sliced: 0 for rows and biases, 1 for columns."""
    units: int
    repeat: int = 1
    """Slices of each unit, such as 2 in a matrix with the rows of gates first and then those of values."""

    def view(self, tensor: Tensor) -> Tensor:
        """A tensor in the parameter's shape as a view [units, ...]."""
        return tensor.unflatten(self.axis, (self.repeat, self.units, -1)).movedim(self.axis + 1, 0)

    @property
    def size(self) -> int:
        """Weights of each unit."""
        return self.parameter.numel() // self.units

    @property
    def block(self) -> Block:
        """A slice as a block of the parameter's matrix."""
        length = self.parameter.shape[self.axis] // (self.units * self.repeat)
        return Block(length, 0) if self.axis == 0 else Block(0, length)


class CoupledWeights:
    """Parameters whose slices are pruned together, as a matrix [units, weights of a unit].

    It has as much of the interface of a parameter as a plan needs. `detach` and `grad` copy.
    """

    def __init__(self, parts: Iterable[Part], products: int = 0) -> None:
        """Args:
        parts: of the units.
        products: multiply-accumulates of a unit for each pair of tokens.
        """
        self.parts, self.products = tuple(parts), products
        self.units = self.parts[0].units
        self.shape = torch.Size((self.units, sum(part.size for part in self.parts)))

    @property
    def reader(self) -> Part | None:
        """The columns that read the features of the units; None unless exactly one part is sliced by columns."""
        readers = [part for part in self.parts if part.axis == 1]
        return readers[0] if len(readers) == 1 else None

    def macs(self, tokens: int) -> int:
        """Multiply-accumulates of a unit for each token of a text of so many tokens."""
        return sum(part.size for part in self.parts if part.parameter.dim() > 1) + self.products * tokens

    @property
    def device(self) -> torch.device:
        """The device of all parts."""
        return self.parts[0].parameter.device

    @property
    def requires_grad(self) -> bool:
        """Whether all matrices are trained. A frozen bias is pruned all the same."""
        return all(part.parameter.requires_grad for part in self.parts if part.parameter.dim() > 1)

    def requires_grad_(self, trained: bool) -> Self:
        """Train all parts, or none."""
        for part in self.parts:
            part.parameter.requires_grad_(trained)
        return self

    @cached_property
    def columns(self) -> dict[str, slice]:
        """The columns of the matrix that each part fills, by parameter name."""
        ends = torch.tensor([part.size for part in self.parts]).cumsum(0).tolist()
        return {part.name: slice(end - part.size, end) for part, end in zip(self.parts, ends, strict=True)}

    def numel(self) -> int:
        """Number of weights."""
        return self.shape.numel()

    def dim(self) -> int:
        """Number of axes."""
        return 2

    def detach(self) -> Tensor:
        """[units, weights]: a copy of the weights, without a graph."""
        values = self.gather(lambda part: part.parameter)
        assert values is not None
        return values

    @property
    def grad(self) -> Tensor | None:
        """[units, weights]: a copy of the gradients, None if there is none."""
        return self.gather(lambda part: part.parameter.grad)

    def gather(self, read: Callable[[Part], Tensor | None]) -> Tensor | None:
        """[units, weights]: what `read` gives of each part, 0 for None; None if it gives nothing at all."""
        tensors = [read(part) for part in self.parts]
        if all(tensor is None for tensor in tensors):
            return None
        rows = [
            part.view((torch.zeros_like(part.parameter) if tensor is None else tensor).detach()).flatten(1)
            for part, tensor in zip(self.parts, tensors, strict=True)
        ]
        return torch.cat(rows, 1)

    def scatter(self, matrix: Tensor) -> list[tuple[Part, Tensor]]:
        """Each part with its columns of a matrix [units, weights], in the shape of `Part.view`."""
        shapes = [part.view(part.parameter).shape for part in self.parts]
        return [
            (part, matrix[:, self.columns[part.name]].view(shape))
            for part, shape in zip(self.parts, shapes, strict=True)
        ]


Weight = nn.Parameter | CoupledWeights
"""A candidate for pruning."""


def parts_of(name: str, weight: Weight) -> list[tuple[str, nn.Parameter]]:
    """The parameters behind a candidate, by name: itself, or the parts of coupled weights."""
    if isinstance(weight, CoupledWeights):
        return [(part.name, part.parameter) for part in weight.parts]
    return [(name, weight)]


@dataclass
class Coupled(Pattern):
    """Base of patterns whose units span several matrices: each prunes whole rows of `CoupledWeights`."""

    target_sparsity: float | None = field(default=None, kw_only=True)
    """Fraction of the weights of all units, biases included, that are zero at the end; 0.5 if nothing is given."""
    target_speedup: float | None = field(default=None, kw_only=True, repr=False)
    """Instead: how many times faster the whole model is, by measured times, with these units cut out."""

    @classmethod
    def parse(cls, text: str, target_sparsity: float | None) -> Self | None:
        if cls is Coupled or text != str(cls()):
            return None
        return cls() if target_sparsity is None else cls(target_sparsity=target_sparsity)

    @abstractmethod
    def find(self, modules: Mapping[str, nn.Linear], heads: int) -> Iterator[tuple[str, CoupledWeights]]:
        """Names and weights of all units in a network.

        Args:
            modules: Linear modules by name.
            heads: attention heads of a layer, those of queries.
        """
        raise NotImplementedError

    def __post_init__(self) -> None:
        if (self.target_speedup, self.target_sparsity) == (None, None):
            self.target_sparsity = 0.5
        if self.target_sparsity is not None and not 0 < self.target < 1:
            raise PruningError(
                f"target_sparsity={self.target} must be in (0, 1), a fraction of zeros (Dense() prunes nothing)", self
            )
        if (speedup := self.target_speedup) is not None and self.target_sparsity is not None:
            raise PruningError(f"target_sparsity={self.target}, target_speedup={speedup:g}: give one of them", self)
        if speedup is not None and not 1 < speedup < float("inf"):
            raise PruningError(f"target_speedup={speedup:g} must be above 1, such as 2", self)

    def unit_size(self, shape: torch.Size) -> int:
        return shape[1]

    def misfit(self, shape: torch.Size) -> str | None:
        return not_a_matrix(self, shape)

    def pool(self, values: Tensor, reduction: Reduction = torch.mean) -> Tensor:
        return reduction(values.contiguous(), dim=1)

    def tile(self, matrix: Tensor, pooled: Tensor) -> tuple[Tensor, Tensor]:
        return matrix, pooled[:, None]

    def violations(self, weight: Tensor) -> int:
        """Units that hold both zeros and other values."""
        zeros = (weight == 0).sum(1)
        return int(((zeros > 0) & (zeros < weight.shape[1])).sum())


@dataclass
class FeedForward(Coupled):
    """Whole feed-forward channels: a row of the first matrix and its bias (two rows of a gated one), with the column of
    the second (nn_pruning, Lagunas et al. 2021, arXiv 2109.04838; CoFi, Xia et al. 2022, arXiv 2204.00408).
    """

    def __str__(self) -> str:
        return "ffn"

    def find(self, modules: Mapping[str, nn.Linear], heads: int) -> Iterator[tuple[str, CoupledWeights]]:
        for names in FEED_FORWARDS:
            for writers, reader in names.find(modules):
                units = modules[reader].in_features
                if all(modules[writer].out_features % units == 0 for writer in writers):
                    yield names.units(reader, "channels"), _coupled(modules, writers, reader, units)


@dataclass
class Heads(Coupled):
    """Whole attention heads: rows of query, key and value and their biases, with columns of the output matrix (Michel
    et al. 2019, arXiv 1905.10650). Heads that share a key and a value go together.
    """

    def __str__(self) -> str:
        return "heads"

    def find(self, modules: Mapping[str, nn.Linear], heads: int) -> Iterator[tuple[str, CoupledWeights]]:
        for names in ATTENTIONS:
            for writers, reader in names.find(modules):
                width, sizes = modules[reader].in_features, [modules[writer].out_features for writer in writers]
                size = width // max(1, heads)  # features of a head
                units = min(*sizes, width) // size if size else 0  # as many as there are keys
                fits = units and width == heads * size and heads % units == 0
                separate = len(sizes) > 1 and all(n in (width, units * size) for n in sizes)
                if fits and (separate or sizes == [3 * width]):
                    products = 2 * width // units  # of queries with keys, and of attention weights with values
                    yield names.units(reader, "heads"), _coupled(modules, writers, reader, units, products)


@dataclass
class Structured(Coupled):
    """Attention heads and feed-forward channels with one budget, ranked together by their score for each weight or
    multiply-accumulate (CoFi, Xia et al. 2022, arXiv 2204.00408; nn_pruning, Lagunas et al. 2021, arXiv 2109.04838).
    """

    def __str__(self) -> str:
        return "structured"

    def find(self, modules: Mapping[str, nn.Linear], heads: int) -> Iterator[tuple[str, CoupledWeights]]:
        yield from FeedForward().find(modules, heads)
        yield from Heads().find(modules, heads)


def couple(model: nn.Module, parameters: Mapping[str, Weight], pattern: Coupled, heads: int) -> dict[str, Weight]:
    """The candidates of a plan with a coupled pattern: its units, and all parameters that belong to none.

    Args:
        parameters: weights that may be pruned, by name. Units with a matrix that is not among them are left out.
        heads: attention heads of a layer, those of queries.

    Raises:
        PruningError: the model has no such unit.
    """
    linears = ((name, module) for name, module in model.named_modules() if isinstance(module, nn.Linear))
    modules = {name: module for name, module in linears if "weight" in dict(module.named_parameters())}
    ours = {id(parameter) for parameter in parameters.values()}
    found = {
        name: weights
        for name, weights in pattern.find(modules, heads)
        if all(id(part.parameter) in ours for part in weights.parts if part.parameter.dim() > 1)
    }
    if not found:
        raise PruningError(
            f"no units of {pattern}: among the matrices that may be pruned (such as {', '.join(list(parameters)[:3])}) "
            "are none whose names and shapes are known to belong together; choose one of single matrices, such as 4x1"
        )
    coupled = {id(part.parameter) for weights in found.values() for part in weights.parts}
    return {name: p for name, p in parameters.items() if id(p) not in coupled} | found


def _coupled(
    modules: Mapping[str, nn.Linear], writers: Iterable[str], reader: str, units: int, products: int = 0
) -> CoupledWeights:
    """Rows and biases of writers with columns of their reader.

    A writer with more rows than the reader has columns holds several matrices, one below the other.
    """
    width, parts = modules[reader].in_features, list[Part]()
    for name in writers:
        module = modules[name]
        repeat = max(1, module.out_features // width)
        parts += [Part(f"{name}.{key}", p, 0, units, repeat) for key, p in module.named_parameters(recurse=False)]
    columns = modules[reader].get_parameter("weight")
    return CoupledWeights([*parts, Part(f"{reader}.weight", columns, 1, units)], products)
