"""Upload what runs could not log while the MLflow server did not answer.

python -m runner.upload FOLDER [FOLDER ...] [--tracking-uri URI]

FOLDER is a run's folder, or the output_dir of many runs. Each operation is sent once, even if an upload is interrupted
and repeated.
"""

from __future__ import annotations

from pathlib import Path

from runner.system.commands import command_parser
from runner.system.errors import UserError
from runner.system.locks import exclusive
from runner.system.process import command, set_up_process
from runner.system.spelling import did_you_mean
from runner.tracking import Tracking, Unreachable, outbox, with_retries
from runner.tracking.outbox import Header, Outbox
from runner.tracking.store import credentials_given, sqlite_file
from runner.tracking.upload import send

PATIENCE = 5.0
"""Seconds for which calls to a server that does not answer are retried: short, because a user waits."""


def waiting(folder: Path) -> list[Path]:
    """The run folders with an outbox: the folder itself, or those below it."""
    folders = [folder, *sorted(folder.glob("*/")), *sorted(folder.glob("sweeps/*/"))]
    return [place for place in folders if (place / outbox.NAME).is_file()]


def main(arguments: list[str]) -> None:
    """Upload the outboxes of all given folders."""
    parser = command_parser("upload", "outputs")
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="a run's folder, or an output_dir")
    parser.add_argument("--tracking-uri", metavar="URI", help="the MLflow store, if another than the runs'")
    options = parser.parse_args(arguments)
    set_up_process()
    for folder in options.folders:
        if not folder.is_dir():
            raise UserError(f"{folder}: there is no such folder{did_you_mean(folder)}")
        if not waiting(folder):
            print(f"{folder}: nothing waits to be uploaded")
        for place in waiting(folder):
            _upload(place, options.tracking_uri)


def _upload(place: Path, uri: str | None) -> None:
    with exclusive(place):
        pending = Outbox.read(place)
        if pending is None:
            raise UserError(f"{place / outbox.NAME} is damaged: its first line does not name the run")
        header = pending.header()
        tracking = _store_of(header, uri)
        try:
            run_id = with_retries(tracking, lambda: send(tracking, place))
        except Unreachable as unreachable:
            raise UserError(f"{unreachable}; nothing is lost: start it and repeat this command") from unreachable
    print(f"{place}: uploaded as MLflow run {run_id}")


def _store_of(header: Header, uri: str | None) -> Tracking:
    """Today's own store, if it is the one that the outbox names; else that one, which gets no credentials of today's
    environment, as the outbox may be of somebody else.

    Raises:
        UserError: it would get some.
    """
    today = Tracking(uri, header.experiment, patience=PATIENCE)
    if uri or today.shown == header.uri:
        return today
    named = Tracking(header.uri, header.experiment, patience=PATIENCE)
    file, secret = sqlite_file(named), credentials_given()
    if file is not None and not file.is_file():
        raise UserError(f"tracking.uri={named.shown}: there is no such database; name the store by --tracking-uri")
    if file is None and (secret or not header.uri.startswith(("http://", "https://"))):
        why = f", and {secret} is not sent to it" if secret else ""
        raise UserError(
            f"tracking.uri={named.shown} is named by the outbox alone{why}: if this store is yours, name it by "
            "--tracking-uri or MLFLOW_TRACKING_URI"
        )
    return named


if __name__ == "__main__":
    command(main)
