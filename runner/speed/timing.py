"""Time runtimes side by side: all take turns in one process, and what counts is the ratio within a turn.

With one thread the time is CPU time: that of the model alone, even if other processes take turns on the core. With
several threads it is the time on the clock, for which users wait: the CPU time of all threads together also counts the
threads that spin while they wait for another, and so says little about it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median, quantiles

import torch
from torch import Tensor

from runner.speed.runtimes import TOLERANCE, Inputs, Runtime
from runner.system.errors import UserError

log = logging.getLogger(__name__)

NOISY = 0.25
"""Spread of one runtime's times, as (90th - 10th percentile) / median, above which the machine is called noisy."""


@dataclass(frozen=True)
class Timing:
    """How long one runtime takes for a batch."""

    runtime: str
    precision: str
    batch: int
    length: int
    threads: int
    ms: float
    """Time of a call, median, in milliseconds: CPU time with one thread, time on the clock with several
    and on a GPU."""
    ms_low: float
    """10th percentile."""
    ms_high: float
    """90th percentile."""
    wall_ms: float
    """Time on the clock, median."""
    ratio_to_best_dense: float
    """How many times faster than the best dense runtime: median of the ratios within each turn."""
    difference: float
    """Mean difference of the outputs to torch in float32, relative to their mean size."""
    memory_bytes: int | None
    """Memory of the weights, where known."""
    cpu_ms: float | None = None
    """CPU time of all threads together, median."""


def time_all(
    runtimes: Sequence[Runtime],
    inputs: Inputs,
    threads: int,
    seconds: float = 8,
    turns: int = 200,
    *,
    wall: bool = False,
    rival: Runtime | None = None,
) -> list[Timing]:
    """Time runtimes, the fastest first.

    Args:
        inputs: (batch, length) each.
        threads: of torch; the other runtimes were made for so many.
        seconds: to spend, at least five turns.
        turns: at most.
        wall: with one thread too the time on the clock counts, as for a GPU.
        rival: a runtime of another model that takes its turns too. Ratios are to it, and it has no entry of its own.
    """
    with _inference(threads):
        checked = _agreeing(runtimes, inputs)
        if rival is not None:
            rival.run(inputs)  # warm
            checked.append((rival, 0.0))
        cpu, clock = _turns([runtime for runtime, _ in checked], inputs, seconds, turns)
    spent = cpu if threads == 1 and not wall else clock
    medians = [median(times) for times in spent]
    dense = [i for i, (runtime, _) in enumerate(checked) if not runtime.sparse and rival in (None, runtime)]
    best = min(dense, key=lambda i: medians[i]) if dense else None
    batch, length = next(iter(inputs.values())).shape
    timings = []
    for i, (runtime, difference) in enumerate(checked):
        if runtime is rival:
            continue
        low, high = _spread(spent[i])
        ratio = median(b / a for a, b in zip(spent[i], spent[best], strict=True)) if best is not None else float("nan")
        timings.append(
            Timing(
                runtime.name, runtime.precision, batch, length, threads, medians[i], low, high, median(clock[i]), ratio,
                difference, runtime.bytes, median(cpu[i]),
            )
        )  # fmt: skip
    spread = median((t.ms_high - t.ms_low) / t.ms for t in timings) if timings else 0
    if spread > NOISY:
        log.warning(
            "this machine is busy: times vary by %.0f %% of their median; trust the ratios, not the times", 100 * spread
        )
    return sorted(timings, key=lambda timing: timing.ms)


def time_in_turns(
    runtimes: Sequence[Runtime], inputs: Inputs, threads: int, seconds: float, turns: int = 200
) -> list[list[float]]:
    """Milliseconds of runtimes of different models, turn by turn: CPU time with one thread, time on the clock with
    several.

    Args:
        inputs, threads, seconds, turns: as for `time_all`.
    """
    with _inference(threads):
        for runtime in runtimes:
            runtime.run(inputs)  # warm
        cpu, clock = _turns(runtimes, inputs, seconds, turns)
    return cpu if threads == 1 else clock


@contextmanager
def _inference(threads: int) -> Iterator[None]:
    """Inference in torch with so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.inference_mode():
            yield
    finally:
        torch.set_num_threads(before)


def _spread(times: list[float]) -> tuple[float, float]:
    tenths = quantiles(times, n=10, method="inclusive")
    return tenths[0], tenths[-1]


def _turns(
    runtimes: Sequence[Runtime], inputs: Inputs, seconds: float, turns: int
) -> tuple[list[list[float]], list[list[float]]]:
    """CPU and wall milliseconds of each runtime, turn by turn."""
    cpu: list[list[float]] = [[] for _ in runtimes]
    wall: list[list[float]] = [[] for _ in runtimes]
    start = time.perf_counter()
    for turn in range(turns):
        if turn >= 5 and time.perf_counter() - start > seconds:
            break
        for i, runtime in enumerate(runtimes):
            began, used = time.perf_counter(), time.process_time()
            runtime.run(inputs)
            cpu[i].append(1e3 * (time.process_time() - used))
            wall[i].append(1e3 * (time.perf_counter() - began))
    return cpu, wall


def _agreeing(runtimes: Sequence[Runtime], inputs: Inputs) -> list[tuple[Runtime, float]]:
    """Runtimes whose outputs are those of torch in float32, with the difference; the others are logged."""
    torch_float32 = [runtime for runtime in runtimes if (runtime.name, runtime.precision) == ("torch", "float32")]
    if not torch_float32:
        raise UserError("torch in float32 does not run this model here, and every runtime is compared with it")
    reference = torch_float32[0].run(inputs)
    agreeing = []
    for runtime in runtimes:
        try:
            difference = max(_difference(a, b) for a, b in zip(reference, runtime.run(inputs), strict=True))
            runtime.run(inputs)  # warm
        except Exception as error:  # whatever a runtime of others raises: the rest can be timed
            log.warning("%s is not timed: it fails: %s: %s", runtime, type(error).__name__, error)
            continue
        if difference <= TOLERANCE[runtime.precision]:
            agreeing.append((runtime, difference))
        else:
            log.warning("%s is not timed: its outputs differ from torch's by %.3g on average", runtime, difference)
    return agreeing


def _difference(expected: Tensor, got: Tensor) -> float:
    return float((expected - got).abs().mean() / expected.abs().mean())
