"""Trainings of models that shrink, interrupted and resumed: heads and channels, fewer layers, chains of patterns."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
import torch

from pruning import (
    Block,
    Coupled,
    FeedForward,
    Gradual,
    Heads,
    Pattern,
    Plan,
    Pruner,
    Structured,
    TrainingLength,
    couple,
)
from runner import models
from runner.models import Model, StudentLayers
from runner.training import checkpoints
from runner.training.training_data import TrainingData
from tests.conftest import Cli
from tests.runner.training.test_average import LABELS, settings, student, weights
from tests.runner.training.test_resume import COMMAND, histories, killed
from tests.training import quiet, train

pytestmark = pytest.mark.usefixtures("one_thread")


class Interrupt(Exception):
    pass


CASES: dict[str, tuple[Pattern, Pattern | None, StudentLayers | None]] = {
    "heads and channels": (Structured(), None, None),
    "channels of one layer": (FeedForward(), None, StudentLayers([1], 2)),
    "blocks of one layer": (Block(4, 1), None, StudentLayers([1], 2)),
    "units after blocks": (Structured(), Block(4, 1, target_sparsity=0.4), None),
    "blocks after units": (Block(4, 1, target_sparsity=0.8), Structured(), None),
    "more units": (Structured(target_sparsity=0.75), Structured(), None),
    "heads after blocks of one layer": (Heads(), Block(4, 1, target_sparsity=0.4), StudentLayers([0], 2)),
}
"""Pattern, the pattern of before, and the layers of the student."""


def planned(model, pattern: Pattern, keeps_zeros: bool) -> Plan:
    parameters = models.prunable_parameters(model, Model(path="x"))
    if isinstance(pattern, Coupled):
        return Plan(couple(model, parameters, pattern, 2), pattern, keeps_zeros=keeps_zeros)
    return Plan(parameters, pattern, keeps_zeros=keeps_zeros)


def start(folder: Path, pattern: Pattern, before: Pattern | None, layers: StudentLayers | None) -> tuple:
    """A student and its pruner, always of the same bits."""
    torch.manual_seed(5)
    model = models.keep_layers(student(folder), layers)
    if before is not None:
        from pruning import Magnitude, OneShot

        Pruner(planned(model, before, False), OneShot(start="0"), TrainingLength(12), Magnitude()).update_now()
    plan = planned(model, pattern, before is not None)
    return model, Pruner(plan, Gradual(start="2", end="8", frequency="2"), TrainingLength(12))


@pytest.mark.parametrize("at", [*(pytest.param(step, marks=pytest.mark.slow) for step in (1, 6)), 9])
@pytest.mark.parametrize("case", CASES)
def test_a_training_that_is_interrupted_ends_with_the_same_bits(
    case: str, at: int, tmp_path: Path, lesson: TrainingData
) -> None:
    def interrupt(step: int, values: object) -> None:
        if step == at + 1:
            raise Interrupt

    ends, reports, files = {}, {}, (tmp_path / "model", *CASES[case])
    for name, attempts in (("whole", (quiet,)), ("interrupted", (interrupt, quiet))):
        for log in attempts:
            model, pruner = start(*files)
            old = {part: p == 0 for part, p in pruner.plan.tensors.items()}
            try:
                train(model, lesson, settings(0.9, save_steps=at), LABELS, pruner, 5, tmp_path / name, "t", log)
            except Interrupt:
                assert checkpoints.newest(tmp_path / name) == tmp_path / name / f"checkpoint-{at}"
        ends[name], reports[name] = weights(model), (pruner.report(), pruner.history)
        pruner.check_reached()
        if CASES[case][1] is not None:  # the zeros of before stay
            assert all(bool((model.get_parameter(part)[zero] == 0).all()) for part, zero in old.items())
        for row in pruner.report():
            assert row.zeros == int((model.get_parameter(row.name) == 0).sum()) or row.skipped
    assert reports["whole"] == reports["interrupted"]
    assert all(torch.equal(p, ends["interrupted"][name]) for name, p in ends["whole"].items())


# The keys of each run in a chain; the last is killed.
KILLED: dict[str, tuple[tuple[str, ...], ...]] = {
    "units by work": (("pattern=structured", "allocation.cost=macs"),),
    "fewer layers that imitate theirs": (("pattern=4x1", "model.num_layers=1", "distill=logits_hidden"),),
    "units of fewer layers": (("pattern=ffn", "model.layers=[1]", "distill=hidden"),),
    "blocks after units": (("pattern=structured",), ("pattern=4x1",)),
    "more units after units": (("pattern=structured",), ("pattern=structured", "pattern.target_sparsity=0.75")),
}
SHORTER = (
    *(key for key in COMMAND if not key.startswith(("pattern=", "train.max_steps", "train.save_steps"))),
    "train.max_steps=60", "train.save_steps=10",
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("case", KILLED)
def test_a_run_of_a_model_that_shrinks_is_killed_twice_and_ends_as_one_that_was_not(
    case: str, cli: Cli, small_model: Path, tmp_path: Path
) -> None:
    command: tuple[str, ...] = (*SHORTER, "model=hub", f"model.path={small_model}")
    *before, last = KILLED[case]
    for keys in before:
        done = cli(*command, *keys, "output_dir=before")
        assert done.returncode == 0, done.stderr
        (first,) = (tmp_path / "before").glob("*/result.json")
        command += (f"model.sparse={first.parent}",)
    command += last
    assert killed(command, tmp_path, signal.SIGKILL, after=10).returncode == -signal.SIGKILL
    assert killed(command, tmp_path, signal.SIGKILL, after=40).returncode == -signal.SIGKILL
    done = cli(*command)
    assert done.returncode == 0, done.stderr
    whole = cli(*command, "output_dir=whole", f"tracking.uri=sqlite:///{tmp_path}/whole.db")
    assert whole.returncode == 0, whole.stderr
    (mine,), (theirs,) = tmp_path.glob("outputs/*/result.json"), tmp_path.glob("whole/*/result.json")
    weights_of = [(file.parent / "model" / "model.safetensors").read_bytes() for file in (mine, theirs)]
    assert weights_of[0] == weights_of[1]
    results = [json.loads(file.read_text()) for file in (mine, theirs)]
    for key in ("dense", "sparse", "verification", "stages", "identity", "footprint"):
        assert results[0][key] == results[1][key], key
    if not before:  # else the run of before is in the store too
        assert histories(tmp_path / "mlflow.db") == histories(tmp_path / "whole.db")
