"""Circumstances of a computation: versions, machine, threads and ranks, on which the last bits of its outcome depend.

What a process reads, a checkpoint or an entry of the cache, may have been made under others than its own. Such files
name theirs, so that a result of both names both.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch

from runner.system import files, provenance, ranks
from runner.system.device import device, hardware, instructions

log = logging.getLogger(__name__)

FILE = "circumstances.json"
"""The file of a training's checkpoints, and of the model that it made, that holds its spans."""
_CODE = "code of the runner"

Span = Mapping[str, Any]
"""A part of a training: its first `step`, and the circumstances that it was computed `under`."""


def circumstances() -> dict[str, str]:
    """The circumstances of this process."""
    on_cpu = {"instructions": instructions(), "threads": torch.get_num_threads()} if device().type != "cuda" else {}
    values = {**provenance.versions(), "hardware": hardware(), **on_cpu, "ranks": ranks.world_size()}
    return {name: str(value) for name, value in values.items()}


def differences(then: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """What differs, such as "threads 8 instead of 4"."""
    names = (name for name in {**then, **now} if then.get(name) != now.get(name))
    return [f"{name} {then.get(name, 'unknown')} instead of {now.get(name, 'unknown')}" for name in names]


def others(what: str, spans: Sequence[Span]) -> list[str]:
    """The spans that were computed under other circumstances than those of this process, one a line.

    Args:
        what: what was computed, such as "the pruning".
    """
    # One commit for a whole stage is no matter: what it makes is stored under the version of the stage.
    now = circumstances() | ({_CODE: provenance.code()} if len(spans) > 1 else {})
    lines = []
    for span, following in zip_longest(spans, spans[1:]):
        changed = differences({name: value for name, value in span["under"].items() if name in now}, now)
        steps = f" from step {span['step']}" if len(spans) > 1 else ""
        steps += f" to step {following['step']}" if following else ""
        lines += [f"{what}{steps}: {', '.join(changed)}"] if changed else []
    return lines


def begin(folder: Path, step: int) -> None:
    """Note that a training starts, or resumes from a step, under the circumstances of this process; warn if they are
    not those of the steps before.

    Args:
        folder: of its checkpoints.
    """
    now = circumstances() | {_CODE: provenance.code()}
    before = [span for span in read(folder) if span["step"] < step]  # later steps are computed again
    changed = differences(now, before[-1]["under"]) if before else []
    if changed:
        log.warning("resuming from step %d under other circumstances than before: %s; so the result is not, bit for "
                    "bit, that of a run without interruption, and the record and the model card name both (to start "
                    "anew, delete %s)", step, ", ".join(changed), folder)  # fmt: skip
    write(folder, [*before, {"step": step, "under": now}] if changed or not before else before)


def read(folder: Path) -> list[Span]:
    """The spans of the training whose checkpoints, or whose model, are in a folder; empty if they are not known."""
    return (files.read_json(folder / FILE) or {}).get("spans", [])


def write(folder: Path, spans: Sequence[Span]) -> None:
    """Write the spans of a training into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    files.write_json(folder / FILE, {"spans": spans})
