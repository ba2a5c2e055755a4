"""Points of score against speed, of models that are pruned in one shot by OBS: pruned, scored and timed, one by one."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pruning import OBS, Coupled, Pattern, obs_each
from runner import models
from runner.speed.machine import machine
from runner.speed.measure import batch_of
from runner.speed.runtimes import available, default_precisions
from runner.speed.timing import Timing, time_all
from runner.stages.checks import plan_of
from runner.stages.inputs import identity_of
from runner.stages.prune import load_student
from runner.stages.score import score_once
from runner.system import files
from runner.system.device import device
from runner.system.fingerprint import SHORT, hash_json
from runner.training.inference import score

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from pruning import LayerReport
    from runner.config.experiment import Experiment
    from runner.speed.runtimes import Runtime
    from runner.stages.prepare import Inputs

log = logging.getLogger(__name__)

INT8 = "int8"


@dataclass(frozen=True)
class Setting:
    """How models are timed: one text at a time."""

    length: int
    """Tokens of a text."""
    threads: int
    seconds: float
    """To spend for each model, at least five turns."""
    int8: bool
    """Whether runtimes in int8 are timed too. Scores are of float32."""

    @property
    def precisions(self) -> tuple[str, ...]:
        """Precisions of the sparse runtime."""
        return tuple(each for each in default_precisions() if self.int8 or each != INT8)

    def wants(self, runtime: str, pattern: Pattern | None) -> bool:
        """Whether a runtime is timed for a pattern; None: for the dense model. Dense runtimes take as long for zeros as
        for other numbers, except where units are cut; torch is what the others are compared with."""
        if runtime.endswith(INT8) and not self.int8:
            return False
        dense = not runtime.startswith("sparse")
        return dense if pattern is None else isinstance(pattern, Coupled) or not dense or runtime == "torch float32"


@dataclass(frozen=True)
class Point:
    """One model: the dense one, or a pruned one."""

    pattern: str
    """As the table of results names it; "dense" for the dense model."""
    target: float
    """The pattern's target sparsity; 0 for the dense model."""
    zeros: float
    """Fraction of zeros in the weights that the pattern prunes."""
    score: float
    """The dataset's main metric, a fraction; in float32."""
    timings: list[Timing]
    """The fastest first. Ratios are to the fastest runtime of the dense model."""

    @property
    def best(self) -> Timing:
        """The fastest runtime."""
        return self.timings[0]


def with_fewer_examples(inputs: Inputs, count: int) -> Inputs:
    """The inputs with so many evaluation examples at most, drawn by dataset.data_seed."""
    import numpy as np

    task, whole = inputs.experiment.dataset, inputs.examples.evaluation
    if len(whole) <= count:
        return inputs
    chosen = np.sort(np.random.default_rng(task.data_seed).permutation(len(whole))[:count])
    some = whole.select(chosen.tolist())
    examples = replace(inputs.examples, evaluation=some, evaluation_fingerprint=task.fingerprint(some))
    return replace(inputs, examples=examples)


def experiments(experiment: Experiment, net: PreTrainedModel, patterns: Sequence[Pattern]) -> list[Experiment]:
    """An experiment with each pattern.

    Args:
        net: the network, with or without weights.

    Raises:
        UserError, PruningError: a pattern fits nothing, or its target is out of reach.
    """
    every = [replace(experiment, pattern=pattern) for pattern in patterns]
    for each in every:
        plan_of(each, net).check(each.schedule, each.regularizer, each.criterion)
    return every


