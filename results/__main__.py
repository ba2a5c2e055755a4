"""Prints the table of results: `python -m results [--model bert-mini] [--pattern 2:4,4x1] [--format markdown]`.

`python -m results report` writes an HTML page with the table, pictures and details of the runs; `python -m results
picture` one picture of score against sparsity, measured latency or training steps; `python -m results pictures` all of
them, into a folder. Exit status: 0 (also for an empty table), 1 if the store cannot be read, the filters match nothing
or there is nothing to write, 2 for a wrong option.
"""

import argparse
import logging
import os
import shutil
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

# MLflow reads these when it is imported. By default it retries an unreachable server for minutes.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")  # seconds
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")


from results import columns, formats, sentences
from results.arguments import Parser, meant
from results.caveats import without_maxima
from results.filters import Filters
from results.load import Unreadable, client_of, load, readable
from results.rows import Row
from results.runs import ForeignServer, fetch
from results.safe_text import printable, readers_may_leave, safe_streams
from results.table import footnotes

if TYPE_CHECKING:
    from mlflow import MlflowClient

# Where commands write if --output is left out.
SENTENCES = "sentences"  # a format of its own option
OUTPUTS = {"report": "report.html", "picture": "score-against-{against}.{form}", "pictures": "pictures"}
EXAMPLES = ("", "--model 'bert-*' --pattern 4x1,2:4 --compare published", "--sentences", "pictures --format pdf",
            "report --output report.html")  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    """Prints the table that the arguments (None: the command line) ask for and returns the exit status."""
    try:
        Path.cwd()
    except FileNotFoundError:
        return fail("the working folder was deleted; change to one that exists, then run again")
    options = parse(arguments)
    filters = Filters(options.model, options.dataset, options.pattern, options.tag, options.sweep)
    uri, compare = options.tracking_uri, options.compare is not None
    try:
        client = client_of(uri)
        if options.run is not None:
            return write_picture_of_run(client, options.run, options.output)
        with readable(uri):
            logged = fetch(client, options.experiment)
            rows, left_out = load(client, options.experiment, filters, options.intervals, compare, logged)
    except Unreadable as error:
        return fail(str(error))
    if options.command == "table" and options.format == "table" and not (options.wide or compare):
        rows = without_maxima(rows)
    notes = footnotes(rows, left_out)
    if options.command == "table":
        show(rows, notes, options.format, options.wide)
        return 0
    if not any(row.runs for row in rows):
        verb = "report" if options.command == "report" else "draw"
        return fail(f"there is nothing to {verb}: no pruned run is finished, verified and scored")
    output = options.output or Path(OUTPUTS[options.command].format(against=options.against, form=options.format))
    if options.command == "picture":
        return write_picture(rows, output, options.against)
    if options.command == "pictures":
        return write_pictures(rows, output, options.format)
    from results import report

    title = options.experiment or "What sparsity costs"
    try:
        page = report.page(client, rows, notes, title, logged, options.limit).encode()
    except ForeignServer as error:
        return fail(f"{error} (in {options.tracking_uri})")
    return write(output, page, f"{len(rows)} rows, {len(page) / 1e6:.1f} MB, nothing in it needs a network")


def write_picture(rows: list[Row], output: Path, against: str) -> int:
    """Writes the picture of score against sparsity, latency or steps, in the format of the file's suffix, and returns
    the exit status."""
    from results.figures import rendered
    from results.pictures import AGAINST

    drawing = AGAINST[against]
    compared = drawing.groups(rows)
    if drawing.needs and not compared:
        return fail(f"--against {against}: {drawing.needs}")
    official = {key: group for key, group in compared.items() if group[0].holdout is None}
    alike = {(model, metric) for model, _, metric in compared}
    if len(official) == 1 < len(compared) and len(alike) == 1:
        others = ", ".join(" ".join(key) for key in compared if key not in official)
        print(f"note: not drawn, as they are scored on other examples: {others}; `pictures` draws all", file=sys.stderr)
        compared = official
    if len(compared) != 1:
        listed = ", ".join(" ".join(key) for key in compared) or "none with a pruned row"
        return fail(f"picture takes one model, dataset and metric: choose by --model, --dataset or --tag "
                    f"{columns.METRIC}=METRIC, or draw all with `pictures`; there are: {listed}")  # fmt: skip
    (((model, dataset, _), group),) = compared.items()
    figure = drawing.draw(group)
    try:
        content = rendered(figure, output.suffix.removeprefix(".") or "png")
    except ValueError as error:  # an unknown suffix
        return fail(f"--output {output}: {error}")
    return write(output, content, f"{model} on {dataset}, {len(group)} rows")


