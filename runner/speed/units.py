"""Times of attention heads and feed-forward channels: the table that a budget of time reads, and how well it predicts.

Whole models are timed, not single layers: each with fewer heads, or fewer channels, in all layers, cut as exports cut
them, in turns with the model that has all. So what a runtime fuses and what a cache holds is in the times. What one
head saves does not depend on the channels that are left, which the table's own check shows.
"""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch

from pruning import (
    CoupledWeights,
    LatencySettings,
    LatencyTable,
    PruningError,
    Structured,
    TimePrediction,
    couple,
    matrix_weights,
)
from pruning.latency import FORMAT
from pruning.runtime.cut import cut
from pruning.runtime.seams import seams_of
from runner import models
from runner.exports.libraries import Missing, quiet
from runner.exports.onnx import export_onnx
from runner.models import heads
from runner.speed.machine import Machine, machine
from runner.speed.measure import batch_of
from runner.speed.runtimes import Runtime, onnx_runtime, openvino, torch_dense
from runner.speed.timing import time_in_turns
from runner.system import files
from runner.system.errors import UserError
from runner.system.progress import Progress
from runner.system.text_tables import aligned

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

log = logging.getLogger(__name__)

PRECISIONS = {
    "torch": ("float32", "bfloat16"),
    "onnxruntime": ("float32", "int8"),
    "openvino": ("float32", "bfloat16", "int8"),
}
"""Backends and the precisions that they are timed in."""
SHARES = (1 / 16, 1 / 8, 1 / 4, 3 / 8, 1 / 2, 5 / 8, 3 / 4, 7 / 8)
"""Channels to measure, as shares of all; one channel too."""
MOST_HEADS = 16
"""With more heads some numbers of them are left out."""
STEP = 16
"""Channels in a vector of float32: other numbers of them are slower than the next multiple (MiniLM with 733 channels by
4 % than with 736, in torch), so none is counted as saved until a whole vector is. Few channels are counted singly."""
POOR = 0.1
"""Error of a table's own check, relative to the measured time, above which a warning says so."""


@dataclass(frozen=True)
class Size:
    """Units that each layer of a model has."""

    heads: int
    channels: int


@dataclass(frozen=True)
class Check:
    """A model with half of both units: what its table predicts, and what it takes."""

    size: Size
    predicted_ms: float
    measured_ms: float

    def __str__(self) -> str:
        return (
            f"with {self.size.heads} heads and {self.size.channels} channels in each layer it predicts "
            f"{self.predicted_ms:.2f} ms, and {self.measured_ms:.2f} ms are measured"
        )


@dataclass(frozen=True)
class UnitTimes:
    """The measured times of a model, as `pruning.LatencyTable` reads them."""

    settings: LatencySettings
    machine: Machine
    model: Mapping[str, Any]
    """Architecture, layers, width, and the heads and channels of a layer."""
    whole_ms: float
    """Time of the whole model."""
    heads_ms: Mapping[int, float]
    """Time of one layer's attention by heads left, above that with one."""
    channels_ms: Mapping[int, float]
    """Time of one layer's feed-forward network by channels left, above that with one."""
    channels_step: int
    """Numbers of channels between its multiples cost as much as the next multiple."""
    check: Check

    def write(self, file: Path) -> None:
        """Write the table as JSON, completely or not at all."""
        file.parent.mkdir(parents=True, exist_ok=True)
        files.atomic_write(file, json.dumps({"format": FORMAT, **asdict(self)}, indent=1) + "\n")

    def __str__(self) -> str:
        layers, most = self.model["layers"], self.whole_ms
        for times in (self.heads_ms, self.channels_ms):
            most -= layers * max(times.values())
        rows = [("left in each layer", "ms of a layer", "ms of the model")]
        for kind, times in (("heads", self.heads_ms), ("channels", self.channels_ms)):
            for units, time in sorted(times.items(), reverse=True):
                whole = self.whole_ms - layers * (max(times.values()) - time)
                rows.append((f"{units:,} {kind if units > 1 else kind[:-1]}", f"{time:.3f}", f"{whole:.2f}"))
        title = f"{self.settings}: {self.whole_ms:.2f} ms, at most {self.whole_ms / most:.2f}x as fast with one of each"
        return "\n".join([title, *aligned(rows, right=range(3)), f"check: {self.check}"])


