"""Run a finished run again from what it kept, and say whether the same comes out, bit for bit.

python -m runner.reproduce RUN [--tolerance 0.001] [--output-dir reproductions] [--keep-cache] [--no-log]

RUN is its folder, or its id in MLflow. The exit status is 0 if all is the same, 1 if not. Nothing that the run computed
is used again: the reproduction has a cache of its own. One that was interrupted goes on when the command is given
again; --again starts it anew.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from results import columns
from runner import models, tracking
from runner.config.experiment import Experiment, Origin
from runner.config.restore import Restored, candidates, restore
from runner.records import runs
from runner.records.runs import MadeBy, Run
from runner.system import files, ranks
from runner.system.errors import UserError
from runner.tracking import Tracking

if TYPE_CHECKING:
    from runner.data.task import Examples
    from runner.experiment import Result, Sources

log = logging.getLogger(__name__)

_BEGUN = "begun.json"  # what a reproduction is made by, beside its folder

WEIGHTS = "saved model"
"""What is compared beside the scores where a run did not keep what its stages made."""


@dataclass
class Comparison:
    """What came out, beside what came out then."""

    run: str
    """The folder of the run."""
    reproduction: str
    """The folder of the reproduction."""
    circumstances: list[str]
    """What is not as it was, known before anything was computed."""
    stages: dict[str, bool]
    """Whether each stage made the same, in their order."""
    scores: dict[str, tuple[float, float]]
    """By model and metric: then and now, fractions."""
    tolerance: float | None
    """How much scores may differ; None: nothing may."""

    @property
    def first(self) -> str | None:
        """The first stage that made something else."""
        return next((stage for stage, same in self.stages.items() if not same), None)

    @property
    def furthest(self) -> float:
        """The largest difference of two scores."""
        return max(abs(now - then) for then, now in self.scores.values())

    @property
    def same(self) -> bool:
        """Bit for bit, as far as the run can tell."""
        return self.first is None and self.furthest == 0

    @property
    def reproduced(self) -> bool:
        """Whether it is the same, or as near as was asked for."""
        return self.same or (self.tolerance is not None and self.furthest <= self.tolerance)

    @property
    def verdict(self) -> str:
        """In a few words."""
        if self.same:
            return "bit for bit"
        return f"differs first: {self.first or 'scores'}"


# --- before it runs -----------------------------------------------------------------------------------------


@dataclass
class Repetition:
    """A run, ready to be run again."""

    experiment: Experiment
    origin: Origin
    made_by: MadeBy
    """What it will be made by."""
    circumstances: list[str]
    """What is not as it was then."""


def prepared(run: Run, options: argparse.Namespace, place: Path) -> Repetition:
    """The run's configuration, exactly, with places of its own; and what is not as it was then.

    Raises:
        UserError: what it needs is not there, or this version cannot say what it was.
    """
    from runner.experiment import identity_of, resolved

    moves, kept = runs.places(options.places), runs.kept(run)
    changes: dict[str, str | None] = {**moves, "force": "false", "output_dir": str(place)}
    if not options.keep_cache:
        changes["cache_dir"] = str(place / "cache")
    if not options.log:
        changes["tracking.uri"] = f"sqlite:///{place / 'mlflow.db'}"
    elif options.tracking_uri:
        changes["tracking.uri"] = options.tracking_uri
    if kept is not None:
        changes |= {f"{name}.precision": value for name, value in kept.precision.items()}
    found = runs.restored(run, changes) if kept is not None else of_older(run, moves, changes)
    labels = {name: run.result[name] for name in columns.LABELS}
    told = (kept.choices, kept.changed, kept.overrides) if kept is not None else (labels, {}, [])
    origin = Origin(labels, *told, found.yaml, repeats=run.run_id or str(run.folder.resolve()))
    experiment = resolved(found.experiment)
    sources, examples = inputs(run, experiment)
    now = runs.made_by(experiment, origin, (sources.base, sources.teacher, sources.sparse), examples)
    differ = list(differences(kept, now)) if kept is not None else ["the run did not keep what it was made by"]
    differ += [f"{key} is newer than the run: the default of this version is taken" for key in found.added]
    if not differ and identity_of(experiment, sources, examples).run != run.result["identity"]:
        differ = ["config.yaml is not as the run wrote it: it gives another identity"]
    return Repetition(experiment, origin, now, [*differ, *damage(run)])


def place_of(run: Run, parent: Path, keeps_cache: bool) -> Path:
    """The folder of a run's reproduction: the same each time, so that it goes on."""
    place = parent / (run.folder.resolve().name + ("-kept-cache" if keeps_cache else ""))
    if (place / columns.CONFIG).exists():
        raise UserError(f"--output-dir {parent}: {place} is a run's own folder; choose another --output-dir")
    return place


