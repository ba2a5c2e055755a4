"""A schedule, or another allocation, for some layers: updates of their own, and nothing changes for the others."""

import copy
import re
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pruning import (
    OBS,
    Block,
    Calibration,
    Global,
    Gradual,
    LayerOverride,
    Magnitude,
    NofM,
    Plan,
    Pruner,
    PruningError,
    Schedule,
    SnipMomentum,
    TrainingLength,
    Uniform,
    matrix_weights,
)
from pruning.timetable import Timetable
from tests.pruning.second_order.test_obs import Attention, data, loss_of, steps
from tests.pruning.test_by_layer import sparsities

PATTERN = Block(4, 1, target_sparsity=0.5)
SCHEDULE = Gradual(decay="linear", start="2", frequency="2", end="8")
LENGTH = TrainingLength(10)


@dataclass
class Course(Schedule):
    """A schedule that gives these steps."""

    course: dict[int, float] = field(default_factory=dict)

    def steps(self, length: TrainingLength) -> dict[int, float]:
        return self.course

    def sparsity(self, progress: float, target: float) -> float:
        return progress * target


@pytest.mark.parametrize(("course", "message"), [
    ({0: 0.5, 10: 1.0}, None),
    ({}, "Course.steps gives no update; at least one is needed, from step 0 to 10"),
    ({4: 0.5, 11: 1.0}, "Course.steps gives updates from step 4 to 11; at least one is needed, from step 0 to 10"),
    ({-1: 0.5, 4: 1.0}, "Course.steps gives updates from step -1 to 4; at least one is needed, from step 0 to 10"),
    ({4: 1.0, 8: 0.5}, "Course ends at the sparsity 0.25, not at the target 0.5: the last of its steps must have the"),
])  # fmt: skip
def test_a_schedule_of_ones_own_has_to_end_at_the_target_within_the_training(
    course: dict[int, float], message: str | None
) -> None:
    made = plan(Attention())
    if message is None:
        assert Timetable(made, Course(course=course), LENGTH).updates == course
        return
    with pytest.raises(PruningError, match=re.escape(message)):
        Timetable(made, Course(course=course), LENGTH)


def plan(model: nn.Module, main=None, **layers: LayerOverride) -> Plan:
    return Plan(matrix_weights(model), main or PATTERN, Global(max_per_layer=1.0, layers=layers))


def trained(model: nn.Module, made: Plan, criterion=None, schedule=SCHEDULE) -> tuple[Pruner, torch.optim.Optimizer]:
    pruner = Pruner(
        made, schedule, LENGTH, criterion or Magnitude(), calibration=Calibration(model, data(), loss_of(model))
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)
    pruner.attach(optimizer)
    return pruner, optimizer


def by_step(model: nn.Module, optimizer: torch.optim.Optimizer, name: str) -> dict[int, float]:
    """Step -> sparsity of a layer after it, where it changed."""
    seen: dict[int, float] = {}
    for number in range(10):
        steps(model, optimizer, range(number, number + 1))
        now = sparsities(model)[name]
        if now != max(seen.values(), default=0.0):
            seen[number + 1] = now
    return seen


def test_a_layer_is_pruned_from_its_own_start_to_its_own_end():
    model = Attention()
    own = {"start": "5", "end": "7", "frequency": "1"}
    pruner, optimizer = trained(model, plan(model, out=LayerOverride(target=0.75, schedule=own)))
    assert list(pruner.updates) == [2, 4, 5, 6, 7, 8]
    assert by_step(model, optimizer, "out") == {6: 0.375, 7: 0.75}
    pruner.check_reached()
    zeros = sparsities(model)
    assert zeros["q"] + zeros["k"] == 1.0


def test_the_other_layers_are_pruned_as_if_it_were_not_there():
    model, without = Attention(), Attention()
    own = LayerOverride(schedule={"start": "1", "end": "9", "frequency": "1", "decay": "cubic"})
    _, one = trained(model, plan(model, out=own))
    _, other = trained(without, plan(without, out=LayerOverride(excluded=True)))
    assert by_step(model, one, "q") == by_step(without, other, "q")


@pytest.mark.parametrize("sequential", [False, True])
def test_an_update_of_some_layers_leaves_the_survivors_of_the_others_alone(sequential):
    model = Attention()
    made = plan(model, out=LayerOverride(schedule={"start": "3", "end": "9", "frequency": "2"}))
    _, optimizer = trained(model, made, OBS(sequential=sequential))
    moved: dict[str, list[int]] = {"q": [], "out": []}
    for number in range(10):
        before = {name: model.get_parameter(f"{name}.weight").detach().clone() for name in moved}
        steps(model, optimizer, range(number, number + 1))
        for name, old in before.items():
            if float((model.get_parameter(f"{name}.weight").detach() - old).abs().max()) > 1e-3:
                moved[name].append(number + 1)
    assert moved == {"q": [4, 6, 8], "out": [5, 7, 9]}  # at 2 and 3 nothing is pruned yet


def test_patterns_criteria_and_schedules_mix():
    """A recipe like those of Intel Neural Compressor: sets of layers with pattern, criterion, scope, start and end."""
    model = Attention()
    made = plan(
        model,
        q=LayerOverride(pattern="2:4", criterion="magnitude", schedule={"start": 1, "end": 3, "frequency": 1}),
        k=LayerOverride(target=0.25, allocation="uniform", schedule={"end": "100%", "decay": "cubic"}),
    )
    assert [(group.exceptions, list(group.shapes)) for group in made.groups] == [
        (["spread uniform", "decay=cubic", "end=100%"], ["k.weight"]),
        ([], ["out.weight"]),
        (["by magnitude", "end=3", "frequency=1", "start=1"], ["q.weight"]),
    ]
    pruner, optimizer = trained(model, made, SnipMomentum())
    steps(model, optimizer, range(10))
    pruner.check_reached()
    assert sparsities(model) == {"k": 0.25, "out": 0.5, "q": 0.5}
    assert NofM(2, 4).violations(model.q.weight.detach()) == 0
    assert pruner.sparsity == 0.5