def write_picture_of_run(client: "MlflowClient", run_id: str, output: Path | None) -> int:
    """Writes the picture of one run's scores while it was pruned, and returns the exit status."""
    from mlflow.exceptions import MlflowException

    from results.figures import rendered
    from results.pictures import DURING, of_run

    try:
        figure = of_run(client, run_id).get(DURING)
    except MlflowException as error:
        return fail(f"--run {run_id}: {str(error).splitlines()[0]}")
    if figure is None:
        return fail(f"--run {run_id}: it was not scored while it was pruned; run with train.evaluate=updates "
                    "dataset.validation=0.05")  # fmt: skip
    output = output or Path("score-while-pruned.png")
    try:
        return write(output, rendered(figure, output.suffix.removeprefix(".") or "png"), f"run {run_id}")
    except ValueError as error:  # an unknown suffix
        return fail(f"--output {output}: {error}")


def write_pictures(rows: list[Row], folder: Path, form: str) -> int:
    """Writes all pictures that compare rows into a folder, prints the files, and returns the exit status."""
    from results import pictures

    figures = pictures.compared(rows)
    if not figures:
        return fail("there is nothing to draw: no pruned row")
    try:
        files = pictures.write(figures, folder, [form])
    except OSError as error:
        return fail(f"--output {folder}: {error.strerror}")
    print(*files, sep="\n")
    return 0


def write(output: Path, content: bytes, summary: str) -> int:
    """Writes a file whole or not at all, prints its name and summary, and returns the exit status."""
    partial = output.with_name(f"{output.name}.tmp")
    try:
        partial.write_bytes(content)
        partial.replace(output)
    except OSError as error:
        return fail(f"--output {output}: {error.strerror}")
    print(f"{output}: {summary}")
    return 0


