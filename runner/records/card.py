"""The model card: what a saved model is, how it was made and how it can be checked, in the hub's format.

Each run writes it beside its weights; `python -m runner.share` uploads it with them. It names no place of this machine.
"""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from inspect import getdoc
from pathlib import Path
from typing import TYPE_CHECKING, Any

from results import columns
from runner import models
from runner.config.experiment import Experiment, Origin
from runner.data.task import Dataset, Examples
from runner.models import heads
from runner.records import runs
from runner.system import files
from runner.system.errors import UserError
from runner.system.hub import explain
from runner.system.provenance import provenance

if TYPE_CHECKING:
    from huggingface_hub import EvalResult, ModelCardData

    from runner.experiment import Result

NAME = "README.md"
"""The card, where the hub looks for it."""
HERE = "path/to/this/folder"
"""Stands in the card for the place to load the model from; `runner.share` puts the hub's id there."""
_LICENCE = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+-]{0,60}")  # a name such as apache-2.0
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
_TRAINING = ("learning_rate", "lr_scheduler_type", "warmup_steps", "per_device_train_batch_size", "batch_tokens",
             "gradient_accumulation_steps", "num_train_epochs", "max_steps", "weight_decay", "precision")  # fmt: skip
_PLACES = ("tracking", "output_dir", "cache_dir", "hydra", "force")  # say where and when to write, not what is made


@dataclass
class Source:
    """A model or a dataset that the model was made of."""

    name: str
    """As people know it; no path."""
    hub_id: str | None
    revision: str | None
    licence: str | None
    """By the hub's name for it; None: not known."""


@dataclass
class Counted:
    """How many examples were used, of how many."""

    used: int
    official: int | None
    """Of the whole official split, where it is known."""
    limit: int | None
    """The subset that was asked for."""
    holdout: float = 0.0
    """Fraction of train that was set aside and scored, instead of the evaluation split."""


@dataclass
class Facts:
    """All that a card tells, as plain values."""

    result: Result
    architecture: str
    pipeline_tag: str
    dense: Source
    """The dense model, or what it was fine-tuned from."""
    fine_tunes: bool
    """Whether the run fine-tuned the dense model itself."""
    sparse: Source | None
    """The sparse checkpoint that the weights come from, for pattern=locked."""
    teacher: str | None
    """A teacher other than the dense model."""
    data: Source
    evaluated: Counted
    trained: Counted | None
    pruning: Mapping[str, Any] | None
    """pruning.json; None with prune=false."""
    pattern_says: str
    """What the pattern is, in words."""
    distill: Mapping[str, Any]
    """Its class as `name`, and its settings."""
    train: Mapping[str, Any]
    """Settings of the pruning, or of the fine-tuning with prune=false; empty if nothing is trained."""
    made_by: Mapping[str, str]
    """`runner.system.provenance`'s tags."""
    overrides: list[str]
    """The command line."""
    head_of: Source | None = None
    """The teacher whose head the model has, where that is not the dense model."""
    has_projector: bool = False
    """Whether a projector stands before the head, which no class of transformers has."""

    @property
    def sources(self) -> list[Source]:
        """The models that the weights come from."""
        return [model for model in (self.sparse, self.dense, self.head_of) if model is not None]


def write(folder: Path, experiment: Experiment, origin: Origin, examples: Examples, result: Result) -> str:
    """Write the card of a saved model into its folder, whole or not at all. Returns it."""
    file = folder / NAME
    made, written = text(gather(folder, experiment, origin, examples, result)), files.temporary_path(file)
    try:
        written.write_text(made, encoding="utf-8")
        files.replace(written, file)
    finally:
        written.unlink(missing_ok=True)
    return made


# --- what there is to tell ----------------------------------------------------------------------------------


