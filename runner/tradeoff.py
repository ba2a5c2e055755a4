"""Score against speed before anything is trained: one-shot pruned models, scored and timed on this machine."""

from __future__ import annotations

import argparse
import json
import logging
import shlex
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from pruning import OBS, Coupled, NofM, Pattern
from runner.benchmark import check_length
from runner.config.compose import compose_experiment
from runner.sensitivity import dense_model, numbers
from runner.speed.machine import machine
from runner.stages import checks, quick_look
from runner.stages.inputs import find_sources
from runner.stages.prepare import Inputs, resolve
from runner.system import files, ranks, spelling
from runner.system.commands import command_parser
from runner.system.errors import UserError, writing
from runner.system.process import command, set_up_process
from runner.system.text_tables import aligned

if TYPE_CHECKING:
    from runner.config.experiment import Experiment
    from runner.stages.quick_look import Point

log = logging.getLogger("runner.tradeoff")  # __name__ is __main__ here

_MORE = """
The overrides are those of a run, whose dense model is pruned: that of model.finetuned, or the one in the cache. OBS
prunes it to each sparsity, from one calibration (criterion.samples, .damping, .seed). Each point is the model of a run
with schedule=one_shot train.num_train_epochs=0. The folder gets a picture and the points; repeated, the command
continues from them.
"""

PATTERNS = "structured,4x1"
"""Patterns where none is asked for."""
COUPLED, BLOCKS = [0.2, 0.3, 0.4, 0.5, 0.6], [0.5, 0.6, 0.7, 0.8, 0.9]
"""Sparsities where none are asked for: of patterns whose units are cut out, and of the others."""
CALIBRATED = 1024
"""Training examples that windows are drawn from, where the dense model is given and needs none."""
UNTRAINED = {"schedule": "one_shot", "train.num_train_epochs": "0"}
"""What makes a run prune without training."""
TRAINED = ("schedule.", "train.max_steps=", "train.evaluate=")
"""Beginnings of overrides that only a training reads."""


def main(arguments: list[str]) -> None:
    """Print the points as a table or JSON, and draw them.

    Raises:
        UserError, PruningError: there is no such model, nothing to prune, or an option makes no sense.
    """
    given = parse(arguments)
    if mistake := spelling.mistake([each for each in given.overrides if not each.startswith("pattern=")]):
        raise UserError(mistake)
    if ranks.world_size() > 1:
        raise UserError("runner.tradeoff runs in one process: leave torchrun or accelerate launch out")
    sparsities = numbers(given.sparsity) if given.sparsity else None
    check_options(given)
    set_up_process()
    overrides, names = with_defaults(given.overrides, given.examples)
    asked = [compose_experiment([*overrides, f"pattern={name}"]) for name in names]
    for experiment, _ in asked:
        check(experiment, given.sparsity)
    patterns = [pattern for experiment, _ in asked for pattern in at_each(experiment.pattern, sparsities)]
    first = asked[0][0].resolved()
    net = checks.check(first, find_sources(first)).net
    every = quick_look.experiments(first, net, patterns)
    length = given.length or min(128, first.dataset.max_seq_length)
    check_length(net, length)
    inputs = quick_look.with_fewer_examples(resolve(*asked[0], reuse=False), given.examples)
    folder = given.output or Path(f"tradeoff-{inputs.name.replace(f'-{every[0].pattern}-', '-')}")
    setting = quick_look.Setting(length, given.threads, given.seconds, given.int8)
    dense = dense_model(inputs)
    with writing(folder):
        folder.mkdir(exist_ok=True)
    found: list[Point] = []
    for point in quick_look.points(inputs, every, dense, setting, folder / "points.json"):
        found.append(point)
        log.info("%s", in_words(point, found[0]))
    report(given, inputs, overrides, found, folder)


