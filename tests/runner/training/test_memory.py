"""Memory of a step on fake tensors, against what torch's profiler sees of a real one."""

from __future__ import annotations

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from pruning import Distillation, LogitsHidden, NoDistillation, averaged, label_loss
from pruning import Logits as SoftLogits
from runner import models
from runner.config.optimizers import Optimizer
from runner.config.training import Training
from runner.stages.memory import Peak, fits
from runner.system.device import Precision
from runner.training.memory import AsOnGpu, CannotRun, Step, scoring_peak
from runner.training.training_data import TrainingData
from tests.families import FAMILIES, small_config

pytestmark = pytest.mark.usefixtures("one_thread")
QUESTIONS = "AutoModelForQuestionAnswering"
KINDS = {Precision.bf16: torch.bfloat16}


def config(**changes: object):
    from transformers import AutoConfig

    sizes = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 256}
    return AutoConfig.for_model("bert", **{**sizes, "vocab_size": 500, **changes})


def real_peak(how: Distillation, data: TrainingData, precision: Precision, live: bool) -> int:
    """Highest number of bytes in use, weights not included, in forward and backward passes of real networks."""
    import transformers

    torch.manual_seed(0)
    networks = [getattr(transformers, QUESTIONS).from_config(config()).train() for _ in range(1 + live)]
    given = {name: torch.ones(8, 96, dtype=torch.int64) for name in data.inputs}
    given["attention_mask"][0, 90:] = 0  # with padding, as nearly all batches
    options = {"output_hidden_states": how.needs_hidden}
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen, AsOnGpu():
        with torch.autocast("cpu", KINDS.get(precision), enabled=precision in KINDS):
            student = data.task.prediction(networks[0](**given, **options), given)
        loss = how.label_weight * label_loss(student, tuple(torch.zeros(8, dtype=torch.int64) for _ in student.logits))
        if how.needs_teacher:
            with torch.no_grad(), torch.autocast("cpu", KINDS.get(precision), enabled=precision in KINDS):
                teacher = data.task.prediction(networks[-1](**given, **options), given) if live else student
            loss = loss + how.loss(student, averaged([teacher]))
        loss.backward()
    events = [event for event in seen.profiler.kineto_results.events() if event.name() == "[memory]"]  # type: ignore[union-attr]
    now = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()  # type: ignore[attr-defined]
        most = max(most, now)
    assert most > 0
    return most


@pytest.mark.parametrize("precision", [Precision.float32, Precision.bf16], ids=lambda p: p.value)
@pytest.mark.parametrize(
    ("how", "live"), [(NoDistillation(), False), (SoftLogits(), False), (LogitsHidden(), True)],
    ids=["labels", "cached logits", "hidden states"],
)  # fmt: skip
def test_a_step_takes_what_a_real_one_takes(
    lesson: TrainingData, how: Distillation, live: bool, precision: Precision
) -> None:
    net = models.skeleton(QUESTIONS, config())
    step = Step(net, lesson, how, precision, [net] * live)
    assert step.peak(8, 96) == pytest.approx(real_peak(how, lesson, precision, live), rel=0.06)
    assert all(p.is_meta for p in net.parameters())


def test_more_examples_tokens_and_gradients_take_more(lesson: TrainingData) -> None:
    step = Step(models.skeleton(QUESTIONS, config()), lesson, NoDistillation(), Precision.float32)
    peaks = [step.peak(examples, 64) for examples in (8, 16, 24)]
    assert peaks[2] - peaks[1] == pytest.approx(peaks[1] - peaks[0], rel=0.02)  # a line, so a batch can be solved for
    assert step.peak(8, 128) > 1.9 * (peaks[0] - 4 * step.student.num_parameters())
    step.accumulates = True
    assert 0 < step.peak(8, 64) - peaks[0] <= 4 * step.student.num_parameters()
    assert 0 < scoring_peak(step.student, lesson.inputs, 8, 64) < peaks[0] / 3


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_runs_without_values(name: str, lesson: TrainingData) -> None:
    net = models.skeleton(QUESTIONS, small_config(FAMILIES[name], 500))
    step = Step(net, lesson, SoftLogits(), Precision.bf16)
    assert 0 < step.peak(2, 16) < step.peak(4, 16)


def test_a_network_that_reads_values_is_named(lesson: TrainingData) -> None:
    net = models.skeleton(QUESTIONS, config())
    net.forward = lambda **given: given["input_ids"].sum().item()  # type: ignore[method-assign]
    with pytest.raises(CannotRun):
        Step(net, lesson, NoDistillation(), Precision.float32).peak(2, 16)


def test_cards_and_the_batches_that_fit_them() -> None:
    def peak(each: float, held: int, other: int = 0) -> Peak:
        return Peak("pruning", Training(), 12, 384, held, int(12 * each), each, other)

    assert fits(peak(10**8, 10**9)) == "fits cards of 8 GB and more"
    assert fits(peak(10**9, 10**9)) == "fits cards of 16 GB and more; 8 GB: batch 4 fits"
    assert fits(peak(10**9, 10 * 10**9)) == "fits cards of 24 GB and more; 8 GB: no batch fits; 16 GB: batch 4 fits"
    assert fits(peak(10**8, 10**9, 7 * 10**9)) == "fits cards of 16 GB and more; 8 GB: no batch fits"
    assert fits(peak(8 * 10**9, 10**9)).startswith("fits no card of 80 GB; 8 GB: no batch fits; 16 GB: batch 1 fits; ")
    assert {o for o in Optimizer if o.copies} == {
        Optimizer.adamw_torch, Optimizer.sgd, Optimizer.adagrad, Optimizer.rmsprop
    }  # fmt: skip
