"""The seven failures of the reference implementation: each has a check that holds here, and does not with the failure
put in.
"""

import copy
import math
import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from pruning import (
    Block,
    Global,
    Gradual,
    LayerOverride,
    NofM,
    Pattern,
    Pruner,
    PruningError,
    SnipMomentum,
    TrainingLength,
    matrix_weights,
    scores,
)
from pruning.allocation import Allocation
from pruning.coupled import Part
from pruning.masks import Masks
from pruning.plan import Plan
from pruning.selection import lowest

STEPS = 10
SCHEDULE = Gradual(decay="linear", start="2", frequency="2", end="8")


class Training:
    """A small network in a plain loop."""

    def __init__(
        self,
        model: nn.Module | None = None,
        pattern: Pattern | None = None,
        steps: int = STEPS,
        allocation: Allocation | None = None,
        **options,
    ):
        torch.manual_seed(0)
        self.model = model or nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 16))
        self.width = next(m.in_features for m in self.model.modules() if isinstance(m, nn.Linear))
        trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=1e-2)
        self.pattern = pattern or Block(4, 1, target_sparsity=0.75)
        plan = Plan(matrix_weights(self.model), self.pattern, allocation)
        self.pruner = Pruner(plan, SCHEDULE, TrainingLength(steps), **options)
        self.done = 0

    def run(self, steps: int, change: Callable[[], None] = lambda: None) -> "Training":
        if not self.pruner._hooks:
            self.pruner.attach(self.optimizer)
        for _ in range(steps):
            source = torch.Generator().manual_seed(self.done)
            inputs = torch.randn(4, self.width, generator=source)
            self.optimizer.zero_grad()
            self.model(inputs).square().mean().backward()
            change()
            self.optimizer.step()
            self.done += 1
        return self

    def sparsity(self) -> float:
        weights = list(self.pruner.parameters.values())
        return sum(int((w.detach() == 0).sum()) for w in weights) / sum(w.numel() for w in weights)


# --- what must hold --------------------------------------------------------------------------------------------------


def resume_keeps_the_sparsity():
    first = Training().run(8)
    assert first.sparsity() == 0.75
    second = Training()
    second.model.load_state_dict(first.model.state_dict())
    second.optimizer.load_state_dict(first.optimizer.state_dict())
    second.pruner.load_state_dict(*first.pruner.state_dict())
    second.done = 8
    assert second.run(1).sparsity() == 0.75


def rows_that_do_not_divide_are_left_dense():
    for pattern, odd in ((Block(4, 1, target_sparsity=0.75), nn.Linear(16, 130)), (NofM(2, 4), nn.Linear(130, 16))):
        even = nn.Linear(odd.out_features, 8) if odd.out_features % 4 == 0 else nn.Linear(16, 8)
        layers = [odd, even] if odd.out_features == even.in_features else [even, nn.Linear(8, 16), odd]
        training = Training(nn.Sequential(*layers), pattern).run(STEPS)
        training.pruner.check_reached()
        (skipped,) = [row for row in training.pruner.report() if row.skipped]
        assert 130 in skipped.shape
        assert skipped.zeros == 0
        assert bool(odd.weight.all())


def a_step_of_nan_gradients_does_not_poison_the_scores():
    training = Training()

    def poison() -> None:
        for p in training.model.parameters():
            assert p.grad is not None
            p.grad.fill_(math.nan)

    training.run(3)
    before = copy.deepcopy(training.model.state_dict()), copy.deepcopy(training.optimizer.state_dict())
    training.run(1, poison)
    training.model.load_state_dict(before[0])  # as a loop that notices does
    training.optimizer.load_state_dict(before[1])
    training.run(STEPS - 3)
    scores = [t for key, t in training.pruner.state_dict()[0].items() if key.startswith("score/")]
    assert len(scores) == 2
    assert all(bool(score.isfinite().all()) for score in scores)
    training.pruner.check_reached()
    assert training.sparsity() == 0.75


def a_training_that_ends_early_is_an_error():
    training = Training().run(5)
    assert 0 < training.sparsity() < 0.75
    with pytest.raises(PruningError, match="after 5 optimizer steps, before the last mask update at step 8"):
        training.pruner.check_reached()


def a_name_that_matches_nothing_is_an_error():
    with pytest.raises(PruningError, match="querry"):
        Training(allocation=Global(layers={"*.querry": LayerOverride(excluded=True)}))


def a_frozen_layer_stays_as_it_is():
    model = nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 16))
    frozen = model.get_parameter("0.weight").requires_grad_(False)
    before = frozen.clone()
    training = Training(model).run(STEPS)
    training.pruner.check_reached()
    assert torch.equal(frozen, before)
    assert [row.skipped for row in training.pruner.report()] == ["it is frozen", None]


def a_layer_of_zero_gradients_is_not_wiped_out():
    training = Training()

    def silence() -> None:
        gradient = training.model.get_parameter("0.weight").grad
        assert gradient is not None
        gradient.zero_()

    training.run(STEPS, silence)
    silent, other = training.pruner.report()
    assert bool(training.model.get_parameter("0.weight").all())
    assert (silent.zeros, other.sparsity) == (0, 0.75)
    assert "gradients were missing or zero" in (silent.skipped or "")


class Work(TorchDispatchMode):
    """Counts the numbers that operations read and write."""

    def __init__(self):
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for value in (*args, out):
            self.numbers += value.numel() if isinstance(value, torch.Tensor) else 0
        return out


