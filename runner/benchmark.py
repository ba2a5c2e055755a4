"""How fast a saved model is on this CPU, in the sparse runtime and in every dense one that is installed, or on a GPU.

python -m runner.benchmark FOLDER_OR_RUN [--batch 1,8] [--length 128,384] [--threads 1]
                                         [--precision float32,bfloat16,int8] [--compile] [--json] [--tracking-uri URI]
                                         [--device cpu|cuda]
python -m runner.benchmark MODEL_OR_FOLDER --units [--batch 1] [--length 128] [--threads 1] [--precision float32]
                                           [--backend torch|onnxruntime|openvino] [--layers N] [--output FILE]

FOLDER_OR_RUN is a model's folder, a run's folder, or a run's id in MLflow. With one thread the times are CPU times,
with several they are times on the clock: see `runner.speed.timing`. On a GPU
the model is timed dense and in the 2:4 forms of torch: see `runner.speed.cuda`.

--units measures what one head and one feed-forward channel takes, for allocation.latency: see `runner.speed.units`.
MODEL is an option of the group `model` or an id on the hub, of which only config.json is read.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import re
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from pruning import LatencySettings, TimePrediction
from runner import demo
from runner.config.compose import compose_experiment
from runner.models import EMBEDDED, positions, read_config
from runner.records import runs
from runner.speed import units
from runner.speed.cuda import measure_cuda, require_cuda, verdicts
from runner.speed.measure import Grid, batch_of, load, measure
from runner.speed.runtimes import TOLERANCE, default_precisions
from runner.speed.timing import Timing
from runner.system import disk, spelling
from runner.system.commands import command_parser
from runner.system.errors import UserError
from runner.system.process import command, set_up_process
from runner.system.text_tables import aligned
from runner.tracking import Tracking

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

__all__ = ["batch_of", "default_precisions", "main"]

log = logging.getLogger("runner.benchmark")

_OF_UNITS = ("backend", "layers", "output", "cache_dir")


def parser() -> argparse.ArgumentParser:
    """The arguments."""
    made = command_parser("benchmark", "outputs/RUN", "outputs/RUN --batch 1,8 --length 384", "bert-base --units")
    where = "folder of a saved model or of a run, or a run's id in MLflow; with --units also a model's name or id"
    made.add_argument("folder", metavar="FOLDER_OR_RUN", help=where)
    made.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="cuda: dense and 2:4 on a GPU")
    made.add_argument("--batch", help="batch sizes, such as 1,8; default: 1, on a GPU 1,8,32,64")
    made.add_argument("--length", default="128", help="lengths in tokens, such as 128,384")
    made.add_argument("--threads", default="1", help="numbers of threads, such as 1,2")
    made.add_argument("--precision", help="of the sparse runtime, such as bfloat16,int8; default: all of this CPU")
    made.add_argument("--compile", action="store_true", help="torch.compile too, which takes a minute")
    made.add_argument(
        "--seconds", type=float, help="to spend for each combination (8), or for each size of --units (1)"
    )
    made.add_argument("--json", action="store_true", help="print JSON instead of a table")
    store = "the MLflow store, for ids (MLFLOW_TRACKING_URI, or mlflow.db here)"
    made.add_argument("--tracking-uri", metavar="URI", help=store)
    made.add_argument("--units", action="store_true", help="time heads and channels, for allocation.latency")
    made.add_argument("--backend", choices=tuple(units.PRECISIONS), help="of --units: runtime (torch)")
    made.add_argument("--layers", type=int, help="of --units: another number of layers, as model.num_layers")
    made.add_argument("--output", metavar="FILE", help="of --units: file of the table (in the cache)")
    made.add_argument("--cache-dir", metavar="DIR", help="of --units: the cache (cache)")
    return made


def main(arguments: list[str]) -> None:
    """Time a model and print a table, or JSON.

    Raises:
        UserError: there is no model, or an argument makes no sense.
    """
    given = parser().parse_args(arguments)
    set_up_process()
    if given.units:
        time_units(given)
        return
    if others := [name for name in _OF_UNITS if getattr(given, name) is not None]:
        raise UserError(f"--{others[0].replace('_', '-')}: it is of --units; add that, or leave it out")
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
    model, seconds = load(source, "FOLDER_OR_RUN"), 8 if given.seconds is None else given.seconds
    check_length(model, max(grid.lengths))
    if on_gpu:
        speed = measure_cuda(model, grid.batches, grid.lengths, seconds, compiled=given.compile)
    else:
        speed = measure(model, grid, precisions, seconds, compiled=given.compile)
    if given.json:
        print(json.dumps([asdict(timing) for timing in speed.timings], indent=1))
        return
    print(f"{speed.machine}\n\n{table(speed.timings)}")
    if on_gpu:
        print("\n" + "\n".join(verdicts(speed.timings)))
    elif (predicted := prediction(source)) is not None:
        print(f"\npredicted: {predicted}\nmeasured:  {units.measure_speedup(model, predicted.settings, seconds)}")


def prediction(folder: Path) -> TimePrediction | None:
    """What the run of a saved model predicted of its time; None if it did not."""
    file = folder / "pruning.json"
    try:
        values = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        made = TimePrediction.from_plain(values["predicted"]) if "predicted" in values else None
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{file} is damaged or not whole; remove it to time the weights alone") from error
    if made is not None and made.settings.precision not in units.PRECISIONS.get(made.settings.backend, ()):
        log.warning("%s: its prediction is for %s, which is not known here", file, made.settings)
        return None
    return made


def time_units(given: argparse.Namespace) -> None:
    """Measure tables of times, one for each combination of batch, length and threads, and write them.

    Raises:
        UserError: there is no model, or an argument makes no sense.
    """
    if given.device == "cuda" or given.compile:
        raise UserError("--units times torch, ONNX Runtime or OpenVINO on the CPU: leave --device and --compile out")
    backend, precision = given.backend or "torch", given.precision or "float32"
    if precision not in units.PRECISIONS[backend]:
        raise UserError(f"--precision {precision}: --units --backend {backend} takes one of "
                        f"{', '.join(units.PRECISIONS[backend])}")  # fmt: skip
    given.batch = given.batch or "1"
    grid = list(itertools.product(*(numbers(getattr(given, name), name) for name in ("batch", "length", "threads"))))
    if given.output and len(grid) > 1:
        raise UserError(f"--output {given.output}: a file has one table; give one batch, length and number of threads")
    if given.layers is not None and given.layers < 1:
        raise UserError(f"--layers {given.layers}: give a number above 0")
    model = units.random_model(config_of(given.folder, Tracking(uri=given.tracking_uri)), given.layers)
    check_length(model, max(length for _, length, _ in grid))
    for batch, length, threads in grid:
        settings = LatencySettings(backend, precision, batch, length, threads)
        file = Path(given.output or Path(given.cache_dir or "cache") / "latency" / file_name(given, settings))
        disk.check_writable("--output" if given.output else "--cache-dir", str(file.parent))
        times = units.measure_units(model, settings, 1 if given.seconds is None else given.seconds)
        times.write(file)
        if given.json:
            print(file.read_text(encoding="utf-8"), end="")
        else:
            print(f"{times.machine}\n\n{times}\n\nwritten to {file}: pass it as allocation.latency={file}\n")


def file_name(given: argparse.Namespace, settings: LatencySettings) -> str:
    """The name of a table's file in the cache."""
    name = re.sub(r"[^\w.-]+", "_", Path(given.folder).expanduser().resolve().name) or "model"
    layers = f"-{given.layers}layers" if given.layers is not None else ""
    made_of = f"b{settings.batch}-l{settings.length}-t{settings.threads}"
    return f"{name}{layers}-{settings.backend}-{settings.precision}-{made_of}.json"


