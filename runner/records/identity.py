"""The identity of a run: hashes of all that determines its result."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from runner.config.experiment import Experiment
from runner.config.plugins import source_of
from runner.system.fingerprint import SHORT, hash_json
from runner.system.versions import VERSIONS


@dataclass
class Identity:
    """Hashes of everything that determines a result."""

    run: str
    """Everything."""
    group: str
    """Everything but the seed."""
    dense: str
    """What determines the dense model, seed included."""
    control: str
    """Everything but the seed and the pruning: equal in a run and its same-budget dense control."""
    budget: str
    """`control` without the distillation."""


@dataclass
class Contents:
    """Fingerprints of what a run reads."""

    model: str
    """The checkpoint that the run starts from, fine-tuned or not."""
    data: str
    """The examples."""
    teacher: str | list[str] | None = None
    """A teacher other than the dense model, or each of several."""
    sparse: str | None = None
    """The sparse checkpoint that the student starts from, where that is not the dense model."""
    unlabelled: str = ""
    """The examples without labels; empty if there are none."""
    layers: list[int] | None = None
    """Layers of the dense model that the student has; None: all."""
    latency: str | None = None
    """The table of times that the budget is counted in; None: it is not counted in time."""


def identify(experiment: Experiment, contents: Contents) -> Identity:
    """Hash what determines the result: contents, not paths and logging."""

    def typed(value: Any) -> dict[str, Any]:
        return {"type": type(value).__name__, **asdict(value), **source_of(experiment, value)}

    task = experiment.dataset
    dense: dict[str, Any] = {
        "model": contents.model,
        "dropout": [experiment.model.hidden_dropout, experiment.model.attention_dropout],
        "data": [contents.data, type(task).__name__, task.settings(), *source_of(experiment, task).values()],
        "versions": {stage: VERSIONS[stage] for stage in ("prepare", "finetune")},
    }
    if experiment.model.finetuned is None:
        dense["finetune"] = experiment.finetune.determinants()
    run = dict(dense, versions=VERSIONS, prune=experiment.prune, scores=task.score_settings())
    if experiment.prune:
        run |= {
            "pattern": _without_open(typed(experiment.pattern)),
            "distill": {**typed(experiment.distill), "teacher": contents.teacher},
            "train": experiment.student_train.determinants(),
        }
        if contents.unlabelled:
            run["unlabelled"] = contents.unlabelled
        if experiment.model.frozen:
            run["frozen"] = sorted(set(experiment.model.frozen))
        if contents.layers is not None:  # the control has all: it shows what pruning and fewer layers cost together
            run["student_layers"] = contents.layers
        if contents.sparse is not None:
            run["sparse"] = [contents.sparse, "zeros stay"] if experiment.keeps_zeros else contents.sparse
        if experiment.pattern.prunes or experiment.pattern.locks or experiment.allocation.layers:
            run |= {
                "layers": [experiment.model.prunable, experiment.model.excluded],
                "criterion": _without(typed(experiment.criterion), {"sequential": False}),
                "allocation": _without_later(typed(experiment.allocation), contents.latency),
                "schedule": typed(experiment.schedule),
                "regularizer": typed(experiment.regularizer),
            }
    seed = experiment.seed
    control = {key: run[key] for key in (*dense, "scores", "distill", "train", "unlabelled", "frozen") if key in run}
    if "train" in control:
        control["train"] = {key: value for key, value in control["train"].items() if key != "hidden_dropout"}
    budget = {key: value for key, value in control.items() if key != "distill"}
    return Identity(
        run=_hash([run, seed]),
        group=_hash(_without_seeds(run, seed)),
        dense=_hash([dense, seed if experiment.model.finetuned is None else None]),
        control=_hash(control),
        budget=_hash(budget),
    )


def _without_seeds(run: dict[str, Any], seed: int) -> dict[str, Any]:
    """A run with 0 for the criterion's seed where it follows the run's: runs that differ in nothing else are pooled."""
    criterion = run.get("criterion", {})
    return {**run, "criterion": {**criterion, "seed": 0}} if criterion.get("seed") == seed else run


def _without_open(pattern: dict[str, Any]) -> dict[str, Any]:
    """A pattern with the target that was given: a sparsity that follows from a speed-up is none."""
    if pattern.get("target_speedup") is not None:
        return {key: value for key, value in pattern.items() if key != "target_sparsity"}
    return {key: value for key, value in pattern.items() if key != "target_speedup"}


def _without_later(allocation: dict[str, Any], latency: str | None) -> dict[str, Any]:
    """An allocation without what is at its default and older versions did not know.

    Args:
        latency: what stands for the file of times.
    """
    later = ("max_per_layer", "criterion", "schedule", "allocation")
    layers = {
        name: {key: value for key, value in layer.items() if key not in later or value is not None}
        for name, layer in allocation["layers"].items()
    }
    rest = _without(allocation, {"cost": "parameters", "latency": None})
    if latency is not None:
        rest["latency"] = latency
    return rest | {"layers": layers}


def _without(settings: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """Settings without those at these defaults, which older versions did not know."""
    return {key: value for key, value in settings.items() if key not in defaults or value != defaults[key]}


def _hash(value: Any) -> str:
    # Keys are not sorted: they come in the order of the fields, and that of allocation.layers has a meaning.
    return hash_json(value, SHORT, default=str)