def random_model(config: PretrainedConfig, layers: int | None = None) -> PreTrainedModel:
    """An encoder of this configuration with random weights, which take as much time as trained ones.

    Args:
        layers: another number of them.

    Raises:
        UserError: transformers cannot build it, or exports do not cut each of its layers.
    """
    config = copy.deepcopy(config)
    if layers is not None:
        config.num_hidden_layers = layers
    models.skeleton("AutoModel", config)  # refuses what cannot be built
    _, from_config = heads.network("AutoModel", config)
    torch.manual_seed(0)
    with models.quiet_loading():
        model = from_config(config, dtype=torch.float32).eval()
    if reason := why_not_cut(model):
        raise UserError(f"{config.name_or_path}: exports do not cut heads and channels out of each layer: {reason}")
    return model


def measure_units(
    model: PreTrainedModel, settings: LatencySettings, seconds: float = 1, title: str = "Timing heads and channels"
) -> UnitTimes:
    """Time a model with fewer heads, and with fewer channels, in turns with the whole one.

    Args:
        seconds: for each size.

    Raises:
        UserError: the backend is not installed, or fails.
    """
    from scipy.optimize import isotonic_regression

    here, shape, whole = machine(), models.shape(model.config), size_of(model)
    half = Size(-(-whole.heads // 2), -(-whole.channels // 2))
    fewer = [Size(number, whole.channels) for number in _some(whole.heads)]
    slimmer = [Size(whole.heads, number) for number in _shares(whole.channels)]
    times: dict[Size, float] = {}
    dense: list[float] = []
    with Pairs(model, settings, seconds) as pairs, Progress(title, len(fewer) + len(slimmer) + 1) as bar:
        for size in (*fewer, *slimmer, half):
            before, ratio = pairs.time(cut_to(model, size))
            dense.append(before)
            times[size] = ratio
            bar.update()
    whole_ms = median(dense)
    tables = []
    for sizes in (fewer, slimmer):
        smooth = isotonic_regression([whole_ms * times[size] for size in sizes] + [whole_ms]).x
        tables.append([float(time - smooth[0]) / shape.layers for time in smooth])
    heads_ms = dict(zip([*(size.heads for size in fewer), whole.heads], tables[0], strict=True))
    channels_ms = dict(zip([*(size.channels for size in slimmer), whole.channels], tables[1], strict=True))
    about = {"model_type": model.config.model_type, "layers": shape.layers, "hidden": shape.width,
             **asdict(whole)}  # fmt: skip
    step = STEP if whole.channels >= 16 * STEP else 1
    table = UnitTimes(settings, here, about, whole_ms, heads_ms, channels_ms, step, Check(half, 0, 0))
    with TemporaryDirectory() as folder:
        file = Path(folder) / "table.json"
        table.write(file)
        try:
            read = LatencyTable.read(str(file))
        except PruningError as error:
            raise UserError(f"the times make no sense on this busy machine: measure again, longer ({error})") from error
    saved = (read.heads[-1] - read.heads[half.heads]) + (read.channels[-1] - read.channels[half.channels])
    check = Check(half, whole_ms - shape.layers * saved, whole_ms * times[half])
    if abs(check.predicted_ms - check.measured_ms) > POOR * check.measured_ms:
        log.warning("this table predicts poorly: %s; measure again, longer or on a machine that does less", check)
    return replace(table, check=check)


def measure_speedup(model: PreTrainedModel, settings: LatencySettings, seconds: float = 8) -> TimePrediction:
    """Time a pruned model as it is, and cut as exports cut it: what `TimePrediction` predicts, measured.

    Raises:
        UserError: the backend is not installed, or fails.
    """
    smaller = copy.deepcopy(model)
    cut(smaller)
    with Pairs(model, settings, seconds) as pairs:
        dense, ratio = pairs.time(smaller)
    return TimePrediction(dense, dense * ratio, settings)


class Pairs:
    """Times models in turns with a whole one, which is made ready for the backend once.

    Args:
        model: the whole one.
        seconds: for each pair, but five turns at least.
    """

    def __init__(self, model: PreTrainedModel, settings: LatencySettings, seconds: float) -> None:
        self._settings, self._seconds, self._folder = settings, seconds, TemporaryDirectory()
        self._inputs = batch_of(model, settings.batch, settings.length)
        self._whole = self._runtime(model)

    def __enter__(self) -> Pairs:
        return self

    def __exit__(self, *error: object) -> None:
        self._folder.cleanup()

    def time(self, model: PreTrainedModel) -> tuple[float, float]:
        """Milliseconds of the whole model, and the ratio of another one's to it: medians over the turns."""
        both = [self._whole, self._runtime(model)]
        whole, other = time_in_turns(both, self._inputs, self._settings.threads, self._seconds)
        return median(whole), median(b / a for a, b in zip(whole, other, strict=True))

    def _runtime(self, model: PreTrainedModel) -> Runtime:
        settings, file = self._settings, Path(self._folder.name) / "model.onnx"
        try:
            if settings.backend == "torch":
                return torch_dense(model, settings.precision, compiled=False)
            with quiet():
                export_onnx(model, batch_of(model, 2, 16), file)
                if settings.backend == "onnxruntime":
                    return onnx_runtime(file, settings.precision, settings.threads)
                return openvino(file, settings.precision, settings.threads, self._inputs)
        except Missing as reason:
            raise UserError(f"--backend {settings.backend}: {reason}") from reason
        except Exception as error:  # whatever exporters and quantisers raise
            text = " ".join(str(error).split())[:300]
            raise UserError(f"--backend {settings.backend}: {type(error).__name__}: {text}") from error


def why_not_cut(model: PreTrainedModel) -> str:
    """Why exports do not cut heads and channels out of each layer of a model; empty if they do."""
    try:
        seams, layers = seams_of(model), models.shape(model.config).layers
    except PruningError as reason:
        return str(reason)
    counts = [sum(seam.heads == heads and seam.can_be_cut for seam in seams) for heads in (True, False)]
    return "" if counts == [layers, layers] else f"{counts[0]} attentions and {counts[1]} feed-forward networks are cut"


def units_of(model: PreTrainedModel) -> dict[str, CoupledWeights]:
    """The heads and channels of a model, by name."""
    found = couple(model, {**matrix_weights(model)}, Structured(), models.shape(model.config).heads)
    return {name: weights for name, weights in found.items() if isinstance(weights, CoupledWeights)}


def size_of(model: PreTrainedModel) -> Size:
    """Units of each layer of a model; of one with layers of several sizes those of the first."""
    counts = {bool(weights.products): weights.units for weights in units_of(model).values()}
    return Size(counts[True], counts[False])


@torch.no_grad()
def cut_to(model: PreTrainedModel, size: Size) -> PreTrainedModel:
    """A copy of a model with so many units in each layer."""
    smaller = copy.deepcopy(model)
    for weights in units_of(smaller).values():
        left = size.heads if weights.products else size.channels
        for part in weights.parts:
            part.view(part.parameter)[left:] = 0
    cut(smaller)
    return smaller


def _some(most: int) -> list[int]:
    """Numbers of heads to measure, without all."""
    step = -(-most // MOST_HEADS)
    return [1, *range(1 + step, most, step)] if most > 1 else []


def _shares(most: int) -> list[int]:
    """Numbers of channels to measure, without all."""
    return sorted({1, *(round(share * most) for share in SHARES)} - {0, most})
