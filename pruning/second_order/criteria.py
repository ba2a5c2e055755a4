"""Criteria that look at calibration data instead of training steps."""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import ClassVar

from torch import Tensor, nn

from pruning.coupled import CoupledWeights, parts_of
from pruning.criteria import Criterion, Layer
from pruning.errors import PruningError
from pruning.matrices import as_matrix
from pruning.plan import Plan
from pruning.second_order.calibration import Calibration, collect, weight_gradients
from pruning.second_order.solver import CHUNK


@dataclass
class Calibrated(Criterion):
    """Base of criteria that read calibration data at each mask update, and need no training step."""

    samples: int = 256
    """Training windows to calibrate on: the caller draws as many."""
    seed: int = 0
    """Seed of the windows and of the labels that are drawn from the model's output."""

    needs_calibration: ClassVar[bool] = True
    evidence: ClassVar[str] = "calibration gradient"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.samples < 1:
            raise PruningError(f"samples={self.samples} must be at least 1", self)
        if not 0 <= self.seed < 2**32:
            raise PruningError(f"seed={self.seed} must be a whole number from 0 to {2**32 - 1}", self)

    @abstractmethod
    def scores(self, calibration: Calibration, plan: Plan) -> dict[str, Tensor]:
        """[out, in] saliencies by parameter name, not pooled; those of biases are [out]."""
        raise NotImplementedError

    def saliency(self, layer: Layer) -> Tensor | None:
        return layer.state.get("score")

    def memory(self, plan: Plan) -> int:
        """Bytes that a mask update takes at most, without the forward and backward passes of the calibration."""
        return sum(8 * p.numel() for p in plan.ranked_by_main().values())  # sums and one batch's gradients, or scores


@dataclass
class Wanda(Calibrated):
    """|w_rj| * ||x_j||_2 (Sun et al. 2023, arXiv 2306.11695). The paper ranks within rows; here the allocation does.

    A bias is a weight with the constant input 1.
    """

    evidence: ClassVar[str] = "calibration input"

    def scores(self, calibration: Calibration, plan: Plan) -> dict[str, Tensor]:
        tensors = plan.ranked_by_main()
        hessians = collect(calibration, _matrices(plan), self.seed, fisher=False).hessians
        biases = {name: p.detach().abs() for name, p in tensors.items() if p.dim() == 1}
        return biases | {
            name: as_matrix(tensors[name].detach()).to(h.dtype).abs() * h.diagonal()[:-1].sqrt()
            for name, h in hessians.items()
        }

    def memory(self, plan: Plan) -> int:
        return super().memory(plan) + _hessian_bytes(_matrices(plan))


@dataclass
class CalibratedSnip(Calibrated):
    """Sum over calibration batches of |w * dL/dw| (Lee et al. 2019, arXiv 1810.02340), labels from the model itself."""

    def scores(self, calibration: Calibration, plan: Plan) -> dict[str, Tensor]:
        tensors = plan.ranked_by_main()
        sums = weight_gradients(calibration, tensors, self.seed, Tensor.abs)
        return {name: as_matrix(tensors[name].detach().abs() * g) for name, g in sums.items()}


@dataclass
class CalibratedFisher(Calibrated):
    """w^2 * sum over calibration batches of g^2: optimal brain damage with the diagonal of the Fisher information."""

    def scores(self, calibration: Calibration, plan: Plan) -> dict[str, Tensor]:
        tensors = plan.ranked_by_main()
        sums = weight_gradients(calibration, tensors, self.seed, Tensor.square)
        return {name: as_matrix(tensors[name].detach().square() * g) for name, g in sums.items()}


@dataclass
class OBS(Calibrated):
    """Layer-wise optimal brain surgeon: what a unit costs when the other weights of its rows make up for it, by the
    Hessian of the layer's inputs and the Fisher information of its outputs; survivors are updated by least squares.

    Hassibi and Stork 1993; Frantar and Alistarh 2022, arXiv 2208.11580 (layer-wise, blocks), 2023, arXiv 2301.00774
    (N:M columns in order); Kurtic et al. 2022, arXiv 2203.07259 (blocks of encoders), 2023, arXiv 2302.04089 (heads and
    feed-forward channels: columns of the matrix that reads them).
    """

    damping: float = 0.01
    """Added to the Hessian's diagonal, as a fraction of its mean."""
    rounds: list[float] = field(default_factory=lambda: [0.25, 0.5, 0.6875, 0.8125, 0.9125, 1.0])
    """Parts of a block pattern's update after which survivors are solved for and costs computed again."""
    sequential: bool = field(default=False, repr=False)
    """Prune the layers in the order in which they run, each on inputs that are collected again with those before it
    pruned, so that it makes up for their errors too. How much each layer loses is decided before, for all together."""

    updates_survivors: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.reduce != Criterion.reduce:
            raise PruningError(f"reduce={self.reduce}: OBS adds the costs of a block's rows; leave reduce out", self)
        if not self.damping > 0:
            raise PruningError(f"damping={self.damping} must be above 0: Hessians of few tokens are singular", self)
        rising = [0.0, *self.rounds]
        if len(rising) < 2 or rising[-1] != 1 or any(a >= b for a, b in pairwise(rising)):
            raise PruningError(f"rounds={list(self.rounds)} must rise to 1, from above 0", self)

    def memory(self, plan: Plan) -> int:
        matrices = dict(refitted(plan).values())
        weights = [as_matrix(p).shape for p in matrices.values()]
        # the damped Hessian and its inverse with copies, old and new weights, a batch's matrices, factors and copies
        each = (48 * (w[1] + 1) ** 2 + 24 * w.numel() + 4 * max(CHUNK, 8 * (w[1] + 1) ** 2) for w in weights)
        one, again = max(each, default=0), 0
        if self.sequential:  # a copy of all weights; moments of the inputs that moved, their factor, what is fitted
            again = sum(4 * p.numel() for name, _, weight in plan.pruned() for _, p in parts_of(name, weight))
            again += max((32 * (w[1] + 1) ** 2 + 16 * w.numel() for w in weights), default=0)
        return super().memory(plan) + _hessian_bytes(matrices) + one + again


def refitted(plan: Plan) -> dict[str, tuple[str, nn.Parameter]]:
    """The matrices that OBS solves for, with their names, by name of what the plan prunes: a weight itself, or the
    matrix that reads the features of coupled units."""
    matrices: dict[str, tuple[str, nn.Parameter]] = {}
    for name, _, weight in plan.pruned():
        if name in plan.criteria:
            continue
        if not isinstance(weight, CoupledWeights):
            matrices[name] = name, weight
        elif weight.reader is not None:  # `Plan.check`
            matrices[name] = weight.reader.name, weight.reader.parameter
    return matrices


def _matrices(plan: Plan) -> dict[str, nn.Parameter]:
    """Weights of Linear and Conv modules that the main criterion ranks, without biases, by name."""
    return {name: p for name, p in plan.ranked_by_main().items() if p.dim() > 1}


def _hessian_bytes(matrices: Mapping[str, nn.Parameter]) -> int:
    """At most: layers that share their input share a Hessian too."""
    return sum(4 * (p[0].numel() + 1) ** 2 for p in matrices.values())
