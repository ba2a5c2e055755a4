"""GPU memory that a run would take, and the cards that it fits: for `dry_run=true`, on any machine."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pruning import OBS, Calibrated, NoDistillation
from runner import models
from runner.config.training import Training
from runner.stages.checks import plan_of, projection_parameters
from runner.stages.teacher import caches_logits, has_teacher
from runner.stages.timing import trainings
from runner.training.inference import BATCH_TOKENS
from runner.training.memory import CannotRun, Step, scoring_peak
from runner.training.training_data import PAD_MULTIPLE

if TYPE_CHECKING:
    import datasets

    from runner.stages.prepare import Inputs
    from runner.training.training_data import TrainingData

CARDS = (8, 16, 24, 40, 80)
"""Sizes of cards in GB, 10^9 bytes: a little less than a card of this name has."""
CONTEXT = 0.7e9
"""Bytes that CUDA, cuBLAS and their workspaces take of a card."""
SPARE = 1.05
"""What torch's allocator reserves for a byte in use: blocks of several sizes leave gaps."""


@dataclass
class Peak:
    """The memory of one training at its highest, in bytes."""

    name: str
    training: Training
    examples: int
    """Examples in the largest batch."""
    tokens: int
    """The length that this batch is padded to."""
    held: int
    """What is there at every step: weights of student and teachers, the optimizer's state, masks and scores."""
    step: int
    """Gradients and activations at their highest."""
    each: float
    """What one example more adds to `step`."""
    other: int
    """What scoring or a mask update that reads calibration data takes instead of `step`."""

    def of(self, examples: float) -> float:
        """Bytes of a card for a batch of so many examples of this length."""
        step = self.step + (examples - self.examples) * self.each
        return CONTEXT + SPARE * (self.held + max(step, self.other))

    def largest(self, card: int) -> int:
        """The largest power of two as a batch that fits a card of so many GB; 0 if a single example does not."""
        sizes = (2**power for power in range(self.examples.bit_length() - 1, -1, -1))
        return next((size for size in sizes if self.of(size) <= card * 1e9), 0)


def on_a_gpu(inputs: Inputs) -> Iterator[str]:
    """The training that takes most memory, and the cards that it fits, as a line."""
    try:
        peaks = [_peak(inputs, name, training) for name, training in trainings(inputs)]
    except CannotRun as error:
        yield f"memory on a GPU: not known: the network does not run without values ({error})"
        return
    if not peaks:
        return
    most = max(peaks, key=lambda peak: peak.of(peak.examples))
    assert most.training.precision is not None
    taken = f"{most.held / 1e9:.1f} GB held, {most.step / 1e9:.1f} GB for gradients and activations"
    if most.other > most.step:
        taken = f"{most.held / 1e9:.1f} GB held, {most.other / 1e9:.1f} GB for scoring or calibration"
    yield (
        f"memory on a GPU: about {most.of(most.examples) / 1e9:.1f} GB for the {most.name} at batch {most.examples} of "
        f"{most.tokens} tokens in {most.training.precision.value} ({taken}, the rest for CUDA); {fits(most)}"
    )


def fits(peak: Peak) -> str:
    """The cards that a training fits, and the largest batch for those that it does not."""
    good = [card for card in CARDS if peak.of(peak.examples) <= card * 1e9]
    texts = [f"fits cards of {min(good)} GB and more" if good else f"fits no card of {max(CARDS)} GB"]
    for card in CARDS:
        if card not in good:
            size = peak.largest(card)
            texts.append(f"{card} GB: batch {size} fits" if size else f"{card} GB: no batch fits")
    return "; ".join(texts)


def _peak(inputs: Inputs, name: str, training: Training) -> Peak:
    """Estimate one training. Raises CannotRun."""
    prunes = training is inputs.experiment.train
    data = inputs.data if prunes else inputs.dense_data
    assert data is not None
    assert training.precision is not None
    step = _step(inputs, training, data) if prunes else _finetuning(inputs, training, data)
    examples, tokens = data.batches(training, inputs.experiment.seed).largest()
    multiple = PAD_MULTIPLE["cuda"]
    tokens = -(-tokens // multiple) * multiple
    one, whole = step.peak(1, tokens), step.peak(examples, tokens)
    each = (whole - one) / max(1, examples - 1)
    trained = models.trained_parameters(step.student)
    extra = projection_parameters(inputs.experiment, inputs.sources, inputs.net) if prunes else 0
    averages = training.average_weights is not None
    held = sum(4 * net.num_parameters() for net in (step.student, *step.teachers))
    held += (training.optimizer.state_bytes + 4 * averages) * (trained + extra) + 4 * extra
    held += 10 * _units(inputs) if prunes else 0  # two scores and a mask, as on the disk
    whole = max(whole, 4 * training.optimizer.copies * trained + 4 * trained)
    return Peak(name, training, examples, tokens, held, whole, each, _other(inputs, step, training, data))


def _step(inputs: Inputs, training: Training, data: TrainingData) -> Step:
    experiment, sources, architecture = inputs.experiment, inputs.sources, inputs.experiment.dataset.architecture
    how = experiment.distillation(sources.chosen)
    start = models.with_hidden_dropout(sources.base, experiment.student_train.hidden_dropout)
    student = models.student_skeleton(architecture, start.config, sources.chosen)
    models.freeze(student, experiment.model.frozen)
    networks = [student]
    if has_teacher(experiment) and not caches_logits(experiment, data):
        networks += [models.skeleton(architecture, teacher.config) for teacher in sources.teachers or [sources.base]]
    if how.needs_attention:
        for net in networks[:2]:
            net.set_attn_implementation("eager")
    assert training.precision is not None
    return Step(student, data, how, training.precision, networks[1:], training.gradient_accumulation_steps > 1)


def _finetuning(inputs: Inputs, training: Training, data: TrainingData) -> Step:
    net = models.skeleton(inputs.experiment.dataset.architecture, inputs.sources.base.config)
    assert training.precision is not None
    accumulates = training.gradient_accumulation_steps > 1
    return Step(net, data, NoDistillation(), training.precision, accumulates=accumulates)


def _other(inputs: Inputs, step: Step, training: Training, data: TrainingData) -> int:
    """Bytes of what happens between two steps: scoring on the validation examples, and calibration."""
    experiment, longest = inputs.experiment, max(data.features["length"])
    calibration = 0
    if training is experiment.train and inputs.updates and isinstance(experiment.criterion, Calibrated):
        calibration = calibration_bytes(inputs, experiment.criterion, data.features)
    if training.evaluate is None:
        return calibration
    return max(calibration, scoring_peak(step.student, data.inputs, BATCH_TOKENS["cuda"] // longest, longest))


def calibration_bytes(inputs: Inputs, criterion: Calibrated, features: datasets.Dataset) -> int:
    """Bytes that a mask update takes at most, without its forward and backward passes."""
    cached = 0
    if isinstance(criterion, OBS) and criterion.sequential:  # the outputs of a block for all windows, in two models
        windows = min(criterion.samples, len(features))
        cached = 8 * windows * max(features["length"]) * inputs.net.config.hidden_size
    return criterion.memory(plan_of(inputs.experiment, inputs.net)) + cached


def _units(inputs: Inputs) -> int:
    plan = plan_of(inputs.experiment, inputs.net)
    return sum(sum(group.units.values()) for group in plan.groups)