def gather(folder: Path, experiment: Experiment, origin: Origin, examples: Examples, result: Result) -> Facts:
    """The facts of a run, whose pruning.json is in the folder."""
    task, model, prune = experiment.dataset, experiment.model, experiment.prune
    official = (task.official_train, task.official_evaluation) if is_the_options(origin) else (None, None)
    train = examples.train
    dense = (model.finetuned, model.finetuned_revision) if model.finetuned else (model.path, model.revision)
    training = experiment.train if prune else experiment.finetune
    return Facts(
        result=result,
        architecture=task.architecture,
        pipeline_tag=task.pipeline_tag,
        dense=source(*dense),
        fine_tunes=not model.finetuned,
        sparse=source(model.sparse, None) if model.sparse else None,
        teacher=shown(experiment.distill.teacher) if prune and experiment.distill.teacher else None,
        data=data_of(task, origin),
        evaluated=Counted(len(examples.evaluation), official[1], task.max_eval_samples, examples.held_out),
        trained=Counted(len(train), official[0], task.max_train_samples) if train is not None else None,
        pruning=json.loads((folder / "pruning.json").read_text(encoding="utf-8")) if prune else None,
        pattern_says=" ".join((getdoc(type(experiment.pattern)) or "").partition("\n\n")[0].split()),
        distill={"name": type(experiment.distill).__name__, **asdict(experiment.distill)},
        train=training.plain() if experiment.trains else {},
        made_by=provenance(),
        head_of=head_of(experiment),
        has_projector=heads.KEY in json.loads((folder / "config.json").read_text(encoding="utf-8")),
        overrides=origin.overrides,
    )


def data_of(task: Dataset, origin: Origin) -> Source:
    """The data; the licence that the dataset's YAML names is not that of other data, unless it was given with them."""
    given = "dataset.licence" in origin.changed or any("dataset.licence=" in key for key in origin.overrides)
    known = task.licence if given or is_the_options(origin) else None
    return Source(origin.labels["dataset"], task.hub_id, task.revision, known)


def is_the_options(origin: Origin) -> bool:
    """Whether the data are those that the option of the group dataset names."""
    return origin.labels["dataset"] == origin.choices["dataset"]


def head_of(experiment: Experiment) -> Source | None:
    """The teacher whose head the model got, where that is not the dense model."""
    how = experiment.distill
    if not (experiment.prune and how.shares_head and how.weight and how.teacher):
        return None
    if runs.is_id(how.teacher):
        return Source(f"of MLflow run {how.teacher}", None, None, None)
    return source(how.teacher, None)


def source(path: str, revision: str | None) -> Source:
    """A model that was configured by this path."""
    local = path.startswith(models.EMBEDDED) or Path(path).expanduser().exists()
    return Source(shown(path), None if local else path, None if local else revision, licence(path, revision))


def shown(path: str) -> str:
    """A configured model for others to read: a folder by its name only."""
    return Path(path).name if Path(path).expanduser().exists() else path


def licence(path: str, revision: str | None) -> str | None:
    """The licence that a model's own card names, by the hub's name for it; None if there is no telling."""
    import yaml
    from huggingface_hub import hf_hub_download, metadata_load

    if path.startswith(models.EMBEDDED):
        path = str(Path(models.__file__).parent / path.removeprefix(models.EMBEDDED))
    folder = Path(path).expanduser()
    try:
        if folder.is_dir():
            card = folder / NAME
        else:
            with explain("model", "model.path", path):
                card = Path(hf_hub_download(path, NAME, revision=revision))
        named = (metadata_load(card) or {}).get("license")
    except (UserError, OSError, ValueError, yaml.YAMLError):  # no card, no hub, or no metadata: it says nothing
        return None
    return named if isinstance(named, str) and _LICENCE.fullmatch(named) else None


# --- the metadata -------------------------------------------------------------------------------------------


def metadata(facts: Facts) -> ModelCardData:
    """The card's head, which the hub reads. What is not known is left out."""
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
    """The scores of the saved model, as the hub shows them."""
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
    """Which part of the evaluation split was scored, in a few words; None: all of it."""
    parts = [f"a hold-out of {counted.holdout:.3g} of train"] if counted.holdout else []
    if counted.official is not None and not counted.holdout and counted.used < counted.official:
        parts.append(f"{counted.used:,} of its {counted.official:,} examples")
    elif counted.limit is not None and counted.used >= counted.limit:
        parts.append(f"a subset of {counted.used:,} examples")
    return ", ".join(parts) or None


