"""The model card: what a saved model is, how it was made and how it can be checked, in the hub's format.

Each run writes it next to its weights; `python -m runner.share` uploads both. It names no place on this machine.
The words are in card.md.jinja and speed.md.jinja.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from results import columns
from runner.config.experiment import Experiment, Origin
from runner.data.examples import Examples
from runner.models import describe_left_out
from runner.records.card_facts import NAME, Counted, Facts, collect
from runner.records.markdown import block, code, line, plain
from runner.system import files

if TYPE_CHECKING:
    from huggingface_hub import EvalResult, ModelCardData

    from runner.records.result import Result
    from runner.speed.measure import Speed

HERE = "path/to/this/folder"
"""Placeholder in the card for the place to load the model from; `runner.share` replaces it by the hub's id."""
TEMPLATE = Path(__file__).with_name("card.md.jinja")
SPEED = Path(__file__).with_name("speed.md.jinja")
"""The section with the times."""
_AFTER_SPEED = "## How it was made\n"
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
_TRAINING = ("learning_rate", "lr_scheduler_type", "warmup_steps", "per_device_train_batch_size", "batch_tokens",
             "gradient_accumulation_steps", "num_train_epochs", "max_steps", "weight_decay", "precision")  # fmt: skip
_PLACES = ("tracking", "output_dir", "cache_dir", "hydra", "force")  # say where and when to write, not what is made


def write(folder: Path, experiment: Experiment, origin: Origin, examples: Examples, result: Result) -> str:
    """Write the card of a saved model into its folder, atomically, and return its text."""
    card = text(collect(folder, experiment, origin, examples, result))
    files.atomic_write(folder / NAME, card)
    return card


def with_speed(card: str, speed: Speed) -> str:
    """The text of a card that has no times, with their section: where a run that was timed has it, or at the end if
    the card was rewritten by hand."""
    section = speed_section(speed)
    if section is None:
        return card
    before, after, rest = card.partition(f"\n{_AFTER_SPEED}")
    return f"{before}\n{section}\n{after}{rest}" if after else f"{card.rstrip()}\n\n{section}\n"


def text(facts: Facts) -> str:
    """Render the card."""
    from huggingface_hub import ModelCard

    return f"{ModelCard.from_template(metadata(facts), str(TEMPLATE), **variables(facts))}\n"


def metadata(facts: Facts) -> ModelCardData:
    """The card's YAML header, which the hub reads. Unknown values are left out."""
    from huggingface_hub import ModelCardData

    licences = {model.licence for model in facts.sources}
    pruned = facts.pruning is not None
    return ModelCardData(
        license=licences.pop() if len(licences) == 1 else None,
        base_model=[line(model.hub_id) for model in facts.sources if model.hub_id] or None,
        datasets=[line(facts.data.hub_id)] if facts.data.hub_id else None,
        metrics=list(facts.result.dense),
        tags=["prune-distill", *(["pruning", "sparsity", line(facts.result.pattern)] if pruned else [])],
        library_name=None if facts.has_projector else "transformers",
        pipeline_tag=facts.pipeline_tag,
        model_name=line(f"{facts.result.model}-{facts.result.dataset}-{facts.result.pattern}"),
        eval_results=measured(facts),
    )


def measured(facts: Facts) -> list[EvalResult]:
    """The scores of the saved model, in the hub's form."""
    from huggingface_hub import EvalResult

    result, counted = facts.result, facts.evaluated
    part = part_of(counted)
    return [
        EvalResult(
            task_type=facts.pipeline_tag,
            dataset_type=line(facts.data.hub_id or result.dataset),
            dataset_name=line(f"{result.dataset} ({part})" if part else result.dataset),
            dataset_split="train" if counted.holdout else None,
            dataset_revision=line(facts.data.revision) if facts.data.revision else None,
            metric_type=name,
            metric_value=value,
        )
        for name, value in (result.sparse or result.dense).items()
    ]


def part_of(counted: Counted) -> str | None:
    """The scored part of the evaluation split, in words; None: all of it."""
    parts = [f"a hold-out of {counted.holdout:.3g} of train"] if counted.holdout else []
    if counted.official is not None and not counted.holdout and counted.used < counted.official:
        parts.append(f"{counted.used:,} of its {counted.official:,} examples")
    elif counted.limit is not None and counted.used >= counted.limit:
        parts.append(f"a subset of {counted.used:,} examples")
    return ", ".join(parts) or None


