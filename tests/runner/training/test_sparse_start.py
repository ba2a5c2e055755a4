"""A training that starts from a sparse model and prunes it further: its zeros stay, also through an interruption."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pruning import Block, Gradual, NofM, Pattern, Plan, Pruner, TrainingLength
from runner import models
from runner.models import Model
from runner.training import checkpoints
from runner.training.training_data import TrainingData
from tests.runner.training.test_average import LABELS, settings, student, weights
from tests.training import Interrupt, quiet, train

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("pattern", [Block(4, 1), NofM(2, 4), Block(8, 1, target_sparsity=0.9)], ids=str)
def test_zeros_stay_in_a_training_that_is_interrupted_and_ends_with_the_same_bits(
    tmp_path: Path,
    lesson: TrainingData,
    pattern: Pattern,
) -> None:
    def interrupt(step: int, values: object) -> None:
        if step == 7:
            raise Interrupt

    def start() -> tuple:
        torch.manual_seed(5)
        model = student(tmp_path / "model")
        chance = torch.Generator().manual_seed(0)
        for p in models.prunable_parameters(model, Model(path="x")).values():
            p.data[(torch.rand(p.shape[0] // 4, p.shape[1], generator=chance) < 0.4).repeat_interleave(4, 0)] = 0.0
        plan = Plan(models.prunable_parameters(model, Model(path="x")), pattern, keeps_zeros=True)
        return model, Pruner(plan, Gradual(start="2", end="8", frequency="2"), TrainingLength(12))

    ends = {}
    for name, attempts in (("whole", (quiet,)), ("interrupted", (interrupt, quiet))):
        for log in attempts:
            model, pruner = start()
            old = {name: p == 0 for name, p in pruner.parameters.items()}
            try:
                train(model, lesson, settings(0.9, save_steps=5), LABELS, pruner, 5, tmp_path / name, "t", log)
            except Interrupt:
                assert checkpoints.newest(tmp_path / name) == tmp_path / name / "checkpoint-5"
        ends[name] = weights(model)
        for layer in pruner.report():
            zero = model.get_parameter(layer.name) == 0
            assert bool((zero | ~old[layer.name]).all())
            assert (layer.violations, layer.zeros) == (0, int(zero.sum()))
        assert 0.39 < sum(int(zero.sum()) for zero in old.values()) / sum(zero.numel() for zero in old.values()) < 0.41
    assert all(torch.equal(p, ends["interrupted"][name]) for name, p in ends["whole"].items())
