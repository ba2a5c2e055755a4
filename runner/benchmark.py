"""How fast a saved model is on this CPU, in the sparse runtime and in every dense one that is installed, or on a GPU.

python -m runner.benchmark FOLDER_OR_RUN [--batch 1,8] [--length 128,384] [--threads 1]
                                         [--precision float32,bfloat16,int8] [--compile] [--json] [--tracking-uri URI]
                                         [--device cpu|cuda]

FOLDER_OR_RUN is a model's folder, a run's folder, or a run's id in MLflow. With one thread the times are CPU times,
with several they are times on the clock: see `runner.speed.timing`. On a GPU
the model is timed dense and in the 2:4 forms of torch: see `runner.speed.cuda`.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

from runner.models import positions
from runner.records import runs
from runner.speed.cuda import measure_cuda, require_cuda, verdicts
from runner.speed.measure import Grid, batch_of, load, measure
from runner.speed.runtimes import TOLERANCE, default_precisions
from runner.speed.timing import Timing
from runner.system.commands import command_parser
from runner.system.errors import UserError
from runner.system.process import command, set_up_process
from runner.tracking import Tracking

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["batch_of", "default_precisions", "main"]


def main(arguments: list[str]) -> None:
    """Time a model and print a table, or JSON.

    Raises:
        UserError: there is no model, or an argument makes no sense.
    """
    parser = command_parser(
        "benchmark", "outputs/RUN", "outputs/RUN --batch 1,8 --length 128,384", "outputs/RUN --device cuda"
    )
    where = "folder of a saved model or of a run, or a run's id in MLflow"
    parser.add_argument("folder", metavar="FOLDER_OR_RUN", help=where)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="cuda: dense and 2:4 on a GPU")
    parser.add_argument("--batch", help="batch sizes, such as 1,8; default: 1, on a GPU 1,8,32,64")
    parser.add_argument("--length", default="128", help="lengths in tokens, such as 128,384")
    parser.add_argument("--threads", default="1", help="numbers of threads, such as 1,2")
    parser.add_argument("--precision", help="of the sparse runtime, such as bfloat16,int8; default: all of this CPU")
    parser.add_argument("--compile", action="store_true", help="torch.compile too, which takes a minute")
    parser.add_argument("--seconds", type=float, default=8, help="to spend for each combination")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    store = "the MLflow store, for ids (MLFLOW_TRACKING_URI, or mlflow.db here)"
    parser.add_argument("--tracking-uri", metavar="URI", help=store)
    given = parser.parse_args(arguments)
    set_up_process()
    on_gpu = given.device == "cuda"
    if on_gpu:
        if given.precision or given.threads != "1":
            raise UserError("--device cuda: --precision and --threads are of the CPU; leave them out")
        require_cuda()
    given.batch = given.batch or ("1,8,32,64" if on_gpu else "1")
    precisions = tuple(given.precision.split(",")) if given.precision else ()
    if unknown := set(precisions) - TOLERANCE.keys():
        raise UserError(f"--precision {', '.join(sorted(unknown))}: choose from {', '.join(TOLERANCE)}")
    grid = Grid(*(numbers(getattr(given, name), name) for name in ("batch", "length", "threads")))
    _, source = runs.find_model(given.folder, Tracking(uri=given.tracking_uri))
    model = load(source, "FOLDER_OR_RUN")
    check_length(model, max(grid.lengths))
    if on_gpu:
        speed = measure_cuda(model, grid.batches, grid.lengths, given.seconds, compiled=given.compile)
    else:
        speed = measure(model, grid, precisions, given.seconds, compiled=given.compile)
    if given.json:
        print(json.dumps([asdict(timing) for timing in speed.timings], indent=1))
    else:
        print(f"{speed.machine}\n\n{table(speed.timings)}")
        if on_gpu:
            print("\n" + "\n".join(verdicts(speed.timings)))


def numbers(text: str, name: str) -> list[int]:
    """Positive numbers from a list with commas."""
    parts = text.split(",")
    if not all(part.strip().isdigit() and int(part) > 0 for part in parts):
        raise UserError(f"--{name} {text}: give numbers above 0 with commas between them, such as 1,8")
    return [int(part) for part in parts]


def check_length(model: PreTrainedModel, length: int) -> None:
    """Refuse a length that the model has no positions for."""
    most = positions(model)
    if most is not None and length > most:
        raise UserError(f"--length {length}: the model has {most} positions")


def table(timings: list[Timing]) -> str:
    """The timings as text; ratios above 1 are faster than the best dense runtime of the same batch."""
    head = (
        "batch",
        "length",
        "threads",
        "runtime",
        "ms",
        "10 to 90 %",
        "CPU ms",
        "wall ms",
        "to best dense",
        "difference",
        "MiB",
    )
    rows = [
        (
            str(t.batch), str(t.length), str(t.threads), f"{t.runtime} {t.precision}", f"{t.ms:.2f}",
            f"{t.ms_low:.2f} to {t.ms_high:.2f}",
            "" if t.cpu_ms is None else f"{t.cpu_ms:.2f}", f"{t.wall_ms:.2f}", f"{t.ratio_to_best_dense:.2f}x",
            f"{t.difference:.1e}", "" if t.memory_bytes is None else f"{t.memory_bytes / 2**20:.1f}",
        )
        for t in timings
    ]  # fmt: skip
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in (head, *rows)
    )


if __name__ == "__main__":
    command(main)