def variables(facts: Facts) -> dict[str, Any]:
    """The variables of the template. Texts from outside are escaped here; None leaves a sentence out."""
    result, counted, pruned = facts.result, facts.evaluated, facts.pruning is not None
    scores = [result.dense] if result.sparse is None else [result.dense, result.sparse]
    values = {
        "pruned": pruned,
        "model": code(result.model),
        "dataset": code(result.dataset),
        "pattern": code(result.pattern),
        "dense": dense(facts),
        "sparse": code(facts.sparse.name) if facts.sparse else None,
        "here": HERE,
        "architecture": facts.architecture,
        "has_projector": facts.has_projector,
        "scores": [[line(columns.title(name)), *(f"{values[name]:.4f}" for values in scores)] for name in result.dense],
        "metric": columns.written(result.metric),
        "metrics": ", ".join(result.dense),
        "relative_drop": f"{result.relative_drop:+.2%}" if result.relative_drop is not None else None,
        "has_correlations": bool(columns.CORRELATIONS & result.dense.keys()),
        "seed": result.seed,
        "evaluated": f"{counted.used:,}",
        "evaluated_part": part_of(counted),
        "holdout": counted.holdout,
        "has_split": counted.has_split,
        "notes": [plain(note) for note in result.notes],
        "data": code(facts.data.name),
        "data_hub_id": code(facts.data.hub_id) if facts.data.hub_id else None,
        "data_revision": code(facts.data.revision) if facts.data.revision else None,
        "making": making(facts),
        "command": block(f"python -m runner {shlex.join(repeatable(facts.overrides))}".strip(), "bash"),
        "licences": licences(facts),
        "speed": speed_section(facts.result.speed),
        "student_layers": result.student_layers,
    }
    return values | (pruning_variables(facts, facts.pruning) if facts.pruning is not None else {})


def pruning_variables(facts: Facts, pruning: Mapping[str, Any]) -> dict[str, Any]:
    """The variables that only the card of a pruned model has."""
    counted, weighed = facts.result.verification, facts.result.footprint
    assert counted is not None
    whole = facts.result.student_layers is None
    layers = [layer for layer in pruning["layers"] if not layer["skipped"]]
    patterns = sorted({line(layer["pattern"]) for layer in layers})
    teacher = " and ".join(map(code, facts.teachers)) or "it"
    distills = facts.distill["name"] != "NoDistillation"
    return {
        "prunes": whole or any(layer["pruned_units"] for layer in layers),
        "parameters": "" if weighed is None else f"{weighed.parameters:,} of {weighed.parameters_dense:,}",
        "once_cut": "" if weighed is None else weighed.once_cut,
        "supervision": f"distilled from {teacher}" if distills else "trained on the labels",
        "sparsity": f"{counted.sparsity:.2%}",
        "exact_sparsity": repr(counted.sparsity),
        "linear_ratio": f"{counted.linear_ratio:.2%}",
        "overall_ratio": f"{counted.overall_ratio:.2%}",
        "left_out": describe_left_out(counted.left_out),
        "violations": counted.violations,
        "predicted": plain(str(facts.result.predicted)) if facts.result.predicted is not None else None,
        "pruned_layers": len(layers),
        "pattern_meaning": facts.pattern_meaning,
        "pattern_settings": settings(pruning["pattern"]),
        "layer_patterns": ", ".join(map(code, patterns)) if len(patterns) > 1 else None,
        "dense_layers": ", ".join(code(layer["name"]) for layer in pruning["layers"] if layer["skipped"]),
    }


def speed_section(speed: Speed | None) -> str | None:
    """The times, where they were measured, and the command that repeats them; None leaves the section out."""
    from jinja2 import Template

    if speed is None or not speed.timings:
        return None
    rows = [
        (f"{t.runtime} {t.precision}", f"{t.batch}", f"{t.length}", f"{t.threads}", f"{t.ms:.2f}",
         f"{t.ratio_to_best_dense:.2f}x")
        for t in speed.timings
    ]  # fmt: skip
    batches, lengths, threads = (
        ",".join(map(str, dict.fromkeys(getattr(t, name) for t in speed.timings)))
        for name in ("batch", "length", "threads")
    )
    again = f"python -m runner.benchmark FOLDER --batch {batches} --length {lengths} --threads {threads}"
    return Template(SPEED.read_text(encoding="utf-8")).render(
        rows=[[line(cell) for cell in row] for row in rows],
        machine=plain(f"{speed.machine.cpu} ({', '.join(speed.machine.features)})"),
        versions=plain(", ".join(f"{name} {number}" for name, number in speed.machine.versions.items())),
        command=block(again, "bash"),
    )


