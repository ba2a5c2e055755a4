"""Measured time of attention heads and feed-forward channels, and the choice of units that saves enough of it.

Time does not fall in proportion to the units that are left: matrices have sizes that a processor likes, and something
is left to do with one head. So a table is looked up, as in ZipLM (Kurtic et al. 2023, arXiv 2302.04089).
"""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

from torch import Tensor

from pruning.coupled import CoupledWeights
from pruning.errors import PruningError
from pruning.quotas import Quota
from pruning.selection import lowest

FORMAT = "prune-distill latency 1"
"""First value of a table's file."""
_HUGE = 1e290  # the loss of a unit whose score is infinite: finite, so that sums have an order
_ROUNDING = 1e-9


@dataclass(frozen=True)
class LatencySettings:
    """What a time was measured with."""

    backend: str
    """torch, onnxruntime or openvino."""
    precision: str
    """float32, bfloat16 or int8."""
    batch: int
    length: int
    """Tokens of a text."""
    threads: int

    def __str__(self) -> str:
        threads = f"{self.threads} thread" + ("s" if self.threads != 1 else "")
        return f"{self.backend} {self.precision}, batch {self.batch}, length {self.length}, {threads}"


@dataclass(frozen=True)
class LatencyTable:
    """Times of one model on one machine, in milliseconds of a forward pass."""

    whole: float
    """Time of the whole model, nothing pruned."""
    layers: int
    """Layers of the model."""
    hidden: int
    """Width of the model: rows of the matrices that read heads and channels."""
    heads: tuple[float, ...]
    """Time of one layer's attention with 0, 1, ... heads, above that with one: what is left with one stays anyway."""
    channels: tuple[float, ...]
    """Time of one layer's feed-forward network with 0, 1, ... channels, above that with one."""
    settings: LatencySettings
    """What it was measured with."""

    @classmethod
    def read(cls, file: str) -> "LatencyTable":
        """Read a table from its JSON file; the times between two measured numbers of units are interpolated.

        Raises:
            PruningError: there is no such file, or it is no such table.
        """
        try:
            values = json.loads(Path(file).expanduser().read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            why = f"cannot be read ({getattr(error, 'strerror', None) or 'it is no JSON'})"
            raise PruningError(f"{file} {why}; give the file of a latency table") from error
        if not isinstance(values, dict) or values.get("format") != FORMAT:
            raise PruningError(f"{file} is no latency table of this version (format: {FORMAT}); measure it again")
        try:
            model, settings = values["model"], LatencySettings(**values["settings"])
            heads = _filled(values["heads_ms"], model["heads"])
            channels = _filled(values["channels_ms"], model["channels"], int(values.get("channels_step", 1)))
            whole, layers, hidden = float(values["whole_ms"]), int(model["layers"]), int(model["hidden"])
            table = cls(whole, layers, hidden, heads, channels, settings)
            table._check()
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise PruningError(f"{file} is damaged ({type(error).__name__}: {error}); measure it again") from error
        return table

    def _check(self) -> None:
        for name, times in (("heads_ms", self.heads), ("channels_ms", self.channels)):
            if any(b < a for a, b in pairwise(times)) or times[0] < 0 or not math.isfinite(times[-1]):
                raise ValueError(f"{name} must rise with the units that are left")
        if not (math.isfinite(self.whole) and self.layers * (self.heads[-1] + self.channels[-1]) < self.whole):
            raise ValueError("whole_ms must be above what all layers take together")

    @cached_property
    def fingerprint(self) -> str:
        """Hash of all times, 16 hexadecimal digits."""
        values = [self.whole, self.layers, self.hidden, self.heads, self.channels, str(self.settings)]
        return hashlib.sha256(json.dumps(values).encode()).hexdigest()[:16]

    def saved(self, name: str, weights: CoupledWeights) -> tuple[float, ...]:
        """Milliseconds that a layer saves with 0, 1, ... of its units pruned; the last is free: one of each is left.

        Args:
            name: of the units, for messages.

        Raises:
            PruningError: the table is of layers of another size.
        """
        kind = "heads" if weights.products else "channels"
        times = self.heads if weights.products else self.channels
        hidden = weights.parts[-1].parameter.shape[0]
        if (len(times) - 1, self.hidden) != (weights.units, hidden):
            raise PruningError(
                f"it was measured with {len(times) - 1} {kind} in a layer of width {self.hidden}, and {name} has "
                f"{weights.units} and width {hidden}; measure this model"
            )
        return tuple(times[-1] - time for time in reversed(times))


def _filled(measured: Mapping[str, float], most: int, step: int = 1) -> tuple[float, ...]:
    """Times with 0 to `most` units, linear between those measured; 0 costs as much as 1, which is always left.

    Args:
        step: numbers that are no multiple of it cost as much as the next that is.
    """
    known = sorted((int(units), float(time)) for units, time in measured.items())
    if step < 1:
        raise ValueError(f"channels_step={step} must be at least 1")
    if not known or (known[0][0], known[-1][0]) != (1, most):
        raise ValueError(f"times must reach from 1 to {most} units")
    times = [known[0][1]]
    for (low, first), (high, last) in pairwise(known):
        times += [first + (last - first) * number / (high - low) for number in range(1, high - low + 1)]
    stepped = [times[min(most, -(-units // step) * step) - 1] for units in range(1, most + 1)]
    return (0.0, *(time - stepped[0] for time in stepped))


@dataclass(frozen=True)
class TimePrediction:
    """Times of a model by a table, in milliseconds."""

    dense_ms: float
    """Time before pruning."""
    sparse_ms: float
    """Time after the pruned units were cut out."""
    settings: LatencySettings
    """What the table was measured with."""

    @classmethod
    def from_plain(cls, values: Mapping[str, Any]) -> "TimePrediction":
        """The prediction from what `dataclasses.asdict` made of it. Raises KeyError or TypeError for anything else."""
        return cls(float(values["dense_ms"]), float(values["sparse_ms"]), LatencySettings(**values["settings"]))

    @property
    def speedup(self) -> float:
        """How many times faster."""
        return self.dense_ms / self.sparse_ms

    def __str__(self) -> str:
        return f"{self.speedup:.2f}x as fast, {self.dense_ms:.2f} to {self.sparse_ms:.2f} ms ({self.settings})"


def share_for(speedup: float, whole: float, quotas: Mapping[str, Quota]) -> float:
    """The share of all units' time that has to go for a model that is so many times faster.

    Args:
        whole: milliseconds of the whole model.
        quotas: of all layers that are pruned.

    Raises:
        PruningError: it is out of reach.
    """
    total = sum(quota.saves(quota.units) for quota in quotas.values())
    reachable = sum(quota.saves(quota.most) for quota in quotas.values())
    needed = (1 - 1 / speedup) * whole
    if needed > reachable * (1 - _ROUNDING):
        most = math.floor(100 * whole / (whole - reachable) - 1e-6) / 100
        raise PruningError(
            f"target_speedup={speedup:g} is out of reach: of {whole:.2f} ms the units that may be pruned take "
            f"{reachable:.2f} ms; at most {most:g}"
        )
    return needed / total


# --- the choice of units ----------------------------------------------------------------------------------------------


def select_by_time(costs: Mapping[str, Tensor], fraction: float, quotas: Mapping[str, Quota]) -> dict[str, Tensor]:
    """The units to prune, as a bool mask per layer, that lose least among those that save enough time.

    A layer loses its units in the order of their costs. With k of them gone its loss is the sum of their costs, and the
    time that it saves is in its quota. All layers walk along the lower convex hulls of loss over saved time, the
    flattest step first, until enough is saved: the least loss for the time that is then saved. The last step may be
    longer than needed, and is cut short.

    Args:
        costs: [units] per layer, what is lost with each unit. -inf marks units that are pruned already.
        fraction: of the time of all units, to be saved at least.
        quotas: of each layer, with the time that it saves.
    """
    names = sorted(costs)
    counts = {name: max(quotas[name].floor, quotas[name].gone) for name in names}
    needed = fraction * sum(quotas[name].saves(quotas[name].units) for name in names) * (1 - _ROUNDING)
    saved = math.fsum(quotas[name].saves(count) for name, count in counts.items())
    steps = sorted(step for name in names for step in _hull(name, costs[name], quotas[name], counts[name]))
    for _, name, units in steps:
        if saved >= needed:
            break
        quota, before = quotas[name], quotas[name].saves(counts[name])
        least = needed - saved + before
        counts[name] = next((k for k in range(counts[name] + 1, units) if quota.saves(k) >= least), units)
        saved += quota.saves(counts[name]) - before
    return {name: lowest(costs[name], count) for name, count in counts.items()}


def _hull(name: str, cost: Tensor, quota: Quota, start: int) -> list[tuple[float, str, int]]:
    """The steps of a layer along the lower convex hull of its loss over the time that it saves, the flattest first:
    loss for each millisecond, name, units that are pruned after the step."""
    losses = cost.double().nan_to_num(nan=_HUGE, posinf=_HUGE, neginf=-_HUGE).clamp(-_HUGE, _HUGE).sort().values
    total = [0.0, *accumulate(losses.tolist()[start : quota.most])]
    points = [(quota.saves(start + k), loss, start + k) for k, loss in enumerate(total)]
    hull: list[tuple[float, float, int]] = []
    for point in points:
        if hull and point[0] <= hull[-1][0]:
            continue  # saves nothing more
        while len(hull) > 1 and _slope(hull[-2], hull[-1]) >= _slope(hull[-1], point):
            hull.pop()
        hull.append(point)
    return [(_slope(a, b), name, b[2]) for a, b in pairwise(hull)]


def _slope(a: tuple[float, float, int], b: tuple[float, float, int]) -> float:
    return (b[1] - a[1]) / (b[0] - a[0])


def select_evenly(costs: Mapping[str, Tensor], fraction: float, quotas: Mapping[str, Quota]) -> dict[str, Tensor]:
    """The cheapest units of each layer that save `fraction` of its time at least. What a layer cannot save because its
    quota is full, others do."""
    counts = {name: _enough(quotas[name], fraction) for name in sorted(costs)}
    needed = fraction * sum(quotas[name].saves(quotas[name].units) for name in counts) * (1 - _ROUNDING)
    while math.fsum(quotas[name].saves(count) for name, count in counts.items()) < needed:
        room = {name: count / quotas[name].units for name, count in counts.items() if count < quotas[name].most}
        if not room:
            break
        counts[min(room, key=lambda name: (room[name], name))] += 1
    return {name: lowest(costs[name], count) for name, count in counts.items()}


def _enough(quota: Quota, fraction: float) -> int:
    """The fewest units that save this fraction of a layer's time, within its quota."""
    needed = fraction * quota.saves(quota.units) * (1 - _ROUNDING)
    start = max(quota.floor, quota.gone)
    return next((count for count in range(start, quota.most) if quota.saves(count) >= needed), max(start, quota.most))
