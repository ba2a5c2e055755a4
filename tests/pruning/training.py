"""A training small enough to look at every weight after every step: networks, loops, and what must hold."""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor, nn

from pruning import (
    Allocation,
    Block,
    Criterion,
    Gradual,
    NofM,
    Pattern,
    Plan,
    Pruner,
    Regularizer,
    Schedule,
    TrainingLength,
    matrix_weights,
)

STEPS = 12
LENGTH = TrainingLength(STEPS)
SCHEDULE = Gradual(decay="cubic", start="2", frequency="2", end="8")
PATTERNS = {
    "4x1": lambda: Block(4, 1, target_sparsity=0.75),
    "1x1": lambda: Block(1, 1, target_sparsity=0.9),
    "2x4": lambda: Block(2, 4, target_sparsity=0.5),
    "rows": lambda: Block(1, 0, target_sparsity=0.5),
    "columns": lambda: Block(0, 1, target_sparsity=0.5),
    "2:4": lambda: NofM(2, 4),
    "1:4": lambda: NofM(1, 4),
}
OPTIMIZERS = {
    "adamw-foreach": lambda ps: torch.optim.AdamW(ps, lr=1e-2, weight_decay=0.1, foreach=True),
    "adamw-fused": lambda ps: torch.optim.AdamW(ps, lr=1e-2, weight_decay=0.1, fused=True),
    "adam-amsgrad": lambda ps: torch.optim.Adam(ps, lr=1e-2, weight_decay=0.1, amsgrad=True, foreach=False),
    "sgd-momentum": lambda ps: torch.optim.SGD(ps, lr=1e-2, momentum=0.9, nesterov=True, weight_decay=0.1),
}


def network(seed: int = 0, **kwargs) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(8, 16, **kwargs), nn.Tanh(), nn.Linear(16, 8, **kwargs), nn.Tanh())


def three_layers() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 8))


class Branched(nn.Module):
    """Two branches of equal weight, the second of which can be dead."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)
        self.share: float | None = 1.0
        """What counts of b; None: b is not even called."""

    def forward(self, inputs: Tensor) -> Tensor:
        outputs = torch.tanh(self.a(inputs))
        return outputs if self.share is None else outputs + self.share * torch.tanh(self.b(inputs))


def build(
    model: nn.Module | Mapping[str, nn.Parameter],
    pattern: Pattern,
    criterion: Criterion | None = None,
    allocation: Allocation | None = None,
    schedule: Schedule = SCHEDULE,
    regularizer: Regularizer | None = None,
) -> Pruner:
    weights = matrix_weights(model) if isinstance(model, nn.Module) else model
    return Pruner(Plan(weights, pattern, allocation), schedule, LENGTH, criterion, regularizer)


def loss_of(model: nn.Module, step: int, dtype: torch.dtype = torch.float32) -> Tensor:
    random = torch.Generator().manual_seed(1000 + step)
    inputs, targets = (torch.randn(5, 8, generator=random).to(dtype) for _ in range(2))
    return (model(inputs) - targets).square().mean()


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    steps: Iterable[int],
    each: Callable[[int], object] = lambda step: None,
    dtype: torch.dtype = torch.float32,
) -> None:
    for step in steps:
        optimizer.zero_grad()
        loss_of(model, step, dtype).backward()
        optimizer.step()
        each(step)


def gradient_of(parameter: nn.Parameter) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad


def zeros(model: nn.Module) -> Tensor:
    """Which weights are zero, flat, in the order of the names."""
    return torch.cat([(p == 0).flatten() for _, p in sorted(matrix_weights(model).items())])


def updates_of(schedule: Schedule, length: TrainingLength, target: float) -> dict[int, float]:
    """Optimizer steps taken before an update -> sparsity from then on."""
    return {step: schedule.sparsity(progress, target) for step, progress in schedule.steps(length).items()}


def sparsity_after(pattern: Pattern, steps_taken: int, schedule: Schedule = SCHEDULE) -> float:
    updates = updates_of(schedule, LENGTH, pattern.target)
    return max([value for step, value in updates.items() if step <= steps_taken], default=0.0)


def has_sparsity(zero: Tensor, model: nn.Module, pattern: Pattern, sparsity: float) -> bool:
    """To the unit where all units are of one size, else to half of the largest."""
    shapes = [p.flatten(1).shape for p in matrix_weights(model).values()]
    sizes = {pattern.unit_zeros(shape) for shape in shapes}
    count, elements = int(zero.sum()), zero.numel()
    if len(sizes) > 1:
        return abs(count - sparsity * elements) <= max(sizes) / 2
    units = sum(shape.numel() // pattern.unit_size(shape) for shape in shapes)
    return count == round(sparsity / pattern.max_sparsity * units) * sizes.pop()


def masks_of(pruner: Pruner) -> dict[str, Tensor]:
    """Copies of the masks as they are kept: one number per block, or per weight."""
    tensors = snapshot(pruner)
    return {key.removeprefix("mask//"): t for key, t in tensors.items() if key.startswith("mask//")}


def snapshot(pruner: Pruner) -> dict[str, Tensor]:
    """Copies of the scores and masks."""
    return {key: t.clone() for key, t in pruner.state_dict()[0].items()}


def same(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def is_positive_zero(values: Tensor) -> bool:
    return not bool((values != 0).any()) and not bool(torch.signbit(values).any())


def moments_of(optimizer: torch.optim.Optimizer, p: nn.Parameter) -> Iterator[Tensor]:
    for moment in optimizer.state[p].values():
        if isinstance(moment, Tensor) and moment.shape == p.shape and moment.is_floating_point():
            yield moment


def assert_enforced(model: nn.Module, optimizer: torch.optim.Optimizer, moments: int = 1) -> None:
    """Zero weights are +0.0, and so is all that the optimizer remembers of them; it does remember the others."""
    for p in matrix_weights(model).values():
        pruned = p == 0
        assert is_positive_zero(p[pruned])
        found = list(moments_of(optimizer, p))
        assert len(found) >= moments
        for moment in found:
            assert is_positive_zero(moment[pruned])
            assert pruned.all() or bool(moment[~pruned].any())


@dataclass
class GivenSparsities(Schedule):
    """Sparsities by step, whatever they are."""

    plan: dict[int, float] = field(default_factory=dict)

    def steps(self, length: TrainingLength) -> dict[int, float]:
        return {step: (i + 1) / len(self.plan) for i, step in enumerate(self.plan)}

    def sparsity(self, progress: float, target: float) -> float:
        return [0.0, *self.plan.values()][round(progress * len(self.plan))]


def sparse_network(seed: int = 0) -> nn.Sequential:
    """Two thirds of all weights are zero, some of them negative."""
    model = network(seed)
    for p in matrix_weights(model).values():
        chance = torch.rand(p.shape, generator=torch.Generator().manual_seed(p.shape[0]))
        p.data[chance < 0.67] = 0.0
        p.data[chance < 0.1] = -0.0
    return model


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