def begin(place: Path, now: MadeBy, again: bool) -> None:
    """Clear what an earlier reproduction left, if this one is not to go on with it.

    Args:
        again: it is not, whatever it was made by.
    """
    file = place / _BEGUN
    before = files.read_json(file)
    if before is not None:
        others = list(differences(MadeBy(**before), now))
        if again or others:
            print("The one that was begun there is not gone on with.", *others, sep="\n  ", flush=True)
            for path in place.iterdir():
                if path.name != ".lock":  # held by this process
                    files.remove(path)
        else:
            print("It goes on from what lies there; --again would begin anew.", flush=True)
    files.write_json(file, asdict(now))


def of_older(run: Run, moves: Mapping[str, str], changes: Mapping[str, str | None]) -> Restored:
    """The configuration of a run that did not keep its classes: those that give it the identity that it had."""
    from runner.experiment import identity_of, resolved

    loaded = None
    for classes in candidates(run.yaml):
        # Whether bf16 pays was measured in the run's own cache.
        tried = resolved(restore(run.yaml, classes, moves).experiment)
        loaded = loaded or inputs(run, tried)
        if identity_of(tried, *loaded).run == run.result["identity"]:
            found = {"train.precision": tried.train.precision, "finetune.precision": tried.finetune.precision}
            precision = {key: value.value if value is not None else None for key, value in found.items()}
            return restore(run.yaml, classes, {**changes, **precision})
    raise UserError(
        f"{run.folder}: the version of the runner that made it did not keep which criterion, allocation and the like "
        "it used, and none of those that fit its config.yaml gives it the identity that it had: the data, the base "
        "model or a stage's algorithm are others than then"
    )


def inputs(run: Run, experiment: Experiment) -> tuple[Sources, Examples]:
    """What the run starts from. Raises UserError if it is not there any more."""
    from runner.experiment import find

    try:
        return find(experiment), experiment.dataset.read(train=experiment.trains)
    except UserError as error:
        raise runs.moved(run, error) from error


def differences(then: MadeBy, now: MadeBy) -> Iterator[str]:
    """How two processes and what they start from differ."""
    if then.data != now.data:
        yield "dataset.path: the examples are others than then"
    for key in now.checkpoints:
        if then.checkpoints.get(key) != now.checkpoints[key]:
            yield f"{key}: the checkpoint is another than then, or its files were changed"
    yield from _changed("version of the stage {}", then.stages, now.stages)
    yield from _changed("{}", then.packages, now.packages)
    yield from _changed("{}", *({"hardware": m.hardware, "instructions": m.instructions} for m in (then, now)))
    if then.ranks != now.ranks:
        yield (
            f"ranks: {then.ranks} then, {now.ranks} now "
            f"(torchrun --nproc-per-node {then.ranks} -m runner.reproduce ... gives the same number)"
        )
    if then.threads != now.threads:
        yield f"threads: {then.threads} then, {now.threads} now (OMP_NUM_THREADS={then.threads} gives the same number)"
    if then.code != now.code:
        yield f"code of the runner: {then.code or 'unknown'} then, {now.code or 'unknown'} now"


