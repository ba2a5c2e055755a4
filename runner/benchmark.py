"""How fast a saved model is on this CPU, in the sparse runtime and in every dense one that is installed.

python -m runner.benchmark FOLDER [--batch 1,8] [--length 128,384] [--threads 1] [--precision float32,bfloat16,int8]
                                  [--compile] [--json]
"""

from __future__ import annotations

import argparse
import json
import logging
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from runner.models import heads
from runner.models.configuration import quiet_loading, read_config
from runner.speed.runtimes import TOLERANCE, available, default_precisions
from runner.speed.timing import Timing, time_all
from runner.system.errors import UserError
from runner.system.hub import explain
from runner.system.process import command, set_up_process

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from runner.speed.runtimes import Inputs

log = logging.getLogger(__name__)


def main(arguments: list[str]) -> None:
    """Time a model and print a table, or JSON.

    Raises:
        UserError: there is no model, or an argument makes no sense.
    """
    parser = argparse.ArgumentParser("python -m runner.benchmark", description="Time a saved model on this CPU.")
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="folder of a saved model, or of a run")
    parser.add_argument("--batch", default="1", help="batch sizes, such as 1,8")
    parser.add_argument("--length", default="128", help="lengths in tokens, such as 128,384")
    parser.add_argument("--threads", default="1", help="numbers of threads, such as 1,2")
    parser.add_argument("--precision", help="of the sparse runtime, such as bfloat16,int8; default: all of this CPU")
    parser.add_argument("--compile", action="store_true", help="torch.compile too, which takes a minute")
    parser.add_argument("--seconds", type=float, default=8, help="to spend for each combination")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    given = parser.parse_args(arguments)
    set_up_process()
    precisions = tuple(given.precision.split(",")) if given.precision else default_precisions()
    if unknown := set(precisions) - TOLERANCE.keys():
        raise UserError(f"--precision {', '.join(sorted(unknown))}: choose from {', '.join(TOLERANCE)}")
    batches, lengths, threads = (numbers(getattr(given, name), name) for name in ("batch", "length", "threads"))
    model = load(given.folder)
    check_length(model, max(lengths))
    timings: list[Timing] = []
    for count in threads:
        with available(model, batch_of(model, 2, 16), precisions, count, given.compile) as runtimes:
            for batch in batches:
                for length in lengths:
                    inputs = batch_of(model, batch, length)
                    timings += time_all(runtimes, inputs, count, given.seconds)
    print(json.dumps([asdict(timing) for timing in timings], indent=1) if given.json else table(timings))


def numbers(text: str, name: str) -> list[int]:
    """Positive numbers from a list with commas."""
    parts = text.split(",")
    if not all(part.strip().isdigit() and int(part) > 0 for part in parts):
        raise UserError(f"--{name} {text}: give numbers above 0 with commas between them, such as 1,8")
    return [int(part) for part in parts]


def load(folder: Path) -> PreTrainedModel:
    """The model of a folder, or of a run's folder."""
    place = folder / "model" if (folder / "model" / "config.json").is_file() else folder
    if not (place / "config.json").is_file():
        raise UserError(f"{folder}: there is no config.json in this folder, nor in its folder model")
    config = read_config(str(place), "FOLDER")
    with explain("model", "FOLDER", str(place)), quiet_loading():
        kind = heads.saved_class(config, place)
        return kind.from_pretrained(place, dtype=torch.float32, trust_remote_code=False).eval()


def check_length(model: PreTrainedModel, length: int) -> None:
    """Refuse a length that the model has no positions for."""
    most = getattr(model.config, "max_position_embeddings", None)
    if most is not None and length > most:
        raise UserError(f"--length {length}: the model has {most} positions")


def batch_of(model: PreTrainedModel, batch: int, length: int) -> Inputs:
    """Random tokens without padding; what they are does not change the time."""
    generator = torch.Generator().manual_seed(0)
    first = min(10, model.config.vocab_size - 1)
    tokens = torch.randint(first, model.config.vocab_size, (batch, length), generator=generator)
    return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}


def table(timings: list[Timing]) -> str:
    """The timings as text; ratios above 1 are faster than the best dense runtime of the same batch."""
    head = (
        "batch",
        "length",
        "threads",
        "runtime",
        "CPU ms",
        "10 to 90 %",
        "wall ms",
        "to best dense",
        "difference",
        "MiB",
    )
    rows = [
        (
            str(t.batch), str(t.length), str(t.threads), f"{t.runtime} {t.precision}", f"{t.ms:.2f}",
            f"{t.ms_low:.2f} to {t.ms_high:.2f}", f"{t.wall_ms:.2f}", f"{t.ratio_to_best_dense:.2f}x",
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
