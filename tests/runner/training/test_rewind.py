"""A learning rate that begins anew with each mask update: against a table by hand, torch's own, and in a training."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from runner.config.training import SchedulerType
from runner.training import checkpoints
from runner.training.rewind import rewound
from runner.training.training_data import TrainingData
from tests.runner.training.test_average import LABELS, new_pruner, settings, student, weights
from tests.training import Interrupt, quiet, train

pytestmark = pytest.mark.usefixtures("one_thread")


def test_each_period_falls_to_the_floor_and_the_last_to_zero() -> None:
    rate = rewound(SchedulerType.linear, 0.5, 2, [1, 4, 8], 12)  # the update in the warm-up rewinds nothing
    by_hand = [0, 0.5, 1, 0.75, 1, 0.875, 0.75, 0.625, 1, 0.75, 0.5, 0.25, 0]
    assert [rate(step) for step in range(13)] == pytest.approx(by_hand)


@pytest.mark.parametrize("course", [SchedulerType.linear, SchedulerType.cosine])
@pytest.mark.parametrize("warmup", [0, 3])
def test_without_updates_it_is_the_course_of_transformers(course: SchedulerType, warmup: int) -> None:
    from transformers import get_scheduler

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    reference = get_scheduler(course.value, optimizer, warmup, 10)
    rate = rewound(course, 0.3, warmup, [], 10)
    for step in range(10):
        assert rate(step) == pytest.approx(reference.get_last_lr()[0])
        optimizer.step()
        reference.step()


def test_a_training_rewinds_at_its_updates_and_resumes_with_the_same_bits(
    tmp_path: Path,
    lesson: TrainingData,
) -> None:
    def interrupt(step: int, values: object) -> None:
        if step == 7:
            raise Interrupt

    rates, ends = {}, {}
    how = settings(None, lr_rewind=0.5, warmup_steps=0, save_steps=5)
    record = lambda step, values: rates.update({step: values["learning_rate"]})  # noqa: E731
    for name, attempts in (("whole", (record,)), ("interrupted", (interrupt, quiet))):
        for log in attempts:
            torch.manual_seed(5)
            model = student(tmp_path / "model")
            try:
                train(model, lesson, how, LABELS, new_pruner(model), 5, tmp_path / name, "t", log)
            except Interrupt:
                assert checkpoints.newest(tmp_path / name) == tmp_path / name / "checkpoint-5"
        ends[name] = weights(model)
    assert all(torch.equal(p, ends["interrupted"][name]) for name, p in ends["whole"].items())
    # Updates after steps 2, 4, 6 and 8: the steps after them have the highest rate again.
    expected = [1, 0.75, 1, 0.75, 1, 0.75, 1, 0.75, 1, 0.75, 0.5, 0.25]
    assert [rates[step] for step in range(1, 13)] == pytest.approx([1e-3 * part for part in expected])
