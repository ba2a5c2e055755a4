"""Pools the measured latencies of a row's seeds, and picks the one that the table shows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median

from results import columns
from results.runs import Run

FLOATS = ("float32", "bfloat16")  # precisions of the sparse runtime that the table shows


@dataclass(frozen=True)
class Latency:
    """How long one runtime takes for a batch on one CPU: the median over the seeds that were timed on it."""

    ms: float
    """Milliseconds of a call: CPU time with one thread, else time on the clock."""
    ratio_to_best_dense: float | None
    """How many times faster than the best dense runtime of the same setting; None where there is none."""
    runtime: str
    """As in the metric's name: "sparse", "onnx_runtime"."""
    precision: str
    batch: int
    length: int
    """In tokens."""
    threads: int
    cpu: str
    timed_seeds: int
    """How many seeds were timed on this CPU in this setting."""
    seeds_elsewhere: int = 0
    """How many seeds were timed on another CPU, and are not in the median."""


def pool(runs: Sequence[Run]) -> list[Latency]:
    """The latencies of runs that differ in their seed, in the order of setting and runtime. Seeds timed on different
    CPUs are not pooled: those on the CPU with most seeds count."""
    timed = [run for run in runs if any(name.startswith(columns.LATENCY) for name in run.times)]
    if not timed:
        return []
    by_cpu = Counter(run.tags[columns.CPU] for run in timed)
    cpu = min(by_cpu, key=lambda name: (-by_cpu[name], name))
    alike = [run.times for run in timed if run.tags[columns.CPU] == cpu]
    pooled = []
    for name in sorted({name for times in alike for name in times if name.startswith(columns.LATENCY)}):
        if (setting := columns.setting(name)) is None:
            continue
        values = [times[name] for times in alike if name in times]
        ratio = columns.speedup(*setting)
        ratios = [times[ratio] for times in alike if ratio in times]
        pooled.append(
            Latency(
                median(values), median(ratios) if ratios else None, *setting, cpu, len(values), len(timed) - by_cpu[cpu]
            )
        )
    return sorted(pooled, key=lambda each: (each.threads, each.batch, each.length, each.runtime, each.precision))


def shown(latencies: Iterable[Latency]) -> Latency | None:
    """The one in the table: the sparse runtime at its fastest float precision, with the fewest threads, the smallest
    batch and the shortest length that were timed."""
    sparse = [each for each in latencies if each.runtime == columns.SPARSE and each.precision in FLOATS]
    return min(sparse, key=lambda each: (each.threads, each.batch, each.length, each.ms), default=None)


def conditions(batch: int, length: int, threads: int) -> str:
    """What a time holds for, but for the CPU: "batch 1, 128 tokens, 1 thread"."""
    return f"batch {batch}, {length} tokens, {threads} thread{'' if threads == 1 else 's'}"
