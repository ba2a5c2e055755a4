"""Prints the table of what was logged: `python -m results [--experiment NAME] [--format markdown]`.

Exit status 0 also when there is nothing to show, 1 when the store cannot be read, 2 for a wrong option.
"""

import argparse
import logging
import os
import re
import shutil
import sqlite3
import sys
import warnings
from pathlib import Path

# MLflow reads these when it is imported. Left alone it retries an unreachable server for minutes.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")  # seconds

from mlflow import MlflowClient

from results import collect, table


def main(arguments: list[str] | None = None) -> int:
    """Prints the table that the arguments (None: the command line) ask for and returns the exit status."""
    options = parse(arguments)
    if fault := sqlite_fault(options.tracking_uri):
        return fail(fault)
    try:
        logged = collect.fetch(MlflowClient(tracking_uri=options.tracking_uri), options.experiment)
    except collect.UnknownExperiment as error:
        return fail(f"{error} (in {options.tracking_uri})")
    except Exception as error:  # MLflow lets through whatever its stores and drivers raise
        return fail(f"cannot read {options.tracking_uri}: {type(error).__name__}: {' '.join(str(error).split())}")
    runs, left_out = collect.select(logged)
    rows = collect.pool(runs)
    notes = "\n".join(table.footnotes(rows, left_out))
    by_people = options.format in table.READ_BY_PEOPLE
    if options.format == "table" and sys.stdout.isatty():
        text = table.terminal(rows, shutil.get_terminal_size().columns)
    else:
        text = table.FORMATS[options.format](rows)
    if rows or not by_people:
        print(text)
    if notes:
        separator = "\n" if rows and by_people else ""
        print(separator + notes, file=sys.stdout if by_people else sys.stderr)
    return 0


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(prog="python -m results", description="Print the table of the runs in MLflow.")
    uri = os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db"
    where = "where the runs are; if left out, $MLFLOW_TRACKING_URI or else sqlite:///mlflow.db"
    parser.add_argument("--tracking-uri", metavar="URI", default=uri, help=where)
    parser.add_argument("--experiment", metavar="NAME", help="one experiment; all active ones if left out")
    parser.add_argument("--format", choices=table.FORMATS, default="table", help="(%(default)s)")
    return parser.parse_args(arguments)


def sqlite_fault(uri: str) -> str | None:
    """What is wrong with the file of a sqlite URI; None if nothing is, or for another kind of store.

    Looked up before MLflow is asked, which would create the file, its folder and its tables without a word.
    """
    found = re.fullmatch(r"sqlite(?:\+\w+)?:///([^?]+)(?:\?.*)?", uri)
    if not found:
        return None
    path = Path(found[1]).absolute()
    remedy = "run `python -m runner` first, or say with --tracking-uri where the runs are"
    if not path.is_file():
        return f"there is no MLflow database {path}: {remedy}"
    try:
        connection = sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)
        try:
            tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        finally:
            connection.close()
    except sqlite3.Error as error:
        return f"cannot read {path}: {error}"
    return None if "experiments" in tables else f"{path} is no MLflow database: {remedy}"


def fail(message: str) -> int:
    """Says what went wrong, without the password that a URI may hold, and returns the exit status."""
    print("error: " + re.sub(r"//[^/@\s]*@", "//***@", message), file=sys.stderr)
    return 1


if __name__ == "__main__":
    # Alembic, urllib3 and MLflow report on themselves; the output is the table's.
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    sys.exit(main())