def points(
    inputs: Inputs, every: Sequence[Experiment], dense: models.Checkpoint, setting: Setting, file: Path
) -> Iterator[Point]:
    """The dense model, then each pruned one.

    Args:
        every: see `experiments`.
        dense: the fine-tuned dense model.
        file: where the pruned points are stored, and found again when this is repeated.
    """
    task, cache = inputs.experiment.dataset, Path(inputs.experiment.cache_dir) / "features"
    stored: dict[str, Any] = files.read_json(file) or {}
    metric = score_once(inputs, dense).metrics[task.metric]
    net = load_student(inputs.experiment, dense, None).eval()
    first = _key(inputs.experiment, inputs, dense, setting, "")
    with _timed_dense(net, setting, stored.get(first)) as (timings, rival):
        stored[first] = f"{rival.name} {rival.precision}"
        keys = [_key(experiment, inputs, dense, setting, stored[first]) for experiment in every]
        yield Point("dense", 0.0, 0.0, metric, timings)
        found = {key: point for key in keys if (point := _read(stored.get(key))) is not None}
        missing = [experiment for experiment, key in zip(every, keys, strict=True) if key not in found]
        pruned = _pruned(inputs, missing, net)
        for experiment, key in zip(every, keys, strict=True):
            title = f"{experiment.pattern} at {100 * experiment.pattern.target:.4g} %"
            if key in found:
                log.info("%s: from %s", title, file)
                yield found[key]
                continue
            report = next(pruned)
            scores = score(net, inputs.tokenizer, task, inputs.examples.evaluation, cache, f"Scoring {title}")
            known = {f"{each.runtime} {each.precision}" for each in timings}
            times = _timed(net, experiment.pattern, setting, rival, known)
            layers = [row for row in report if row.skipped is None]
            zeros = sum(row.zeros for row in layers) / sum(math.prod(row.shape) for row in layers)
            target = experiment.pattern.target
            point = Point(str(experiment.pattern), target, zeros, scores.metrics[task.metric], times)
            stored[key] = asdict(point)
            files.write_json(file, stored)
            yield point


def _key(experiment: Experiment, inputs: Inputs, dense: models.Checkpoint, setting: Setting, rival: str) -> str:
    """Hash of everything that determines a point; `rival` is the runtime that ratios are to."""
    run = identity_of(experiment, inputs.sources, inputs.examples).run
    here = machine()
    return hash_json([run, dense.fingerprint, asdict(setting), here.cpu, here.cores, here.versions, rival], SHORT)


def _read(values: Any) -> Point | None:
    """A stored point; None if there is none, or another version wrote it."""
    try:
        return Point(**{**values, "timings": [Timing(**timing) for timing in values["timings"]]})
    except (TypeError, KeyError):
        return None


def _pruned(inputs: Inputs, every: Sequence[Experiment], net: PreTrainedModel) -> Iterator[list[LayerReport]]:
    """Prune `net` as each experiment does; it stays so until the next is asked for."""
    from runner.training.calibration import calibration

    if not every:
        return
    assert inputs.data is not None
    criterion = inputs.experiment.criterion
    assert isinstance(criterion, OBS)
    net.to(device())  # type: ignore[arg-type]  # transformers' decorator hides the signature
    read = calibration(criterion, net, inputs.data, inputs.experiment.train.precision)
    assert read is not None
    for _, report in obs_each(read, [plan_of(experiment, net) for experiment in every], criterion):
        yield report


@contextmanager
def _timed_dense(net: PreTrainedModel, setting: Setting, before: str | None) -> Iterator[tuple[list[Timing], Runtime]]:
    """Times of the dense model, and its fastest runtime, which stays loaded.

    Args:
        before: the runtime that was the fastest when stored points were measured: ratios are to one and the same.
    """
    made = available(net, batch_of(net, 2, 16), (), setting.threads, False, lambda name: setting.wants(name, None))
    with made as runtimes:
        timings = time_all(runtimes, batch_of(net, 1, setting.length), setting.threads, setting.seconds)
        best = f"{timings[0].runtime} {timings[0].precision}"
        named = {f"{each.name} {each.precision}": each for each in runtimes}
        yield timings, named.get(before or best, named[best])


def _timed(
    net: PreTrainedModel, pattern: Pattern, setting: Setting, rival: Runtime, known: Collection[str]
) -> list[Timing]:
    """Times of a pruned model, all relative to the fastest runtime of the dense one.

    Args:
        known: names of the runtimes that ran the dense model.
    """
    here: Any = copy.deepcopy(net)
    here.to("cpu").eval()
    example, threads = batch_of(here, 2, 16), setting.threads

    def wanted(name: str) -> bool:
        return setting.wants(name, pattern) and (name in known or name.startswith("sparse"))

    with available(here, example, setting.precisions, threads, False, wanted) as made:
        return time_all(made, batch_of(here, 1, setting.length), threads, setting.seconds, rival=rival)