def update_work(layers: int) -> int:
    torch.manual_seed(0)
    parameters = {f"{i:03}.weight": nn.Parameter(torch.randn(32, 32)) for i in range(layers)}
    optimizer = torch.optim.SGD(parameters.values(), lr=0.1, momentum=0.9)
    plan = Plan(parameters, Block(4, 1, target_sparsity=0.8))
    found = Pruner(plan, SCHEDULE, TrainingLength(STEPS), SnipMomentum())
    found.attach(optimizer)
    for p in parameters.values():
        p.grad = torch.randn_like(p)
    optimizer.step()
    with Work() as work:
        assert found.prune(0.5)
    return work.numbers


def an_update_is_linear_in_the_number_of_layers():
    few, many = update_work(10), update_work(40)
    assert many < 4.4 * few


def moments_of_pruned_weights_are_zero():
    training = Training().run(STEPS)
    assert training.sparsity() == 0.75
    for p in training.pruner.parameters.values():
        assert isinstance(p, nn.Parameter)
        state = training.optimizer.state[p]
        for key in ("exp_avg", "exp_avg_sq"):
            assert not bool(state[key][p == 0].any())
            assert bool(state[key][p != 0].any())


def what_is_configured_is_not_changed():
    given = (Block(4, 1, target_sparsity=0.75), SnipMomentum(), Global(layers={"0": LayerOverride(target=0.5)}))
    before = copy.deepcopy(given)
    Training(pattern=given[0], criterion=given[1], allocation=given[2]).run(STEPS).pruner.check_reached()
    assert given == before


# --- the failures, put in --------------------------------------------------------------------------------------------


def forget_the_state(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Pruner, "load_state_dict", lambda self, tensors, values: None)


def prune_what_does_not_fit(patch: pytest.MonkeyPatch) -> None:
    for cls in (Block, NofM):
        patch.setattr(cls, "misfit", lambda self, shape: None)


def take_any_gradient(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(scores, "_all_finite", lambda tensors: True)


def say_nothing(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Pruner, "check_reached", lambda self: None)


def accept_any_name(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Allocation, "check_names", lambda self, parameters: None)


def prune_frozen_layers(patch: pytest.MonkeyPatch) -> None:
    class Thawed(Plan):
        def __init__(self, parameters, pattern, allocation):
            frozen = [p for p in parameters.values() if not p.requires_grad]
            for p in frozen:
                p.requires_grad_()
            super().__init__(parameters, pattern, allocation)
            for p in frozen:
                p.requires_grad_(False)

    patch.setattr(sys.modules[__name__], "Plan", Thawed)


def rank_by_zeros(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(scores, "_any", lambda values: True)


def look_at_all_layers_for_each(patch: pytest.MonkeyPatch) -> None:
    def select(self, costs, fraction, quotas):
        chosen = {}
        for name in costs:
            flat = torch.cat([costs[n] for n in sorted(costs)])
            sizes = [costs[n].numel() for n in sorted(costs)]
            whole = lowest(flat, round(fraction * flat.numel()))
            chosen[name] = dict(zip(sorted(costs), whole.split(sizes), strict=True))[name]
        return chosen

    patch.setattr(Global, "select", select)


def leave_the_moments(patch: pytest.MonkeyPatch) -> None:
    zero = Masks._zero

    def only_weights(self: Masks, name: str, part: Part | None, tensor: Tensor) -> None:
        if isinstance(tensor, nn.Parameter):
            zero(self, name, part, tensor)

    patch.setattr(Masks, "_zero", only_weights)


def write_into_the_configuration(patch: pytest.MonkeyPatch) -> None:
    attach = Pruner.attach

    def change(self, optimizer):
        self.plan.allocation.max_per_layer = 0.99
        attach(self, optimizer)

    patch.setattr(Pruner, "attach", change)


FAILURES: dict[str, list[tuple[Callable[[], None], Callable[[pytest.MonkeyPatch], None]]]] = {
    "1 no resume": [(resume_keeps_the_sparsity, forget_the_state)],
    "2 rows that do not divide crash": [(rows_that_do_not_divide_are_left_dense, prune_what_does_not_fit)],
    "3 one NaN step poisons the scores": [(a_step_of_nan_gradients_does_not_poison_the_scores, take_any_gradient)],
    "4 silently short, names ignored": [
        (a_training_that_ends_early_is_an_error, say_nothing),
        (a_name_that_matches_nothing_is_an_error, accept_any_name),
    ],
    "5 frozen and dead layers": [
        (a_frozen_layer_stays_as_it_is, prune_frozen_layers),
        (a_layer_of_zero_gradients_is_not_wiped_out, rank_by_zeros),
    ],
    "6 quadratic updates": [(an_update_is_linear_in_the_number_of_layers, look_at_all_layers_for_each)],
    "7 moments alive, config changed": [
        (moments_of_pruned_weights_are_zero, leave_the_moments),
        (what_is_configured_is_not_changed, write_into_the_configuration),
    ],
}
CHECKS = [pytest.param(*pair, id=f"{name[0]} {pair[0].__name__}") for name, pairs in FAILURES.items() for pair in pairs]


def test_all_seven_are_here():
    assert [name[0] for name in FAILURES] == list("1234567")
    assert len(CHECKS) == 10


@pytest.mark.parametrize(("check", "put_in"), CHECKS)
def test_it_does_not_happen_here(check, put_in):
    check()


@pytest.mark.parametrize(("check", "put_in"), CHECKS)
def test_the_check_fails_with_the_failure_put_in(check, put_in, monkeypatch):
    put_in(monkeypatch)
    with pytest.raises((Exception, pytest.fail.Exception)):
        check()
