"""Arguments of a wrong type are refused in a sentence with what to write instead; those of numpy are numbers."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from pruning import (
    OBS,
    Block,
    Calibration,
    Global,
    Gradual,
    Magnitude,
    NofM,
    OneShot,
    Plan,
    Pruner,
    PruningError,
    TrainingLength,
    Uniform,
    matrix_weights,
)
from pruning.transformers import PruningCallback

BLOCK, GRADUAL, LENGTH = Block(4, 1), Gradual(), TrainingLength(20)
NET: Any = nn.Sequential(nn.Linear(16, 8), nn.Linear(8, 16))
ANY: Any = None


def plan(parameters: Any = ANY, pattern: Any = BLOCK, allocation: Any = None) -> Plan:
    return Plan(matrix_weights(NET) if parameters is ANY else parameters, pattern, allocation)


def pruner(schedule: Any = GRADUAL, length: Any = LENGTH, **others: Any) -> Pruner:
    return Pruner(plan(), schedule, length, **others)


@pytest.mark.parametrize(("make", "message"), [
    (lambda: plan(NET), r"parameters must be .* Mapping, such as matrix_weights\(model\), not an object of Sequential"),
    (lambda: plan(pattern="4x1"), r'pattern must be of the type Pattern, .* or parse\("4x1"\), not \'4x1\''),
    (lambda: plan(pattern=Block), r"pattern is the class Block: make an object of it, Block\(...\)"),
    (lambda: plan(allocation="uniform"), r"allocation must be .*, such as Global\(\), not 'uniform'"),
    (lambda: plan(allocation=Uniform), "allocation is the class Uniform"),
    (lambda: pruner("gradual"), r"schedule must be of the type Schedule, such as Gradual\(\), not 'gradual'"),
    (lambda: pruner(length=20), r"length must be .*, such as TrainingLength\(steps=1000\), not 20"),
    (lambda: pruner(criterion="magnitude"), r"criterion must be .*, such as Magnitude\(\), not 'magnitude'"),
    (lambda: pruner(criterion=Magnitude), "criterion is the class Magnitude"),
    (lambda: pruner().attach(NET), "optimizer must be of the type Optimizer, .*, not an object of Sequential"),
    (lambda: pruner(Gradual(start=ANY)), 'start=None is no length of time: .* \\("1000"\\), "2.5 epochs" or "10%"'),
    (lambda: Gradual(start=0.1), "start=0.1 is no length of time"),  # type: ignore[arg-type]
    (lambda: Gradual(initial=0.7), r'initial=0.7 is neither a sparsity \("0.7"\)'),  # type: ignore[arg-type]
    (lambda: TrainingLength(20.0), "steps=20.0 must be a whole number of optimizer steps, 0 or more, such as 1000"),  # type: ignore[arg-type]
    (lambda: TrainingLength(-1), "steps=-1 must be a whole number"),
    (lambda: Block("4", 1), "rows='4', cols=1: a block needs .* a whole number"),  # type: ignore[arg-type]
    (lambda: Block(4, 1, target_sparsity=None), r"target_sparsity=None must be in \(0, 1\), a fraction of zeros"),
    (lambda: Block(4, 1, target_sparsity="0.8"), "target_sparsity='0.8' must be"),  # type: ignore[arg-type]
    (lambda: NofM(2.0, 4.0), r"n=2.0, m=4.0: N:M needs two whole numbers, such as NofM\(2, 4\)"),  # type: ignore[arg-type]
    (lambda: PruningCallback("4x1"), "pattern must be of the type Pattern"),  # type: ignore[arg-type]
    (lambda: PruningCallback(Block(4, 1), criterion=OBS()), r"OBS reads calibration data, .* prune by pruning\.obs"),
])  # fmt: skip
def test_a_wrong_type_is_refused(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(PruningError, match=message):
        make()


def test_a_missing_argument_is_pythons_own_error() -> None:
    with pytest.raises(TypeError, match=r"Plan\.__init__\(\) missing 1 required positional argument: 'pattern'"):
        Plan(matrix_weights(NET))  # type: ignore[call-arg]


def test_numbers_of_numpy_are_numbers_and_leave_the_same_state() -> None:
    plans = (Block(4, 1, target_sparsity=0.5), Block(np.int64(4), np.int64(1), target_sparsity=np.float64(0.5)))  # type: ignore[arg-type]
    ours, theirs = (
        Pruner(plan(pattern=pattern, allocation=Global()), Gradual(), TrainingLength(steps))  # type: ignore[arg-type]
        for pattern, steps in zip(plans, (20, np.int64(20)), strict=True)
    )
    assert ours.updates == theirs.updates
    assert ours.state_dict()[1] == theirs.state_dict()[1]
    assert repr(NofM(np.int64(2), np.int64(4))) == repr(NofM(2, 4))  # type: ignore[arg-type]


def interrupted(*_: Any) -> Any:
    raise KeyboardInterrupt


def test_an_optimizer_has_one_pruner_for_a_weight() -> None:
    """A cell of a notebook that is run twice would prune twice as much."""
    optimizer = torch.optim.AdamW(NET.parameters())
    first, second = pruner(), pruner()
    first.attach(optimizer)
    with pytest.raises(
        PruningError, match=r"another pruner is attached to this optimizer and prunes 0\.weight too: detach"
    ):
        second.attach(optimizer)
    first.detach()
    second.attach(optimizer)
    second.detach()
    failing = Pruner(
        plan(), OneShot(start="0"), LENGTH, OBS(), calibration=Calibration(NET, [torch.ones(1, 16)], interrupted)
    )
    with pytest.raises(KeyboardInterrupt):
        failing.attach(optimizer)
    for name, weight in matrix_weights(NET).items():  # of different weights there may be several
        Pruner(Plan({name: weight}, Block(4, 1)), Gradual(), TrainingLength(20)).attach(optimizer)