def parse(arguments: list[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = command_parser(
        "tradeoff", "model=tiny dataset=demo", "model=tiny dataset=demo --sparsity 0.3,0.5", more=_MORE
    )
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="as for a run: model=tiny dataset=demo")
    parser.add_argument("--sparsity", metavar="LIST", help="such as 0.3,0.5; not with N:M")
    parser.add_argument("--examples", type=int, default=300, help="to score on, at most (300)")
    parser.add_argument("--length", type=int, help="tokens of the text that is timed (128)")
    parser.add_argument("--threads", type=int, default=1, help="while models are timed (1)")
    parser.add_argument("--seconds", type=float, default=2.0, help="to time each model (2)")
    parser.add_argument("--int8", action="store_true", help="time int8 too; scores stay those of float32")
    parser.add_argument("--drop", type=float, default=3.0, help="points of the score that may be lost (3)")
    parser.add_argument("--output", metavar="FOLDER", type=Path, help="the folder of the picture and the points")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    return parser.parse_intermixed_args(arguments)


def check_options(given: argparse.Namespace) -> None:
    """Refuse options that make no sense."""
    for name in ("examples", "length", "threads"):
        value = getattr(given, name)
        if value is not None and value < 1:
            raise UserError(f"--{name} {value}: give a number above 0")
    for name in ("seconds", "drop"):
        if not 0 <= getattr(given, name) < 1e6:
            raise UserError(f"--{name} {getattr(given, name):g}: give a number from 0")
    folder: Path | None = given.output
    if folder is not None and not folder.parent.is_dir():
        raise UserError(f"--output {folder}: there is no folder {folder.parent}")
    if folder is not None and folder.exists() and not folder.is_dir():
        raise UserError(f"--output {folder}: this is a file; name a folder")


def with_defaults(typed: Sequence[str], examples: int) -> tuple[list[str], list[str]]:
    """The overrides of a run without training, but for its pattern, and the names of the patterns."""
    names = ",".join(each.partition("=")[2] for each in typed if each.startswith("pattern=")) or PATTERNS
    keys = {each.lstrip("+").partition("=")[0] for each in typed}
    if one := keys & {"pattern.target_sparsity", "pattern.target_speedup"}:
        raise UserError(f"{min(one)} is one point: give the sparsities with --sparsity, such as 0.3,0.5")
    added = {"criterion": "obs"}
    if "model.finetuned" in keys:  # else they are part of the identity of the dense model in the cache
        added |= {"dataset.max_train_samples": str(CALIBRATED), "dataset.max_eval_samples": str(examples)}
    forced = tuple(f"{key}=" for key in ("pattern", *UNTRAINED))
    overrides = [each for each in typed if not each.lstrip("+").startswith((*forced, *TRAINED))]
    overrides += [f"{key}={value}" for key, value in added.items() if key not in keys]
    overrides += [f"{key}={value}" for key, value in UNTRAINED.items()]
    return overrides, list(dict.fromkeys(name.strip() for name in names.split(",") if name.strip()))


def check(experiment: Experiment, sparsity: str | None) -> None:
    """Refuse what cannot be pruned in one shot, before anything is loaded."""
    if not experiment.prune:
        raise UserError("prune=false: there is nothing to trade; leave it out")
    if experiment.model.sparse:
        raise UserError(f"model.sparse={experiment.model.sparse}: the dense model is pruned; leave model.sparse out")
    if experiment.model.layers or experiment.model.num_layers is not None:
        raise UserError("model.layers and model.num_layers need a training; leave them out")
    if not isinstance(experiment.criterion, OBS):
        raise UserError(f"criterion={experiment.criterion.option()}: the quick look prunes by obs; leave it out")
    if not experiment.pattern.prunes:
        raise UserError(f"pattern={experiment.pattern} prunes nothing; choose some that do: pattern={PATTERNS}")
    if sparsity and isinstance(experiment.pattern, NofM):
        raise UserError(f"--sparsity {sparsity}: {experiment.pattern} has one sparsity, its own; leave the option out")


def at_each(pattern: Pattern, sparsities: list[float] | None) -> list[Pattern]:
    """A pattern with each target."""
    if isinstance(pattern, NofM):
        return [pattern]
    usual = COUPLED if isinstance(pattern, Coupled) else BLOCKS
    return [replace(pattern, target_sparsity=sparsity) for sparsity in sparsities or usual]


def report(given: argparse.Namespace, inputs: Inputs, overrides: list[str], points: list[Point], folder: Path) -> None:
    """Print the points, and draw them into the folder."""
    labels, metric = inputs.origin.labels, inputs.experiment.dataset.metric
    about, file = f"{labels['model']} on {labels['dataset']}", folder / "tradeoff.png"
    dense, best = points[0], fastest(points, given.drop / 100)
    draw(points, about, metric, file)
    typed = None if best is None else command_of(best, overrides)
    if given.json:
        where = {"model": labels["model"], "dataset": labels["dataset"], "metric": metric, "picture": str(file)}
        rows = [asdict(point) for point in points]
        print(json.dumps({**where, "machine": asdict(machine()), "points": rows, "command": typed}, indent=1))
        return
    print(f"{about}: pruned in one shot, nothing trained\n{scored_on(inputs)}\n{machine()}\n")
    print(f"{table(points, metric)}\n\n{file}: the same as a picture")
    if best is None:
        print(f"no point is faster than {dense.best.runtime} and within {given.drop:g} points of the dense model")
    else:
        print(f"fastest within {given.drop:g} points: {in_words(best, dense)}\nas a run: {typed}")


def scored_on(inputs: Inputs) -> str:
    """What scores and ranks the models, in words."""
    data, count, criterion = inputs.data, len(inputs.examples.evaluation), inputs.experiment.criterion
    assert data is not None
    assert isinstance(criterion, OBS)
    windows = min(criterion.samples, len(data.features))
    if inputs.examples.held_out:
        where = f"{count} examples held out of train; " + (
            "whether model.finetuned was trained on them is not known here"
            if inputs.experiment.model.finetuned
            else "neither the dense model nor the pruning has seen them"
        )
    else:
        where = (
            f"{count} examples of the evaluation set, which the table of results reports: to choose a sparsity, set "
            "dataset.holdout=0.1"
        )
    return f"scored in float32 on {where}\ncalibrated on {windows} training windows"


def in_words(point: Point, dense: Point) -> str:
    """A point in one line."""
    best = point.best
    name = point.pattern if point is dense else f"{point.pattern} at {100 * point.target:.4g} %"
    lost = "" if point is dense else f" ({100 * (point.score - dense.score):+.1f} points)"
    return (
        f"{name}: {point.score:.4f}{lost}, {best.ms:.2f} ms in {best.runtime} {best.precision}, "
        f"{best.ratio_to_best_dense:.2f}x the best dense runtime"
    )


def fastest(points: Sequence[Point], drop: float) -> Point | None:
    """The fastest pruned model whose score is at most so much below the dense one's, if one is faster than that."""
    dense, *pruned = points
    faster = [each for each in pruned if each.score >= dense.score - drop and each.best.ratio_to_best_dense > 1]
    return max(faster, key=lambda each: each.best.ratio_to_best_dense, default=None)


def command_of(point: Point, overrides: Sequence[str]) -> str:
    """The run that makes the model of a point."""
    others = [each for each in overrides if not each.startswith("dataset.max_eval_samples=")]
    target = [] if ":" in point.pattern else [f"pattern.target_sparsity={point.target:g}"]
    return shlex.join(["python", "-m", "runner", *others, f"pattern={point.pattern}", *target])


def table(points: Sequence[Point], metric: str) -> str:
    """The points as text; ratios above 1 are faster than the best runtime of the dense model."""
    dense = points[0]
    head = ("pattern", "zeros", metric, "points", "ms", "to best dense", "runtime")
    rows = [
        (
            each.pattern, f"{100 * each.zeros:.1f}%", f"{each.score:.4f}",
            "" if each is dense else f"{100 * (each.score - dense.score):+.1f}", f"{each.best.ms:.2f}",
            f"{each.best.ratio_to_best_dense:.2f}x", f"{each.best.runtime} {each.best.precision}",
        )
        for each in points
    ]  # fmt: skip
    return "\n".join(aligned([head, *rows], right=range(1, 6)))


def draw(points: Sequence[Point], about: str, metric: str, file: Path) -> None:
    """Write the picture."""
    from results.quick_look import picture

    dense, *pruned = points
    lines: dict[str, list[tuple[float, float, float]]] = {}
    for each in pruned:
        lines.setdefault(each.pattern, []).append((each.best.ratio_to_best_dense, each.score, each.target))
    content = picture(lines, dense.score, about, metric, file.suffix.removeprefix("."))
    with writing(file):
        files.atomic_write(file, content)


if __name__ == "__main__":
    command(main)
