"""The examples that a sparse model lost and won against the dense one, with the scores of each slice of them.

python -m runner.examples RUN [--lost 20] [--won 5] [--format table|markdown|json|html] [--output FILE]

RUN is a finished run's folder, or its id in MLflow, where examples.html and examples.json are added to the run.
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

from results import columns
from runner import tracking
from runner.records import runs
from runner.records.error_analysis import Diagnosis, diagnose
from runner.records.error_tables import FORMATS, text_of
from runner.records.runs import Run
from runner.system.commands import command_parser
from runner.system.errors import UserError, writing
from runner.system.process import command, set_up_process
from runner.tracking import Tracking

log = logging.getLogger(__name__)

PATIENCE = 5.0
"""Seconds for which calls to a server that does not answer are retried: short, because a user waits."""


def main(arguments: list[str]) -> None:
    """Show the lost and won examples of a run, and add them to its MLflow run."""
    options = parse(arguments)
    set_up_process()
    where = Tracking(options.tracking_uri, patience=PATIENCE)
    run = runs.find(options.run, where)
    experiment = runs.restored(run, runs.places(options.places)).experiment
    diagnosis = diagnose(run, experiment.dataset, options.lost, options.won)
    if options.output is None:
        FORMATS[options.format](diagnosis, sys.stdout)
    else:
        with writing(options.output):
            options.output.parent.mkdir(parents=True, exist_ok=True)
            options.output.write_text(text_of(diagnosis, options.format), encoding="utf-8")
    if options.log:
        _log(diagnosis, run, where)


def _log(diagnosis: Diagnosis, run: Run, where: Tracking) -> None:
    """Add the analysis to the artifacts of the run, or warn that the store does not answer."""
    if run.run_id is None:
        log.warning("not added to the run in MLflow: it is not uploaded yet (python -m runner.upload %s)", run.folder)
        return
    texts = {columns.EXAMPLES_HTML: text_of(diagnosis, "html"), columns.EXAMPLES_JSON: text_of(diagnosis, "json")}
    try:
        tracking.add(where, run.run_id, texts, {})
    except UserError as error:
        log.warning("not added to the run in MLflow: %s", error)


def parse(arguments: list[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = command_parser("examples", "outputs/RUN --lost 20 --won 5", "outputs/RUN --format html --output lost.html")
    runs.add_arguments(parser)
    parser.add_argument("--lost", type=_count, default=10, metavar="N", help="lost examples to show (%(default)s)")
    parser.add_argument("--won", type=_count, default=10, metavar="N", help="won examples to show (%(default)s)")
    parser.add_argument("--format", choices=FORMATS, default="table", help="(%(default)s)")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write to FILE instead of printing")
    parser.add_argument("--no-log", dest="log", action="store_false", help="add nothing to the run in MLflow")
    return parser.parse_args(arguments)


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text} is not a number of examples")
    return int(text)


if __name__ == "__main__":
    command(main)
