"""The average of the weights since the last mask update: its formula, its zeros, its resume."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pruning import Block, Gradual, NoDistillation, Plan, Pruner, TrainingLength
from runner import models
from runner.config.training import Training
from runner.models import Model
from runner.system.device import Precision
from runner.system.errors import UserError
from runner.training import checkpoints
from runner.training.average import AVERAGE_FILE, WeightAverage
from runner.training.job import TrainingJob
from runner.training.supervision import Supervision
from runner.training.training_data import TrainingData
from tests.conftest import save_small_model
from tests.training import Interrupt, quiet, train

pytestmark = pytest.mark.usefixtures("one_thread")
LABELS = Supervision(NoDistillation())


def student(folder: Path):
    path = str(save_small_model(folder))
    return models.load("AutoModelForQuestionAnswering", models.find(path, "model.path", Model(path=path)))


def new_pruner(model, end: int = 8) -> Pruner:
    """To 80 % at step 2 and every second one until `end`, of 12."""
    plan = Plan(models.prunable_parameters(model, Model(path="x")), Block(4, 1))
    return Pruner(plan, Gradual(start="2", decay="linear", end=str(end), frequency="2"), TrainingLength(12))


def settings(decay: float | None, **changes: object) -> Training:
    values = {"per_device_train_batch_size": 4, "max_steps": 12, "learning_rate": 1e-3, "logging_steps": 1,
              "precision": Precision.float32, "average_weights": decay}  # fmt: skip
    return Training(**{**values, **changes})  # type: ignore[arg-type]


def weights(model) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize(("decay", "shares"), [(0.6, (1, 1 / 2, 0.4, 0.4)), (1.0, (1, 1 / 2, 1 / 3, 1 / 4))])
@pytest.mark.parametrize("pruned", [True, False])
def test_the_average_is_that_of_the_steps_after_the_last_update(
    tmp_path: Path, lesson: TrainingData, decay: float, shares: tuple[float, ...], pruned: bool
) -> None:
    seen, model = {}, student(tmp_path / "model")
    pruner = new_pruner(model) if pruned else None
    if not pruned:  # a fine-tuning: from the first step
        shares = tuple(max(1 - decay, 1 / n) for n in range(1, 13))
    train(model, lesson, settings(decay), LABELS, pruner, 0, tmp_path / "run", "t",
          lambda step, values: seen.update({step: weights(model)}))  # fmt: skip
    expected = {name: tensor.double() * 0 for name, tensor in seen[12].items()}
    for step, share in zip(range(13 - len(shares), 13), shares, strict=True):
        expected = {name: (1 - share) * a + share * seen[step][name].double() for name, a in expected.items()}
    for name, p in weights(model).items():
        assert torch.allclose(p.double(), expected[name], rtol=1e-5, atol=1e-7), name
    assert any(not torch.allclose(p, seen[12][name]) for name, p in weights(model).items())
    if pruner is not None:
        for name, mask in pruner.masks.items():
            zeros = ~mask.repeat_interleave(4, 0)
            assert zeros.any()
            assert not model.get_parameter(name)[zeros].view(torch.int32).any()  # +0.0 exactly


def test_an_interrupted_average_ends_with_the_same_bits(tmp_path: Path, lesson: TrainingData) -> None:
    def interrupt(step: int, values: object) -> None:
        if step == 11:
            raise Interrupt

    ends = {}
    for name, attempts in (("whole", (quiet,)), ("interrupted", (interrupt, quiet))):
        for log in attempts:
            torch.manual_seed(5)  # a new process starts from its seed
            model = student(tmp_path / "model")
            try:
                train(
                    model, lesson, settings(0.7, save_steps=5), LABELS, new_pruner(model), 5, tmp_path / name, "t", log
                )
            except Interrupt:
                last = checkpoints.newest(tmp_path / name)
                assert last is not None
                assert last.name == "checkpoint-10"
        ends[name] = weights(model)
    assert all(torch.equal(p, ends["interrupted"][name]) for name, p in ends["whole"].items())


def test_a_checkpoint_without_its_average_is_refused(tmp_path: Path, lesson: TrainingData) -> None:
    model = student(tmp_path / "model")
    job = TrainingJob(model, lesson, settings(0.9), LABELS, None, 0, tmp_path, "t")
    with pytest.raises(UserError, match=rf"{AVERAGE_FILE} is missing: .*delete .*checkpoint-5"):
        WeightAverage(job, tmp_path / "checkpoint-5").on_train_begin(None, None, None)  # type: ignore[arg-type]


def test_an_average_of_no_step_leaves_the_last_weights_and_says_so(
    tmp_path: Path, lesson: TrainingData, caplog: pytest.LogCaptureFixture
) -> None:
    ends = []
    for decay in (None, 0.9):
        torch.manual_seed(5)
        model = student(tmp_path / "model")
        train(model, lesson, settings(decay), LABELS, new_pruner(model, 12), 5, tmp_path / f"{decay}")
        ends.append(weights(model))
    assert all(torch.equal(p, ends[1][name]) for name, p in ends[0].items())
    assert "average_weights=0.9: no step follows the last mask update" in caplog.text


def test_without_an_average_the_identity_is_that_of_before() -> None:
    assert "average_weights" not in settings(None).determinants()
    assert settings(0.9).determinants()["average_weights"] == 0.9


@pytest.mark.parametrize("decay", [0.0, -0.5, 1.01])
def test_a_decay_out_of_range_is_refused(decay: float) -> None:
    with pytest.raises(UserError, match=rf"average_weights={decay} is out of range in train or finetune: above 0"):
        settings(decay)