# --- the text -----------------------------------------------------------------------------------------------


def text(facts: Facts) -> str:
    """The whole card."""
    sections = [
        opening(facts),
        loading(facts),
        scores(facts),
        *([zeros(facts, facts.pruning)] if facts.pruning is not None else []),
        making(facts),
        limits(facts),
        licences(facts),
    ]
    return "\n".join(["---", metadata(facts).to_yaml(), "---", "", "\n\n".join(sections), ""])


def opening(facts: Facts) -> str:
    result, base = facts.result, facts.dense
    name = f"{code(result.model)} on {code(result.dataset)}"
    start = f"{code(base.name)}" + (f" at revision {code(base.revision)}" if base.revision else "")
    dense = f"{start}, fine-tuned on {code(result.dataset)}" if facts.fine_tunes else f"{start}, fine-tuned before"
    if result.verification is None:
        return f"# {name}\n\nThe dense model: {dense}."
    taught = "distilled from it" if facts.teacher is None else f"distilled from {code(facts.teacher)}"
    taught = taught if facts.distill["name"] != "NoDistillation" else "trained on the labels"
    weights = f" The weights started from the sparse checkpoint {code(facts.sparse.name)}." if facts.sparse else ""
    return (
        f"# {name}, pruned to {code(result.pattern)}\n\n"
        f"A copy of a dense model ({dense}), pruned while it was {taught}.{weights} "
        f"{result.verification.sparsity:.2%} of the weights in the pruned layers are zero, "
        f"{result.verification.linear_ratio:.2%} of those of all Linear and Conv layers and "
        f"{result.verification.overall_ratio:.2%} of all parameters, counted on the saved file."
    )


def loading(facts: Facts) -> str:
    if facts.has_projector:
        return loading_with_projector(facts)
    lines = [
        f"from transformers import {facts.architecture}, AutoTokenizer",
        f'model = {facts.architecture}.from_pretrained("{HERE}")',
        f'tokenizer = AutoTokenizer.from_pretrained("{HERE}")',
    ]
    return "## Load it\n\n" + block("\n".join(lines), "python")


def loading_with_projector(facts: Facts) -> str:
    lines = [
        "from runner import models",
        f'found = models.find("{HERE}", "model", models.Model(path="{HERE}"))',
        f'model = models.load("{facts.architecture}", found)',
        "tokenizer = models.load_tokenizer(found)",
    ]
    return (
        "## Load it\n\nOnly prune-distill loads it: a projector of two layers stands between the encoder and the head, "
        "which is its teacher's. The classes of transformers do not have it and refuse the head, whose width is not "
        "the encoder's (told to ignore that, they would draw a head at random).\n\n"
        + block("\n".join(lines), "python")
        + f"\n\n`python -m runner.evaluate {HERE}` scores it."
    )


def scores(facts: Facts) -> str:
    result, counted = facts.result, facts.evaluated
    if result.sparse is None:
        table = [
            "| metric | dense |",
            "|---|---|",
            *(f"| {line(columns.title(k))} | {v:.4f} |" for k, v in result.dense.items()),
        ]
    else:
        rows = [f"| {line(columns.title(k))} | {v:.4f} | {result.sparse[k]:.4f} |" for k, v in result.dense.items()]
        table = ["| metric | dense | sparse |", "|---|---|---|", *rows]
    part = part_of(counted)
    signed = " (correlations: from -1 to 1)" if columns.CORRELATIONS & result.dense.keys() else ""
    of_all = f"{counted.used:,} evaluation examples of {code(facts.data.name)}"
    said = [
        f"Fractions from 0 to 1{signed}, of one run with one seed ({result.seed}): another seed gives other scores, "
        "and a single run cannot say how far apart they lie.",
        f"Scored on {of_all}: " + (f"only a part, {part}." if part else "all that there are."),
    ]
    if counted.holdout:
        said.append("The evaluation split was left alone: these are scores to choose by, not to report.")
    if result.relative_drop is not None:
        name = columns.written(result.metric)
        said.insert(0, f"Relative drop of {name}, (sparse - dense) / dense: **{result.relative_drop:+.2%}**.")
    return "## Scores\n\n" + "\n".join(table) + "\n\n" + "\n".join(said)


