"""The identity of a run: hashes of all that determines its result."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from pruning import Allocation
from runner.config.experiment import Experiment
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


def identify(
    experiment: Experiment,
    model: str,
    data: str,
    teacher: str | list[str] | None,
    sparse: str | None = None,
    unlabelled: str = "",
) -> Identity:
    """Hash what determines the result: contents, not paths and logging.

    Args:
        model: fingerprint of the checkpoint that the run starts from (fine-tuned or not).
        data: fingerprint of the examples.
        teacher: fingerprint of a teacher other than the dense model, or of each of several.
        sparse: fingerprint of the sparse checkpoint that the student starts from, where that is not the dense model.
        unlabelled: fingerprint of the examples without labels; empty if there are none.
    """
    dense: dict[str, Any] = {
        "model": model,
        "dropout": [experiment.model.hidden_dropout, experiment.model.attention_dropout],
        "data": [data, type(experiment.dataset).__name__, experiment.dataset.settings()],
        "versions": {stage: VERSIONS[stage] for stage in ("prepare", "finetune")},
    }
    if experiment.model.finetuned is None:
        dense["finetune"] = experiment.finetune.determinants()
    run = dict(dense, versions=VERSIONS, prune=experiment.prune, scores=experiment.dataset.score_settings())
    if experiment.prune:
        run |= {
            "pattern": _typed(experiment.pattern),
            "distill": {**_typed(experiment.distill), "teacher": teacher},
            "train": experiment.student_train.determinants(),
        }
        if unlabelled:
            run["unlabelled"] = unlabelled
        if experiment.model.frozen:
            run["frozen"] = sorted(set(experiment.model.frozen))
        if sparse is not None:
            run["sparse"] = [sparse, "zeros stay"] if experiment.keeps_zeros else sparse
        if experiment.pattern.prunes or experiment.pattern.locks or experiment.allocation.layers:
            run |= {
                "layers": [experiment.model.prunable, experiment.model.excluded],
                "criterion": _typed(experiment.criterion),
                "allocation": _allocation(experiment.allocation),
                "schedule": _typed(experiment.schedule),
                "regularizer": _typed(experiment.regularizer),
            }
    seed = experiment.seed
    control = {key: run[key] for key in (*dense, "scores", "distill", "train", "unlabelled", "frozen") if key in run}
    if "train" in control:
        control["train"] = {key: value for key, value in control["train"].items() if key != "hidden_dropout"}
    budget = {key: value for key, value in control.items() if key != "distill"}
    return Identity(
        run=_hash([run, seed]),
        group=_hash(run),
        dense=_hash([dense, seed if experiment.model.finetuned is None else None]),
        control=_hash(control),
        budget=_hash(budget),
    )


def _typed(value: Any) -> dict[str, Any]:
    return {"type": type(value).__name__, **asdict(value)}


def _allocation(allocation: Allocation) -> dict[str, Any]:
    """As `_typed`, without what an exception leaves out and older versions did not know."""
    typed = _typed(allocation)
    later = ("max_per_layer", "criterion")
    typed["layers"] = {
        name: {key: value for key, value in layer.items() if key not in later or value is not None}
        for name, layer in typed["layers"].items()
    }
    return typed


def _hash(value: Any) -> str:
    # Keys are not sorted: they come in the order of the fields, and that of allocation.layers has a meaning.
    return hash_json(value, SHORT, default=str)
