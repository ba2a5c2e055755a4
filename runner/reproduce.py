"""Run a finished run again from its record, and compare the outcome bit for bit.

python -m runner.reproduce RUN [--tolerance 0.001] [--output-dir reproductions] [--keep-cache] [--no-log]

RUN is its folder, or its id in MLflow. The exit status is 0 if all is the same, 1 if not. Nothing that the run computed
is used again: the reproduction has a cache of its own. An interrupted reproduction resumes when the command is given
again; --again starts it anew.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from results import columns
from runner import experiment, tracking
from runner.config.experiment import Experiment, Origin
from runner.config.restore import read
from runner.data.examples import Examples
from runner.records import runs
from runner.records.comparison import Comparison, compare, damage, differences, show
from runner.records.result import Result
from runner.records.runs import MadeBy, Run
from runner.stages.inputs import Sources, find_sources, identity_of
from runner.system import files, ranks
from runner.system.commands import command_parser
from runner.system.errors import UserError
from runner.system.locks import exclusive, saving
from runner.system.process import RESUMES, exit_status, set_up_process, status_of
from runner.tracking import Tracking

log = logging.getLogger("runner.reproduce")  # __name__ is __main__ on the command line, which logs no progress

_BEGUN = "begun.json"  # in the reproduction's place: what it is made by


@dataclass
class Repetition:
    """A run, ready to be run again."""

    experiment: Experiment
    origin: Origin
    made_by: MadeBy
    """What it will be made by."""
    circumstances: list[str]
    """What differs from the run."""


def prepared(run: Run, options: argparse.Namespace, place: Path) -> Repetition:
    """The run's exact configuration, with places of its own; and what differs from the run.

    Raises:
        UserError: what it needs is missing, or this version cannot restore it.
    """
    then = runs.made_by_of(run)
    changes: dict[str, Any] = {**runs.places(options.places), "force": "false", "output_dir": str(place)}
    recorded = read(run.yaml)
    changes["cache_dir"] = str(recorded.get("cache_dir", "cache") if options.keep_cache else place / "cache")
    changes["tracking.experiment"] = recorded.get("tracking", {}).get("experiment", Tracking().experiment)
    for key in ("cache_dir", "tracking.experiment"):
        if "${" in str(changes[key]):
            raise UserError(
                f"config.yaml: {key}={changes[key]} is an interpolation, which is not followed in the record of a run; "
                "write there the value that the run had"
            )
    if not options.log:
        changes["tracking.uri"] = f"sqlite:///{place / 'mlflow.db'}"
    elif options.tracking_uri:
        changes["tracking.uri"] = options.tracking_uri
    restored = runs.restored(run, changes | {f"{name}.precision": value for name, value in then.precision.items()})
    labels = {name: run.result[name] for name in columns.LABELS}
    repeats = run.run_id or str(run.folder.resolve())
    origin = Origin(labels, then.choices, then.changed, then.overrides, restored.yaml, repeats)
    again = restored.experiment.resolved()
    sources, examples = inputs(run, again)
    now = runs.made_by(again, origin, (sources.base, *sources.others), examples)
    differ = list(differences(then, now))
    differ += [f"{key} is newer than the run: the default of this version is taken" for key in restored.added]
    if not differ and identity_of(again, sources, examples).run != run.result["identity"]:
        differ = ["config.yaml is not as the run wrote it: it gives another identity"]
    differ += [f"not all of the run had the circumstances that its record names: {line}" for line in then.others]
    return Repetition(again, origin, now, [*differ, *damage(run)])


def inputs(run: Run, again: Experiment) -> tuple[Sources, Examples]:
    """What the run starts from. Raises UserError if it does not exist any more."""
    try:
        return find_sources(again), again.dataset.read(train=again.trains)
    except UserError as error:
        raise runs.moved(run, error) from error


def place_of(run: Run, parent: Path, keeps_cache: bool) -> Path:
    """The folder of a run's reproduction: the same each time, so that it can resume."""
    place = parent / (run.folder.resolve().name + ("-with-cache" if keeps_cache else ""))
    if (place / columns.CONFIG).exists():
        raise UserError(f"--output-dir {parent}: {place} is a run's own folder; choose another --output-dir")
    return place


