"""Criteria: how important a weight is.

A criterion sees weights and gradients at every optimizer step, pools them to one number per unit where the pattern
allows, and keeps what it needs as named tensors of that size; the pruner owns and saves them. Pooling comes first and
the formula second: a block is scored as one connection whose observation is the mean (sum, max) over the block.
"""

import hashlib
import re
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from pruning.errors import PruningError
from pruning.patterns import Reduction

REDUCTIONS: dict[str, Reduction] = {"mean": torch.mean, "sum": torch.sum, "max": torch.amax}


@dataclass
class Layer:
    """The inputs of a criterion for the scores of one layer."""

    name: str
    weight: Tensor
    """[out, in]"""
    state: dict[str, Tensor]
    """Tensors that `accumulate` stored; empty before the first gradient."""
    second_moment: Tensor | None
    """[out, in]: Adam's running mean of squared gradients, if the optimizer has it."""
    pool: Callable[[Tensor], Tensor]
    """[out, in] values -> one number per unit."""


@dataclass
class Criterion:
    """Base of all criteria."""

    reduce: str = field(default="mean", kw_only=True)
    """How the weights of a block become one score: mean, sum or max."""

    needs_gradient: ClassVar[bool] = False
    """Whether `observation` and `accumulate` are called at every optimizer step."""
    needs_second_moment: ClassVar[bool] = False
    """Whether the optimizer must have Adam's second moment."""
    needs_calibration: ClassVar[bool] = False
    """Whether calibration data are read at each mask update."""
    updates_survivors: ClassVar[bool] = False
    """Whether a mask update also changes the weights that stay."""
    evidence: ClassVar[str] = "gradient"
    """What must be other than zero for a layer's weights to be ranked."""

    def __post_init__(self) -> None:
        if self.reduce not in REDUCTIONS:
            raise PruningError(f"reduce={self.reduce!r} must be one of {', '.join(REDUCTIONS)}", self)

    @classmethod
    def option(cls) -> str:
        """The name of the criterion in words, such as `snip_momentum`."""
        return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", cls.__name__).lower()

    @property
    def reduction(self) -> Reduction:
        """`reduce` as a function."""
        return REDUCTIONS[self.reduce]

    @abstractmethod
    def observation(self, weight: Tensor, gradient: Tensor) -> Tensor:
        """[out, in] weight and gradient of one optimizer step -> a new [out, in], pooled and given to `accumulate`."""
        raise NotImplementedError

    @abstractmethod
    def accumulate(self, state: dict[str, Tensor], pooled: Tensor) -> None:
        """Add one step's pooled observation to the state. `pooled` may be stored or changed in place."""
        raise NotImplementedError

    @abstractmethod
    def saliency(self, layer: Layer) -> Tensor | None:
        """The pooled scores: higher is more important. None if nothing is known of this layer."""
        raise NotImplementedError


@dataclass
class SnipMomentum(Criterion):
    """Running sum of SNIP scores: S <- momentum * S + scale * |w * g| at every optimizer step, S = 0 at first.

    |w * dL/dw| is the connection sensitivity of SNIP (Lee et al. 2019, arXiv 1810.02340) without its normalisation,
    which does not change a ranking. Memory: one number per block, or per weight under N:M.
    """

    momentum: float = 0.9
    """Weight of the scores so far."""
    scale: float = 1.0
    """Weight of this step's scores."""

    needs_gradient: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (0 <= self.momentum < 1 and self.scale > 0):
            raise PruningError(
                f"momentum={self.momentum} must be in [0, 1) and scale={self.scale} must be above 0", self
            )

    def observation(self, weight: Tensor, gradient: Tensor) -> Tensor:
        return (weight * gradient).abs_()

    def accumulate(self, state: dict[str, Tensor], pooled: Tensor) -> None:
        if self.scale != 1:
            pooled.mul_(self.scale)
        before = state.get("score")
        state["score"] = pooled if before is None else torch.add(pooled, before, alpha=self.momentum, out=before)

    def saliency(self, layer: Layer) -> Tensor | None:
        return layer.state.get("score")


@dataclass
class Magnitude(Criterion):
    """|w|, the classic (Han et al. 2015, arXiv 1506.02626). Memory: none."""

    def saliency(self, layer: Layer) -> Tensor | None:
        return layer.pool(layer.weight.float().abs())


@dataclass
class _LastStep(Criterion):
    """Base of criteria that use the last optimizer step alone."""

    needs_gradient: ClassVar[bool] = True

    def accumulate(self, state: dict[str, Tensor], pooled: Tensor) -> None:
        state["last"] = pooled

    def saliency(self, layer: Layer) -> Tensor | None:
        return layer.state.get("last")


@dataclass
class Gradient(_LastStep):
    """|dL/dw| of the last optimizer step. Memory: one number per block, or per weight under N:M."""

    def observation(self, weight: Tensor, gradient: Tensor) -> Tensor:
        return gradient.abs()