def show(rows: list[Row], notes: list[str], form: str, wide: bool) -> None:
    """Prints the table and its notes; the notes go to stderr for formats that have no place for them."""
    if form == "html":
        print(formats.html(rows, notes))
        return
    for_people = form in (*formats.FOR_PEOPLE, SENTENCES)
    if form == SENTENCES:
        text = "\n".join(sentences.of_rows(rows))
    elif form == "table":
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
        text = formats.terminal(rows, width, wide)
    else:
        text = formats.FORMATS[form](rows)
    if rows or not for_people:
        print(text)
    if form == "markdown":
        notes = [f"- {formats.in_markdown(note)}" for note in notes]
    if notes:
        separator = "\n" if rows and for_people else ""
        print(separator + "\n".join(notes), file=sys.stdout if for_people else sys.stderr)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Parses the command line."""
    more = (
        "A table wider than the terminal is split into blocks, one below the other. Intervals are of drops of "
        "means, by a bootstrap over examples and seeds; the published drop, and ours with --wide or --compare, is of "
        "the maxima. "
        "Controls are the rows pattern=dense, and pattern=dense distill=none, with as many steps on the same data."
    )
    does = "print the table of the runs in MLflow: each row pools runs that differ only in their seed"
    parser = Parser("python -m results", does, EXAMPLES, more)
    what = (
        "table: print it; report: write one HTML page with table, pictures and details of the runs; picture: write the "
        "picture of score against sparsity, latency or steps, of one model, dataset and metric; pictures: write all of "
        "them into a folder (%(default)s)"
    )
    parser.add_argument("command", nargs="?", choices=["table", *OUTPUTS], default="table", help=what)
    against = (
        "what a picture has on its other axis: the zeros, the latency that benchmark=cpu measured, or the optimizer "
        "steps of runs that differ in nothing else (%(default)s)"
    )
    parser.add_argument("--against", choices=["sparsity", "latency", "steps"], default="sparsity", help=against)
    run = "picture: of this one run, by its MLflow id: the scores of train.evaluate=updates against the sparsity then"
    parser.add_argument("--run", metavar="RUN_ID", help=run)
    output = (
        "the file to write (report.html, or score-against-sparsity.png; a picture may be .svg or .pdf); the folder for "
        "pictures (pictures)"
    )
    parser.add_argument("--output", metavar="PLACE", type=Path, help=output)
    limit = "how many runs a report shows with pictures and configuration, the first seeds of all rows (%(default)s)"
    parser.add_argument("--limit", metavar="N", type=count, default=12, help=limit)
    uri = os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db"
    where = "where the runs are; if left out, $MLFLOW_TRACKING_URI or else sqlite:///mlflow.db"
    parser.add_argument("--tracking-uri", metavar="URI", default=uri, help=where)
    parser.add_argument("--experiment", metavar="NAME", help="one experiment; all active ones if left out")
    form = f"of the table: {', '.join(formats.FORMATS)} (table); of pictures: {', '.join(formats.FOR_PICTURES)} (png)"
    parser.add_argument("--format", metavar="FORMAT", help=form)
    wide = "show every figure in --format table, too; the other formats always do"
    parser.add_argument("--wide", action="store_true", help=wide)
    quoted = "print a sentence to quote for each row instead: what it costs, how sure that is, how fast it is"
    parser.add_argument("--sentences", dest="format", action="store_const", const=SENTENCES, help=quoted)
    intervals = "leave out the intervals, which need an artifact of every run"
    parser.add_argument("--no-intervals", dest="intervals", action="store_false", help=intervals)
    compare = "add the published figures to our rows, and the published rows that we have no runs of"
    parser.add_argument("--compare", choices=["published"], help=compare)
    only = parser.add_argument_group("only some runs", "PATTERNS are shell patterns separated by commas: '2:4,*x1'.")
    for name in ("model", "dataset", "pattern"):
        only.add_argument(f"--{name}", metavar="PATTERNS", help=f"runs with this {name}")
    tag = "runs with this MLflow tag; may be given more than once, and then all must match"
    only.add_argument("--tag", metavar="KEY=VALUE", type=key_value, action="append", default=[], help=tag)
    only.add_argument("--sweep", metavar="RUN_ID", help="the runs of one sweep, by the id of its parent run")
    options = parser.parse_args(arguments)
    if options.run is not None and options.command != "picture":
        parser.error(f"--run is of the picture of one run: python -m results picture --run {options.run}")
    choose_format(parser, options)
    return options


def choose_format(parser: Parser, options: argparse.Namespace) -> None:
    """Set the format if none was given, and refuse one that the command does not have."""
    drawn = options.command in ("picture", "pictures")
    known = formats.FOR_PICTURES if drawn else tuple(formats.FORMATS)
    options.format = options.format or known[0]
    if options.format not in (*known, SENTENCES):
        what = "pictures" if drawn else "the table"
        meant_form = meant(options.format, known)
        parser.error(f"--format {options.format}: formats of {what} are {', '.join(known)}{meant_form}")


def key_value(text: str) -> tuple[str, str]:
    """Splits KEY=VALUE."""
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE")
    return key, value


def count(text: str) -> int:
    """A whole number from 0."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 0")
    return int(text)


def fail(message: str) -> int:
    """Prints the error and returns the exit status."""
    print(f"error: {printable(message)}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    # Alembic, urllib3 and MLflow log to stderr, which is for our messages.
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    status = 0
    with readers_may_leave(), safe_streams():
        status = main()
    sys.exit(status)