def begin(place: Path, now: MadeBy, again: bool) -> None:
    """Remove what an earlier reproduction left, unless this one resumes it.

    Args:
        again: start anew in any case.
    """
    file = place / _BEGUN
    before = files.read_json(file)
    if before is not None:
        others = list(differences(MadeBy(**before), now))
        if again or others:
            reasons = "".join(f"\n  {line}" for line in others)
            log.info("The reproduction that was begun there is not resumed.%s", reasons)
            for path in place.iterdir():
                if path.name != ".lock":  # held by this process
                    files.remove(path)
        else:
            log.info("It resumes what was begun there; --again starts anew.")
    files.write_json(file, asdict(now))


def main(arguments: list[str]) -> int:
    """Reproduce the command line's run; 0 if the outcome is the same."""
    options = parse(arguments)
    run = runs.find(options.run, Tracking(options.tracking_uri))
    set_up_process()
    place = place_of(run, options.output_dir, options.keep_cache)
    again = prepared(run, options, place)
    log.info("%s is run again in %s", run.folder, again.experiment.output_dir)
    print("Circumstances that differ:" if again.circumstances else "No circumstance is known to differ.")
    print(*(f"  {line}\n" for line in again.circumstances), sep="", end="", flush=True)
    if options.keep_cache:
        log.info("The contents of %s are not computed again.", again.experiment.cache_dir)
    with saving(place):
        pass  # the folder exists now
    with exclusive(place):
        with saving(place):
            begin(place, again.made_by, options.again)
        now = experiment.run(again.experiment, again.origin)
    log.info("%s", now.summary)
    comparison = compare(run, now, again.circumstances, options.tolerance)
    show(comparison)
    if options.log:
        _log(comparison, now, again.experiment.tracking)
    return 0 if comparison.reproduced else 1


def _log(comparison: Comparison, now: Result, where: Tracking) -> None:
    """Add the outcome to the reproduction's own run."""
    if now.mlflow_run is None:
        log.warning("the outcome is not added to MLflow: the server does not answer")
        return
    text = json.dumps({**asdict(comparison), "verdict": comparison.verdict}, indent=1)
    try:
        tracking.add(where, now.mlflow_run, {columns.COMPARISON: text}, {columns.REPRODUCED: comparison.verdict})
    except UserError as error:
        log.warning("the outcome is not added to MLflow: %s", error)


def parse(arguments: list[str]) -> argparse.Namespace:
    """The options of the command line."""
    parser = command_parser("reproduce", "outputs/RUN", "outputs/RUN dataset.path=FOLDER --tolerance 0.001")
    runs.add_arguments(parser)
    parser.add_argument("--output-dir", type=Path, default=Path("reproductions"), metavar="DIR", help="(%(default)s)")
    parser.add_argument("--tolerance", type=_tolerance, metavar="X",
                        help="exit status 0 also if bits differ, but no score by more than this fraction")  # fmt: skip
    parser.add_argument("--keep-cache", action="store_true",
                        help="use the features, dense model and teacher's logits that the run left")  # fmt: skip
    parser.add_argument("--again", action="store_true", help="do not resume an earlier reproduction")
    parser.add_argument("--no-log", dest="log", action="store_false", help="leave MLflow alone")
    return parser.parse_intermixed_args(arguments)


def _tolerance(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is out of range: a fraction from 0 to 1")
    return value


def _command_line() -> int:
    if ranks.rank():
        return exit_status(ranks.follow)
    return status_of(main, RESUMES)


if __name__ == "__main__":
    sys.exit(ranks.lead(_command_line) if ranks.rank() == 0 else _command_line())