@dataclass
class Snip(_LastStep):
    """|w * dL/dw| of the last optimizer step: SNIP (Lee et al. 2019, arXiv 1810.02340), s = |w g| / sum |w g|, without
    its normalisation, which does not change a ranking. Memory: one number per block, or per weight under N:M.
    """

    def observation(self, weight: Tensor, gradient: Tensor) -> Tensor:
        return (weight * gradient).abs_()


@dataclass
class Movement(Criterion):
    """S <- S - w * dL/dw: weights that move away from zero matter (Sanh et al. 2020, arXiv 2005.07683, section 4).

    The sum runs over all optimizer steps. The paper trains S by its own optimizer and lets pruned weights return; here
    it is the running sum itself, and they return only with `Allocation.regrow`. Memory: one number per block, or per
    weight under N:M.
    """

    needs_gradient: ClassVar[bool] = True

    def observation(self, weight: Tensor, gradient: Tensor) -> Tensor:
        return (weight * gradient).neg_()

    def accumulate(self, state: dict[str, Tensor], pooled: Tensor) -> None:
        before = state.get("score")
        state["score"] = pooled if before is None else before.add_(pooled)

    def saliency(self, layer: Layer) -> Tensor | None:
        return layer.state.get("score")


@dataclass
class Platon(Criterion):
    """Sensitivity times its uncertainty, both smoothed (Zhang et al. 2022, arXiv 2206.12562, section 3).

    With I = |w * dL/dw|: I' <- beta1 * I' + (1 - beta1) * I, U = |I - I'|, U' <- beta2 * U' + (1 - beta2) * U, and the
    score is I' * U'. Memory: two numbers per block, or per weight under N:M.
    """

    beta1: float = 0.85
    """Smoothing of the sensitivity."""
    beta2: float = 0.95
    """Smoothing of its uncertainty."""

    needs_gradient: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (0 < self.beta1 < 1 and 0 <= self.beta2 < 1):  # with beta1 = 0 nothing is ever uncertain
            raise PruningError(f"beta1={self.beta1} must be in (0, 1) and beta2={self.beta2} in [0, 1)", self)

    def observation(self, weight: Tensor, gradient: Tensor) -> Tensor:
        return (weight * gradient).abs_()

    def accumulate(self, state: dict[str, Tensor], pooled: Tensor) -> None:
        if not state:
            state |= {"sensitivity": torch.zeros_like(pooled), "uncertainty": torch.zeros_like(pooled)}
        sensitivity = state["sensitivity"].lerp_(pooled, 1 - self.beta1)
        state["uncertainty"].lerp_((pooled - sensitivity).abs_(), 1 - self.beta2)

    def saliency(self, layer: Layer) -> Tensor | None:
        return layer.state["sensitivity"] * layer.state["uncertainty"] if layer.state else None


@dataclass
class DiagonalFisher(Criterion):
    """w^2 * v with Adam's second moment v, a running mean of g^2: twice the rise of the loss when w is set to zero, by
    optimal brain damage (LeCun et al. 1989, equation 5) with the diagonal of the empirical Fisher as its Hessian.

    Adam's bias correction is left out: the same factor everywhere, it does not change a ranking. Memory: none.
    """

    needs_second_moment: ClassVar[bool] = True

    @classmethod
    def option(cls) -> str:
        return "fisher"

    def saliency(self, layer: Layer) -> Tensor | None:
        if layer.second_moment is None:
            return None
        return layer.pool(layer.weight.float().square() * layer.second_moment.float())


@dataclass
class Random(Criterion):
    """A fixed random order: the control that a criterion has to beat. Memory: one number per block, or per weight."""

    seed: int = 0
    """Seed of the order."""

    def saliency(self, layer: Layer) -> Tensor | None:
        if "score" not in layer.state:
            shape = layer.pool(torch.empty(layer.weight.shape, device="meta")).shape
            # By the layer's name, so that neither other layers nor their order matter.
            digest = hashlib.sha256(f"{self.seed} {layer.name}".encode()).digest()
            source = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=True))
            layer.state["score"] = torch.rand(shape, generator=source).to(layer.weight.device)
        return layer.state["score"]


def named(name: str) -> Criterion:
    """The criterion of a name such as `magnitude`, with its default options.

    Raises:
        PruningError: there is none.
    """
    options: dict[str, type[Criterion]] = {}
    waiting: list[type[Criterion]] = [Criterion]
    while waiting:
        subclasses = waiting.pop().__subclasses__()
        options |= {cls.option(): cls for cls in subclasses if not cls.__name__.startswith("_")}
        waiting += subclasses
    if name not in options:
        known = sorted(option for option, cls in options.items() if not cls.needs_calibration)
        raise PruningError(f"there is no criterion {name!r}: write {', '.join(known)}")
    return options[name]()
