"""What a run would do, without doing it: `dry_run=true`. Weights and data are loaded and features made; a few real
optimizer steps measure time and memory. Nothing is logged, and nothing is stored but the caches.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from pruning import OBS, Calibrated, CoupledWeights, Weight, matrix_weights, parts_of
from runner import models
from runner.config.experiment import Experiment, Origin
from runner.config.training import Training
from runner.speed.settings import CpuBenchmark
from runner.stages.announce import announce
from runner.stages.benchmark import seconds
from runner.stages.checks import plan_of
from runner.stages.memory import calibration_bytes, on_a_gpu
from runner.stages.prepare import Inputs, average_bytes, new_pruner, resolve
from runner.stages.timing import duration, timed, tokens, trainings
from runner.system import files, ranks
from runner.system.device import peak_memory
from runner.system.disk import human_bytes
from runner.system.errors import UserError
from runner.system.process import set_up_process

if TYPE_CHECKING:
    from pruning.groups import Group
    from runner.training.training_data import TrainingData

log = logging.getLogger(__name__)


def show(experiment: Experiment, origin: Origin) -> None:
    """Print what this run would do.

    Raises:
        UserError, PruningError: what the run would refuse.
    """
    if ranks.world_size() > 1:
        raise UserError("dry_run=true looks at one process: leave torchrun or accelerate launch out")
    set_up_process()
    inputs = resolve(experiment, origin, reuse=False)
    announce(inputs)
    lines = [*existing(inputs), *layers(inputs), *steps_and_sparsity(inputs), *unlabelled(inputs)]
    lines += calibration(inputs)
    lines += [f"disk: {need.what} {human_bytes(need.bytes)} at most in {need.folder}" for need in inputs.disk_needs]
    learns = experiment.train.takes_steps or not experiment.prune or not experiment.model.finetuned
    lines += [*on_a_gpu(inputs), *cost(inputs, inputs.data)] if inputs.data is not None and learns else []
    lines += time_of_benchmark(experiment)
    print(*lines, sep="\n", flush=True)
    log.info("nothing was trained (dry_run=true)")


def existing(inputs: Inputs) -> Iterator[str]:
    """What exists already."""
    dense = inputs.dense_folder
    if files.read_json(inputs.folder / "result.json") is not None:
        yield f"already finished: {inputs.folder}"
    if inputs.experiment.model.finetuned:
        yield f"dense model: {inputs.sources.base.path}, as given"
    elif files.is_intact(dense):
        yield f"dense model: cached in {dense}"
    else:
        assert inputs.dense_data is not None
        steps = inputs.dense_data.length(inputs.experiment.finetune).steps
        yield f"dense model: fine-tuned first, {steps} optimizer steps, and cached in {dense}"


def layers(inputs: Inputs) -> Iterator[str]:
    """Layers that would be pruned, one line a kind; and those that would not, with the reason."""
    experiment, net = inputs.experiment, inputs.net
    matrices = matrix_weights(net)
    everything = sum(weight.numel() for weight in matrices.values())
    if not experiment.prune:
        return
    if (chosen := inputs.sources.chosen) is not None:
        yield f"student: {chosen}; {net.num_parameters():,} of {inputs.dense_parameters:,} parameters"
    plan = plan_of(experiment, net)
    zeros = 0.0
    for group in plan.groups:
        target, units = group.pattern.target, sum(group.units.values())
        weights = {name: plan.parameters[name] for name in group.shapes}
        alike = Counter((models.kind_of(name), shape, slices(weights[name])) for name, shape in group.shapes.items())
        parts = [p for name, weight in weights.items() for _, p in parts_of(name, weight) if p.dim() > 1]
        zeros += target * sum(p.numel() for p in parts)
        own = _exceptions(group)
        of = " of the multiply-accumulates" if group.macs else " of the time" if group.saved else ""
        yield f"pattern {group.pattern}{own}, target {target:g}{of}: {len(group.shapes)} layers, {units:,} units"
        for (kind, shape, spanned), count in alike.items():
            yield f"  {count:>3} x {kind} {list(shape)}{spanned}"
    reasons = Counter(plan.left.values())
    yield from (f"left dense: {count} layers: {reason}" for reason, count in reasons.items())
    outside = sorted(matrices.keys() - plan.tensors.keys())
    if outside:
        yield f"not candidates: {', '.join(name.removesuffix('.weight') for name in outside)}"
    if (predicted := plan.predict()) is not None:
        yield f"predicted at the target: {predicted}; how many weights are zero depends on the scores"
        return
    least = "about " if any(group.macs for group in plan.groups) else ""
    least = "at least " if plan.keeps_zeros else least  # a group of N:M, or a layer that keeps its zeros, may have more
    yield f"zeros in the end: {least}{zeros / everything:.4f} of all Linear and Conv weights"


def slices(weight: Weight) -> str:
    """The parts of units that span several matrices, in words; empty for a matrix."""
    if not isinstance(weight, CoupledWeights):
        return ""
    rows, columns = (", ".join(models.kind_of(p.name) for p in weight.parts if p.axis == axis) for axis in (0, 1))
    return f": rows of {rows}; columns of {columns}"


def steps_and_sparsity(inputs: Inputs) -> Iterator[str]:
    """Step and sparsity of the mask updates."""
    experiment = inputs.experiment
    if inputs.updates:
        yield f"sparsity by step: {_some(inputs.updates)}"
    if inputs.data is None or not any(layer.schedule for layer in experiment.allocation.layers.values()):
        return
    pruner = new_pruner(experiment, inputs.net, inputs.data.length(experiment.train))
    for group in pruner.plan.groups:
        if group.schedule:
            yield f"  of pattern {group.pattern}{_exceptions(group)}: {_some(pruner.timetable.of(group))}"


def _some(updates: Mapping[int, float]) -> str:
    """Steps with their sparsities, without those in the middle if they are many."""
    texts = [f"{step}: {sparsity:.3f}" for step, sparsity in updates.items()]
    return ", ".join(texts if len(texts) <= 8 else [*texts[:4], "...", *texts[-3:]])


def _exceptions(group: Group) -> str:
    """Criterion, allocation and schedule that are not the main ones, in words; empty if there are none."""
    return " " + ", ".join(group.exceptions) if group.exceptions else ""


def unlabelled(inputs: Inputs) -> Iterator[str]:
    """Training examples without labels."""
    examples, data, dense = inputs.examples.unlabelled, inputs.data, inputs.dense_data
    if examples is not None and data is not None and dense is not None:
        yield (
            f"without labels: {len(examples):,} further examples, distilled only: "
            f"{len(data.features) - len(dense.features):,} of {len(data.features):,} features of each epoch"
        )


def calibration(inputs: Inputs) -> Iterator[str]:
    """Data and memory of mask updates that read training windows."""
    criterion = inputs.experiment.criterion
    if not (inputs.updates and isinstance(criterion, Calibrated)) or inputs.data is None:
        return
    windows = min(criterion.samples, len(inputs.data.features))
    again = ", and again for the input of each layer" if isinstance(criterion, OBS) and criterion.sequential else ""
    memory = human_bytes(calibration_bytes(inputs, criterion, inputs.data.features))
    yield (
        f"calibration of each mask update: {windows} training windows{again}; up to {memory} of memory, forward and "
        "backward passes not included"
    )


def cost(inputs: Inputs, data: TrainingData) -> Iterator[str]:
    """Memory and time, extrapolated from a few real steps."""
    both, whole = trainings(inputs), inputs.dense_parameters
    experiment = inputs.experiment
    first = experiment.train if experiment.trains_student else experiment.finetune
    stats = timed(inputs, data, first)
    most = peak_memory()
    peak = "" if most is None else f"; this process took {human_bytes(most)} at most"
    everything, trained = inputs.net.num_parameters(), models.trained_parameters(inputs.net)
    frozen = f"; {everything - trained:,} of {everything:,} parameters are frozen" if trained < everything else ""
    each = [(training, trained if training is experiment.train else whole) for _, training in both]
    yield f"memory: {memory(whole, each)}{frozen}{peak}"
    for name, training in both:
        if training is not first and inputs.sources.chosen is not None:  # another network
            stats = timed(inputs, data, training)
        seconds = tokens(inputs, training) * stats.seconds / stats.tokens
        yield (
            f"time of the {name}: about {duration(seconds)}, at {stats.tokens / stats.seconds:,.0f} tokens "
            f"a second over {stats.steps} steps on this machine as busy as it is now; scoring and the teacher not "
            "included"
        )


def memory(parameters: int, trainings: Sequence[tuple[Training, int]]) -> str:
    """The largest memory of trainings one after the other, without activations: 4 bytes for each parameter; for each
    that is trained 4 more, the optimizer's state, and 4 more if their average, or the best of them, is held.

    Args:
        trainings: each with the number of parameters that it trains.
    """
    held = max((average_bytes(training, trained) for training, trained in trainings), default=0)
    most = max(((4 + training.optimizer.state_bytes) * trained + average_bytes(training, trained)
                for training, trained in trainings), default=0)  # fmt: skip
    names = {training.optimizer for training, _ in trainings}
    plain = all(optimizer.has_second_moment for optimizer in names)
    state = "AdamW's moments" if plain else f"the state of {' and '.join(sorted(o.value for o in names))}"
    parts = f"gradients, {state} and a second set of weights" if held else f"gradients and {state}"
    return f"weights, {parts} {human_bytes(4 * parameters + most)}"


def time_of_benchmark(experiment: Experiment) -> Iterator[str]:
    """What benchmark=cpu adds."""
    asked, longest = experiment.benchmark, experiment.dataset.max_seq_length
    if isinstance(asked, CpuBenchmark):
        lengths = ", ".join(map(str, asked.lengths(longest)))
        yield (
            f"time of the benchmark: about {duration(seconds(asked, longest))}, and the making of the runtimes "
            f"(lengths {lengths}; {asked.combinations(longest)} combinations)"
        )