def zeros(facts: Facts, pruning: Mapping[str, Any]) -> str:
    counted = facts.result.verification
    assert counted is not None
    pruned = [layer for layer in pruning["layers"] if not layer["skipped"]]
    patterns = sorted({line(layer["pattern"]) for layer in pruned})
    left = [code(layer["name"]) for layer in pruning["layers"] if layer["skipped"]]
    recount = [
        "import json; from safetensors.torch import load_file",
        'w, layers = load_file("model.safetensors"), [x for x in json.load(open("pruning.json"))["layers"] if not '
        'x["skipped"]]',
        'print(sum(int((w[x["name"]] == 0).sum()) for x in layers if x["pruned_units"]) / '
        'sum(w[x["name"]].numel() for x in layers))',
    ]
    return "\n".join([
        "## Pattern, and how to check it", "",
        f"{code(facts.result.pattern)} in {len(pruned)} layers. {facts.pattern_says}", "",
        f"Here: {settings(pruning['pattern'])}.", "",
        *([f"Patterns of single layers: {', '.join(map(code, patterns))}.", ""] if len(patterns) > 1 else []),
        *([f"Left dense: {', '.join(left)}.", ""] if left else []),
        f"{counted.violations} units break the pattern. With prune-distill, and these files in FOLDER, each layer's "
        "zeros and the patterns that hold are read from the weights by", "",
        block("python -m runner.inspect FOLDER", "bash"), "",
        f"Without it, in the folder with these files, this prints {counted.sparsity!r}, the fraction of zeros in the "
        "pruned layers:", "",
        block("\n".join(recount), "python"), "",
        "`pruning.json` says what was done to each layer.",
    ])  # fmt: skip


def making(facts: Facts) -> str:
    told = {**made_of(facts), **(pruned_by(facts, facts.pruning) if facts.pruning is not None else {})}
    if facts.train:
        told["Training"] = settings({key: facts.train[key] for key in _TRAINING})
        if facts.result.cost.get("steps"):
            told["Optimizer steps"] = f"{facts.result.cost['steps']:,}"
    told |= machinery(facts.made_by)
    items = [f"- {name}: {value}" for name, value in told.items()]
    command = "python -m runner " + shlex.join(repeatable(facts.overrides))
    return "\n".join([
        "## How it was made", "", *items, "",
        "The command that repeats it; folders of the machine that made it are `path/to/...`:", "",
        block(command.strip(), "bash"),
    ])  # fmt: skip


def made_of(facts: Facts) -> dict[str, str]:
    """Data and seed."""
    revision = f" at revision {code(facts.data.revision)}" if facts.data.revision else ""
    where = f" ({code(facts.data.hub_id)} on the hub{revision})" if facts.data.hub_id else ""
    told = {"Seed": str(facts.result.seed), "Data": f"{code(facts.data.name)}{where}"}
    if facts.trained is not None:
        used, official = facts.trained.used, facts.trained.official
        told["Training examples"] = f"{used:,}" + (f" of {official:,}" if official and used < official else "")
    return told


def pruned_by(facts: Facts, pruning: Mapping[str, Any]) -> dict[str, str]:
    """How the pruning chose and taught."""
    distill = {key: value for key, value in facts.distill.items() if key not in ("cache", "teacher")}
    teacher = code(facts.teacher) if facts.teacher is not None else "the dense model"
    taught = settings(distill) + (f"; teacher: {teacher}" if distill["name"] != "NoDistillation" else "")
    steps = [int(step) for step in pruning["updates"]]
    if not steps:  # nothing is chosen: the dense control, or zeros that are kept
        return {"Distillation": taught}
    named = ("criterion", "allocation", "schedule", "regularizer")
    return {
        "Distillation": taught,
        **{group.capitalize(): settings(pruning[group]) for group in named if len(pruning[group]) > 1},
        "Mask updates": f"{len(steps)}, from step {min(steps):,} to step {max(steps):,}",
    }