def _changed(name: str, then: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    for key in {**then, **now}:
        if then.get(key) != now.get(key):
            yield f"{name.format(key)}: {then.get(key, 'none')} then, {now.get(key, 'none')} now"


def damage(run: Run) -> Iterator[str]:
    """Whether the saved model is still the one that the run saved."""
    problem = files.integrity_error(run.folder / "model")
    made = run.result.get("stages", {}).get("prune")
    if problem is None and made is not None and weights(run.folder) != made:
        problem = "its weights are not those that the run made"
    if problem is not None:
        yield f"{run.folder / 'model'} was changed since: {problem}"


def weights(folder: Path) -> str:
    """Hash of the weights that a run saved."""
    path = str(folder / "model")
    return models.find(path, "the saved model", models.Model(path)).weights


# --- after it ran -------------------------------------------------------------------------------------------


def compare(run: Run, now: Result, circumstances: list[str], tolerance: float | None) -> Comparison:
    """Stages and scores, side by side."""
    then = run.result.get("stages") or {}
    names = list(dict.fromkeys([*then, *now.stages]))
    same = {stage: then.get(stage) == now.stages.get(stage) for stage in names}
    if not then:  # made before they were kept
        same = {WEIGHTS: weights(run.folder) == weights(Path(now.folder))}
    scores = {}
    for model, before, after in (
        ("dense", run.result["dense"], now.dense),
        ("sparse", run.result["sparse"], now.sparse),
    ):
        scores |= {f"{model} {metric}": (value, (after or {})[metric]) for metric, value in (before or {}).items()}
    return Comparison(str(run.folder), now.folder, circumstances, same, scores, tolerance)


def show(found: Comparison) -> None:
    """Print the tables and what follows from them."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, markup=False)
    stages = Table("Stage", "", box=box.SIMPLE_HEAD)
    for stage, same in found.stages.items():
        stages.add_row(stage, "same" if same else "differs")
    console.print(stages)
    scores = Table("Score", box=box.SIMPLE_HEAD)
    for title in ("Then", "Now", "Difference"):
        scores.add_column(title, justify="right")
    for name, (then, now) in found.scores.items():
        scores.add_row(name, f"{then:.6f}", f"{now:.6f}", f"{now - then:+.6f}" if now != then else "same")
    console.print(scores)
    for line in conclusion(found):
        console.print(line, soft_wrap=True)


def conclusion(found: Comparison) -> Iterator[str]:
    """What is to be said in the end."""
    older = WEIGHTS in found.stages
    if older:
        yield "The run was made before hashes of its stages were kept: its saved model and its scores are compared."
    if found.same:
        all_of_it = (
            "the saved model and the scores are" if older else f"all {len(found.stages)} stages and the scores are"
        )
        yield f"Reproduced bit for bit: {all_of_it} the same."
        return
    how = f"{found.first} differs first" if found.first else "the scores differ"
    far = f"the scores differ by at most {found.furthest:.6f}" if found.furthest else "the scores are the same"
    if found.tolerance is not None:
        far += f", which is {'within' if found.reproduced else 'more than'} the tolerance of {found.tolerance:g}"
    yield f"{'Reproduced, not bit for bit' if found.reproduced else 'Not reproduced'}: {how}; {far}."
    if found.circumstances:
        yield "What is not as it was then, and may be why:"
        yield from (f"  {line}" for line in found.circumstances)
    elif found.first:
        yield "Nothing is known that is not as it was then: one of the two machines did not compute as it should."


# --- the command line ---------------------------------------------------------------------------------------


def main(arguments: list[str]) -> int:
    """Reproduce the command line's run; 0 if the same came out."""
    options = parse(arguments)
    from runner import experiment
    from runner.experiment import alone, saving, set_up_process

    run = runs.find(options.run, Tracking(options.tracking_uri))
    set_up_process()
    place = place_of(run, options.output_dir, options.keep_cache)
    again = prepared(run, options, place)
    print(f"{run.folder} is run again in {again.experiment.output_dir}", flush=True)
    print("What is not as it was then:" if again.circumstances else "All that is known of it is as it was then.")
    print(*(f"  {line}\n" for line in again.circumstances), sep="", end="", flush=True)
    if options.keep_cache:
        print(f"What lies in {again.experiment.cache_dir} is not computed again.", flush=True)
    with saving(place):
        pass  # it is made
    with alone(place):
        with saving(place):
            begin(place, again.made_by, options.again)
        now = experiment.run(again.experiment, again.origin)
    found = compare(run, now, again.circumstances, options.tolerance)
    show(found)
    if options.log:
        _log(found, now, again.experiment.tracking)
    return 0 if found.reproduced else 1


def _log(found: Comparison, now: Result, where: Tracking) -> None:
    """Add the outcome to the reproduction's own run."""
    if now.mlflow_run is None:
        log.warning("the outcome is not added to MLflow, which was away")
        return
    text = json.dumps({**asdict(found), "verdict": found.verdict}, indent=1)
    try:
        tracking.add(where, now.mlflow_run, {columns.COMPARISON: text}, {columns.REPRODUCED: found.verdict})
    except UserError as error:
        log.warning("the outcome is not added to MLflow: %s", error)


def parse(arguments: list[str]) -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m runner.reproduce", description="Run a finished run again, and compare what comes out"
    )
    parser.add_argument("run", metavar="RUN", help="its folder, or its id in MLflow")
    parser.add_argument("places", nargs="*", metavar="KEY=PLACE", help="what has moved, such as model.path=FOLDER")
    parser.add_argument("--output-dir", type=Path, default=Path("reproductions"), metavar="DIR", help="(%(default)s)")
    parser.add_argument("--tolerance", type=_tolerance, metavar="X",
                        help="exit status 0 also if bits differ, but no score by more than this fraction")  # fmt: skip
    parser.add_argument("--keep-cache", action="store_true",
                        help="use the features, dense model and teacher's logits that the run left")  # fmt: skip
    parser.add_argument("--again", action="store_true", help="do not go on with an earlier reproduction")
    parser.add_argument("--tracking-uri", metavar="URI", help="the MLflow store, if another than the run's")
    parser.add_argument("--no-log", dest="log", action="store_false", help="leave MLflow alone")
    return parser.parse_args(arguments)


def _tolerance(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is out of range: a fraction from 0 to 1")
    return value


def _command_line() -> int:
    from runner.system.process import exit_status

    if ranks.rank():
        return exit_status(ranks.follow)
    status: list[int] = []
    return exit_status(lambda: status.append(main(sys.argv[1:]))) or status[0]


if __name__ == "__main__":
    sys.exit(ranks.lead(_command_line) if ranks.rank() == 0 else _command_line())
