"""Upload what runs could not log while the MLflow server was away.

python -m runner.upload FOLDER [FOLDER ...] [--tracking-uri URI]

FOLDER is a run's, or the output_dir of many. Each thing is sent once, also if an upload is interrupted and repeated.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from runner.system.errors import UserError
from runner.system.locks import exclusive
from runner.system.process import set_up_process
from runner.tracking import Tracking, Unreachable, outbox, with_retries
from runner.tracking.outbox import Outbox
from runner.tracking.upload import send

PATIENCE = 5.0
"""Seconds for which a server that does not answer is tried again: here somebody waits."""


def waiting(folder: Path) -> list[Path]:
    """The folders of runs, here or below, that keep something."""
    found = [folder, *sorted(folder.glob("*/")), *sorted(folder.glob("sweeps/*/"))]
    return [place for place in found if (place / outbox.NAME).is_file()]


def main(arguments: list[str]) -> None:
    """Upload all of it, or say why not."""
    parser = argparse.ArgumentParser(prog="python -m runner.upload", description="Upload what runs could not log")
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="of a run, or the output_dir of many")
    parser.add_argument("--tracking-uri", help="another store than the one that the runs were meant for")
    options = parser.parse_args(arguments)
    set_up_process()
    for folder in options.folders:
        if not folder.is_dir():
            raise UserError(f"{folder}: there is no such folder")
        if not waiting(folder):
            print(f"{folder}: nothing waits to be uploaded")
        for place in waiting(folder):
            _upload(place, options.tracking_uri)


def _upload(place: Path, uri: str | None) -> None:
    with exclusive(place):
        kept = Outbox.read(place)
        if kept is None:
            raise UserError(f"{place / outbox.NAME} is damaged: its first line does not name the run")
        header = kept.header()
        tracking = Tracking(uri or header.uri, header.experiment, patience=PATIENCE)
        try:
            run_id = with_retries(tracking, lambda: send(tracking, place))
        except Unreachable as away:
            raise UserError(f"{away}; nothing is lost: start it, and give the same command again") from away
    print(f"{place}: uploaded as MLflow run {run_id}")


if __name__ == "__main__":
    from runner.system.process import exit_status

    sys.exit(exit_status(lambda: main(sys.argv[1:])))