def config_of(given: str, where: Tracking) -> PretrainedConfig:
    """The configuration of a model: of a folder, a run, an option of the group `model`, or an id on the hub.

    Raises:
        UserError: there is none.
    """
    if Path(given).expanduser().is_dir() or runs.is_id(given):
        return read_config(str(runs.find_model(given, where)[1]), "MODEL_OR_FOLDER")
    path = given
    if given in spelling.options("model"):
        path = compose_experiment([f"model={given}"])[0].model.path
    if path.startswith(EMBEDDED):
        path = str(Path(demo.__file__).parent / path.removeprefix(EMBEDDED))
    return read_config(path, "MODEL_OR_FOLDER")


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
    head = ("batch", "length", "threads", "runtime", "ms", "10 to 90 %", "CPU ms", "wall ms", "to best dense",
            "difference", "MiB")  # fmt: skip
    rows = [
        (
            str(t.batch), str(t.length), str(t.threads), f"{t.runtime} {t.precision}", f"{t.ms:.2f}",
            f"{t.ms_low:.2f} to {t.ms_high:.2f}",
            "" if t.cpu_ms is None else f"{t.cpu_ms:.2f}", f"{t.wall_ms:.2f}", f"{t.ratio_to_best_dense:.2f}x",
            f"{t.difference:.1e}", "" if t.memory_bytes is None else f"{t.memory_bytes / 2**20:.1f}",
        )
        for t in timings
    ]  # fmt: skip
    return "\n".join(aligned([head, *rows], right={0, 1, 2, *range(4, len(head))}))


if __name__ == "__main__":
    command(main)