def machinery(made_by: Mapping[str, str]) -> dict[str, str]:
    """Versions, commit and hardware; neither user nor machine."""
    versions = {key.removeprefix("version."): found for key, found in made_by.items() if key.startswith("version.")}
    told = {"Versions": ", ".join(code(f"{name} {found}") for name, found in versions.items())}
    commit = made_by.get("mlflow.source.git.commit")
    if commit:
        changed = ", with changes that were not committed" if made_by.get("git.dirty") == "true" else ""
        told["Commit of prune-distill"] = code(commit) + changed
    if "hardware" in made_by:
        told["Hardware"] = code(made_by["hardware"])
    return told


def limits(facts: Facts) -> str:
    said = []
    if facts.pruning is not None:
        said.append(
            "The zeros are stored as numbers in an ordinary dense file: it is not smaller than the dense model's, and "
            "ordinary matrix products are not faster with it. Only a runtime that knows the pattern gains."
        )
    said.append(
        f"It was evaluated on {code(facts.data.name)} alone, by {', '.join(facts.result.dense)}. What pruning costs "
        "elsewhere (other data, other languages, calibration, fairness) was not measured."
    )
    return "## Limits\n\n" + "\n".join(f"- {sentence}" for sentence in said)


def licences(facts: Facts) -> str:
    told = [(f"the model {code(model.name)}", model, "model") for model in facts.sources]
    told.append((f"the data {code(facts.data.name)}", facts.data, "dataset"))
    said = [
        f"- Of {what}: " + (code(found.licence) if found.licence else f"not known: see the {kind}'s own page")
        for what, found, kind in told
    ]
    return "## Licences\n\n" + "\n".join(said) + "\n\nWhoever shares this model keeps to them."


# --- what comes from outside --------------------------------------------------------------------------------


def repeatable(overrides: Iterable[str]) -> list[str]:
    """A command line for others: without where things are written, and with folders by their names only."""
    kept = []
    for override in overrides:
        key, equals, value = override.partition("=")
        if re.split(r"[./]", key.lstrip("+~"))[0] not in _PLACES:
            kept.append(f"{key}{equals}{_elsewhere(value)}")
    return kept


def _elsewhere(value: str) -> str:
    """A value, or `path/to/NAME` if it is a place on this machine."""
    bare = value.strip("'\"")
    here = Path(os.path.expanduser(bare))  # Path's own raises for a user whom nobody knows
    if not re.search(r"[/\\]|^~", bare) or (_HUB_ID.fullmatch(bare) and not here.exists()):
        return value
    return "path/to/" + re.split(r"[/\\]", bare.rstrip("/\\"))[-1]


def settings(values: Mapping[str, Any]) -> str:
    """A name, if there is one, and settings with their values."""
    named = code(values["name"]) + " " if "name" in values else ""
    pairs = [f"{key}={value}" for key, value in values.items() if key != "name" and value not in (None, {})]
    return (named + ", ".join(map(code, pairs))).strip()


def line(text: object) -> str:
    """A text in one line, without characters that are not printed."""
    return " ".join("".join(c if c.isprintable() else " " for c in str(text)).split())


def code(text: object) -> str:
    """A text as Markdown's code, out of which it cannot break."""
    inside = line(text) or " "
    fence = "`" * (_longest_run(inside) + 1)
    return f"{fence} {inside} {fence}" if "`" in inside else f"{fence}{inside}{fence}"


def block(text: str, language: str) -> str:
    """Lines as a block of Markdown's code."""
    fence = "`" * max(3, _longest_run(text) + 1)
    return f"{fence}{language}\n{text}\n{fence}"


def _longest_run(text: str) -> int:
    return max((len(run) for run in re.findall("`+", text)), default=0)