def test_a_uniform_part_of_a_global_allocation_gives_each_layer_its_target():
    for own, same in ((LayerOverride(allocation="uniform"), True), (LayerOverride(schedule={"start": "4"}), False)):
        model = Attention()
        with torch.no_grad():
            model.q.weight.mul_(0.5)
        made = Plan(matrix_weights(model), PATTERN, Global(max_per_layer=1.0, layers={"[qk]": own}))
        _, optimizer = trained(model, made)
        steps(model, optimizer, range(10))
        zeros = sparsities(model)
        assert zeros["q"] + zeros["k"] == 1.0
        assert (zeros["q"] == zeros["k"]) is same


def test_several_exceptions_of_one_layer_are_merged_field_by_field():
    made = Global(layers={"*": LayerOverride(schedule={"start": "1", "end": "5"}, allocation="uniform"),
                          "q": LayerOverride(schedule={"end": "9"})})  # fmt: skip
    assert made.override("q.weight") == LayerOverride(schedule={"start": "1", "end": "9"}, allocation="uniform")
    assert made.override("k.weight").schedule == {"start": "1", "end": "5"}


def test_a_resume_is_bit_for_bit_with_two_schedules_and_refused_with_others():
    own = LayerOverride(schedule={"start": "3", "end": "9", "frequency": "3"})
    model, again = Attention(), Attention()
    pruner, optimizer = trained(model, plan(model, out=own), SnipMomentum())
    steps(model, optimizer, range(5))
    tensors, values = copy.deepcopy(pruner.state_dict())
    again.load_state_dict(model.state_dict())
    resumed = Pruner(plan(again, out=own), SCHEDULE, LENGTH, SnipMomentum())
    resumed.load_state_dict(tensors, values)
    other = torch.optim.SGD(again.parameters(), lr=1e-6)
    resumed.attach(other)
    steps(model, optimizer, range(5, 10))
    steps(again, other, range(5, 10))
    resumed.check_reached()
    assert sparsities(again)["out"] == 0.5
    assert all(torch.equal(t, again.state_dict()[name]) for name, t in model.state_dict().items())
    changed = plan(again, out=LayerOverride(schedule={"start": "3", "end": "9", "frequency": "2"}))
    with pytest.raises(PruningError, match="differs in its allocation"):
        Pruner(changed, SCHEDULE, LENGTH, SnipMomentum()).load_state_dict(tensors, values)


@settings(deadline=None, derandomize=True, max_examples=40)
@given(start=st.integers(0, 6), gap=st.integers(1, 6), frequency=st.integers(1, 3), stop=st.integers(0, 12))
def test_a_timetable_gives_each_group_what_its_own_schedule_would(start, gap, frequency, stop):
    """Whatever the steps at which updates are really made, here each second one and then `stop`."""
    model, length = Attention(), TrainingLength(12)
    fields: dict[str, Any] = {"start": str(start), "end": str(start + gap), "frequency": str(min(gap, frequency))}
    made = plan(model, out=LayerOverride(schedule=fields))
    table = Timetable(made, SCHEDULE, length)
    own = replace(SCHEDULE, **fields).steps(length)
    main = SCHEDULE.steps(length)
    assert list(table.updates) == sorted(own.keys() | main.keys())
    reached: dict[str, float] = {}
    last = -1
    for step in [*range(0, stop, 2), stop]:
        reached |= table.due(last, step)
        last = step
    expected = [max((at for s, at in course.items() if s <= stop), default=None) for course in (main, own)]
    assert [reached.get(group.key) for group in made.groups] == expected
    for group, at in zip(made.groups, expected, strict=True):
        assert table.sparsity_at(group, stop) == (0.0 if at is None else pytest.approx(0.5 * at))
    assert table.planned(0.5) == {step: table.sparsity_at(made.groups[0], step) for step in table.updates}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            LayerOverride(schedule={"begin": "3"}),
            r"for out\.weight: schedule\.begin=3: Gradual has no begin; it has start,",
        ),
        (LayerOverride(schedule={"start": "soon"}), r"for out\.weight: start='soon' is no length of time"),
        (LayerOverride(schedule={"end": "40"}), r"for out\.weight: the schedule is longer than the training"),
        (LayerOverride(schedule={"start": "8"}), r"for out\.weight: the schedule does not fit into the training"),
        (LayerOverride(target=0.1, schedule={"initial": "0.3"}), r"for out\.weight: initial=0\.3 is not below"),
        (
            LayerOverride(allocation="local"),
            r"layers\['out'\]\.allocation=local: there is no such .* global or uniform",
        ),
    ],
)
def test_what_cannot_be_is_refused_with_its_place(override, message):
    with pytest.raises(PruningError, match=message):
        Pruner(plan(Attention(), out=override), SCHEDULE, LENGTH)


def test_a_schedule_that_no_layer_follows_need_not_fit():
    layers = {"*": LayerOverride(schedule={"start": "1", "end": "9", "frequency": "4"})}
    made = Plan(matrix_weights(Attention()), PATTERN, Uniform(layers=layers))
    long = Gradual(start="100", end="900", frequency="100")
    assert list(Pruner(made, long, LENGTH, Magnitude()).updates) == [1, 5, 9]
