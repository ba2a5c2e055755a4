"""Prints the table of what was logged: `python -m results [--model bert-mini] [--pattern 2:4,4x1] [--format markdown]`.
`python -m results report` writes it with pictures and all that was run into an HTML page.

Exit status 0 also when there is nothing to show, 1 when the store cannot be read or the filters match nothing, 2 for a
wrong option.
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
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")

from mlflow import MlflowClient

from results import collect, table
from results.filters import Filters
from results.gather import NothingMatches, gather


def main(arguments: list[str] | None = None) -> int:
    """Prints the table that the arguments (None: the command line) ask for and returns the exit status."""
    options = parse(arguments)
    if fault := sqlite_fault(options.tracking_uri):
        return fail(fault)
    filters = Filters(options.model, options.dataset, options.pattern, options.tag, options.sweep)
    try:
        client = MlflowClient(tracking_uri=options.tracking_uri)
        rows, left_out = gather(client, options.experiment, filters, options.intervals, options.compare is not None)
    except (collect.UnknownExperiment, NothingMatches) as error:
        return fail(f"{error} (in {options.tracking_uri})")
    except Exception as error:  # MLflow lets through whatever its stores and drivers raise
        return fail(f"cannot read {options.tracking_uri}: {type(error).__name__}: {' '.join(str(error).split())}")
    notes = table.footnotes(rows, left_out)
    if options.command == "report":
        return write_report(client, rows, notes, options)
    show(rows, notes, options.format, options.wide)
    return 0


def write_report(client: MlflowClient, rows: list[collect.Row], notes: list[str], options: argparse.Namespace) -> int:
    """Writes the report page and says where, whole or not at all."""
    if not any(row.runs for row in rows):
        return fail("there is nothing to report: no pruned run is finished, verified and scored")
    from results import report

    text = report.page(client, rows, notes, options.experiment or "What sparsity costs")
    partial = options.output.with_name(f"{options.output.name}.tmp")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(options.output)
    except OSError as error:
        return fail(f"--output {options.output}: {error.strerror}")
    print(f"{options.output}: {len(rows)} rows, {len(text) / 1e6:.1f} MB, nothing in it needs a network")
    return 0


def show(rows: list[collect.Row], notes: list[str], form: str, wide: bool) -> None:
    """Prints the table, and its notes where the form has a place for them; else they go to stderr."""
    if form == "html":
        print(table.html(rows, notes))
        return
    by_people = form in table.READ_BY_PEOPLE
    if form == "table":
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
        text = table.terminal(rows, width, wide)
    else:
        text = table.FORMATS[form](rows)
    if rows or not by_people:
        print(text)
    if form == "markdown":
        notes = [f"- {table.in_markdown(note)}" for note in notes]
    if notes:
        separator = "\n" if rows and by_people else ""
        print(separator + "\n".join(notes), file=sys.stdout if by_people else sys.stderr)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m results",
        description="Print the table of the runs in MLflow: each row pools the seeds of runs that are alike otherwise.",
        epilog="A terminal narrower than the table gets it in blocks, one below the other. The relative drop is of the "
        "maxima, as in the published table; intervals are of drops of means, by a bootstrap over examples and seeds. "
        "Controls are the rows pattern=dense, and pattern=dense distill=none, of as many steps on the same data.",
    )
    what = "table: print it; report: write one HTML page with table, pictures and what was run (%(default)s)"
    parser.add_argument("command", nargs="?", choices=["table", "report"], default="table", help=what)
    output = "the report's file (%(default)s)"
    parser.add_argument("--output", metavar="FILE", type=Path, default=Path("report.html"), help=output)
    uri = os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db"
    where = "where the runs are; if left out, $MLFLOW_TRACKING_URI or else sqlite:///mlflow.db"
    parser.add_argument("--tracking-uri", metavar="URI", default=uri, help=where)
    parser.add_argument("--experiment", metavar="NAME", help="one experiment; all active ones if left out")
    parser.add_argument("--format", choices=table.FORMATS, default="table", help="(%(default)s)")
    wide = "with sizes and multiply-accumulates in --format table, too; the other formats always have them"
    parser.add_argument("--wide", action="store_true", help=wide)
    intervals = "leave the intervals out, which take an artifact of every run"
    parser.add_argument("--no-intervals", dest="intervals", action="store_false", help=intervals)
    compare = "set the published rows beside ours, and list those that we have no runs of"
    parser.add_argument("--compare", choices=["published"], help=compare)
    only = parser.add_argument_group("only some runs", "PATTERNS are shell patterns separated by commas: '2:4,*x1'.")
    for name in ("model", "dataset", "pattern"):
        only.add_argument(f"--{name}", metavar="PATTERNS", help=f"runs with this {name}")
    tag = "runs with this MLflow tag; may be given more than once, and then all must match"
    only.add_argument("--tag", metavar="KEY=VALUE", type=key_value, action="append", default=[], help=tag)
    only.add_argument("--sweep", metavar="RUN_ID", help="the runs of one sweep, by the id of its parent run")
    return parser.parse_args(arguments)


def key_value(text: str) -> tuple[str, str]:
    """KEY=VALUE taken apart."""
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE")
    return key, value


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
    try:
        status = main()
        sys.stdout.flush()
    except BrokenPipeError:  # whoever reads has enough, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python complains once more when it ends
        status = 0
    sys.exit(status)