def dense(facts: Facts) -> str:
    """The dense model and where it was fine-tuned."""
    base = facts.dense
    revision = f" at revision {code(base.revision)}" if base.revision else ""
    fine_tuned = f"on {code(facts.result.dataset)}" if facts.fine_tunes else "before"
    return f"{code(base.name)}{revision}, fine-tuned {fine_tuned}"


def making(facts: Facts) -> dict[str, str]:
    """How the model was made, by what: examples, methods, training, software and hardware."""
    items = {}
    if facts.trained is not None:
        used, official = facts.trained.used, facts.trained.official
        items["Training examples"] = f"{used:,}" + (f" of {official:,}" if official and used < official else "")
    if facts.unlabelled:
        items["Training examples without labels"] = f"{facts.unlabelled:,}, distilled only"
    if facts.pruning is not None:
        items |= methods(facts, facts.pruning)
    if facts.train:
        items["Training"] = settings({key: facts.train[key] for key in _TRAINING})
        if facts.result.cost.get("steps"):
            items["Optimizer steps"] = f"{facts.result.cost['steps']:,}"
    items |= machinery(facts.made_by)
    if others := facts.result.made_by.get("others"):
        items["Made under other versions, or on other hardware"] = "; ".join(map(code, others))
    return items


def methods(facts: Facts, pruning: Mapping[str, Any]) -> dict[str, str]:
    """Distillation, and how the pruned weights were chosen."""
    distill = {key: value for key, value in facts.distill.items() if key not in ("cache", "teacher")}
    teachers = ", ".join(map(code, facts.teachers)) or "the dense model"
    who = "teacher" if len(facts.teachers) < 2 else "mean of the teachers"
    taught_by = f"; {who}: {teachers}" if distill["name"] != "NoDistillation" else ""
    items = {"Distillation": settings(distill) + taught_by}
    steps = [int(step) for step in pruning["updates"]]
    if steps:  # else nothing is chosen: the dense control, or a mask that stays
        named = ("criterion", "allocation", "schedule", "regularizer")
        items |= {group.capitalize(): settings(pruning[group]) for group in named if len(pruning[group]) > 1}
        items["Mask updates"] = f"{len(steps)}, from step {min(steps):,} to step {max(steps):,}"
    return items


def machinery(made_by: Mapping[str, str]) -> dict[str, str]:
    """Versions, commit and hardware; neither user nor machine name."""
    versions = {key.removeprefix("version."): value for key, value in made_by.items() if key.startswith("version.")}
    items = {"Versions": ", ".join(code(f"{name} {version}") for name, version in versions.items())}
    commit = made_by.get("mlflow.source.git.commit")
    if commit:
        changed = ", with changes that were not committed" if made_by.get("git.dirty") == "true" else ""
        items["Commit of prune-distill"] = code(commit) + changed
    if "hardware" in made_by:
        items["Hardware"] = code(made_by["hardware"])
    return items


def licences(facts: Facts) -> list[tuple[str, str, str]]:
    """Kind, name and licence of each source."""
    sources = [("model", "model", model) for model in facts.sources] + [("data", "dataset", facts.data)]
    return [
        (kind, code(source.name), code(source.licence) if source.licence else f"not known: see the {page}'s own page")
        for kind, page, source in sources
    ]


# --- texts from outside -------------------------------------------------------------------------------------


def repeatable(overrides: Iterable[str]) -> list[str]:
    """The command line for other machines: without output places, and with folders by their names only."""
    portable = []
    for override in overrides:
        key, equals, value = override.partition("=")
        if re.split(r"[./]", key.lstrip("+~"))[0] not in _PLACES:
            portable.append(f"{key}{equals}{_elsewhere(value)}")
    return portable


def _elsewhere(value: str) -> str:
    """The value, or `path/to/NAME` if it is a place on this machine."""
    if listed := re.fullmatch(r"\[([^\[\]{}]*)\]", value):
        return f"[{','.join(map(_elsewhere, listed[1].split(',')))}]"
    bare = value.strip("'\"")
    here = Path(os.path.expanduser(bare))  # Path.expanduser raises for an unknown user
    if not re.search(r"[/\\]|^~", bare) or (_HUB_ID.fullmatch(bare) and not here.exists()):
        return value
    return "path/to/" + re.split(r"[/\\]", bare.rstrip("/\\"))[-1]


def settings(values: Mapping[str, Any]) -> str:
    """The name, if any, and all settings that are set, as Markdown."""
    named = code(values["name"]) + " " if "name" in values else ""
    pairs = [f"{key}={value}" for key, value in values.items() if key != "name" and value not in (None, {})]
    return (named + ", ".join(map(code, pairs))).strip()
