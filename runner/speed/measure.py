"""Measure a saved model: load it, and time each combination of batch, length and threads in every runtime."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from results.columns import SPARSE, SPARSE_LINEARS
from runner.models import heads
from runner.models.configuration import quiet_loading, read_config
from runner.speed.machine import Machine, machine
from runner.speed.runtimes import available, default_precisions
from runner.speed.timing import Timing, time_all
from runner.system.hub import explain

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from runner.speed.runtimes import Inputs

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Grid:
    """What is timed: each combination of these."""

    batches: Sequence[int]
    lengths: Sequence[int]
    """Tokens of a text, at most the positions of the model."""
    threads: Sequence[int]


@dataclass(frozen=True)
class Speed:
    """Times of one model on one machine."""

    machine: Machine
    timings: list[Timing]

    @property
    def summary(self) -> dict[str, str]:
        """The fastest sparse and dense runtime in words, by setting."""
        lines = {}
        for setting in dict.fromkeys((t.batch, t.length, t.threads) for t in self.timings):
            alike = [t for t in self.timings if (t.batch, t.length, t.threads) == setting]
            ours = (SPARSE, SPARSE_LINEARS)
            fastest = [[t for t in alike if (t.runtime in ours) == sparse] for sparse in (True, False)]
            best = [min(each, key=lambda t: t.ms) for each in fastest if each]
            text = ", ".join(f"{t.runtime} {t.precision} {t.ms:.2f} ms ({t.ratio_to_best_dense:.2f}x)" for t in best)
            lines["batch {}, length {}, threads {}".format(*setting)] = text
        return lines

    @classmethod
    def from_plain(cls, values: dict[str, Any]) -> Speed:
        """The times from what `dataclasses.asdict` made of them.

        Raises:
            KeyError, TypeError: they are of another version.
        """
        return cls(Machine(**values["machine"]), [Timing(**timing) for timing in values["timings"]])


def load(place: Path, key: str) -> PreTrainedModel:
    """A saved model in float32, with its own head.

    Args:
        key: what names the place, for messages.

    Raises:
        UserError: it cannot be loaded.
    """
    config = read_config(str(place), key)
    with explain("model", key, str(place)), quiet_loading():
        kind = heads.saved_class(config, place)
        return kind.from_pretrained(place, dtype=torch.float32, trust_remote_code=False).eval()


def measure(
    model: PreTrainedModel, grid: Grid, precisions: Sequence[str] = (), seconds: float = 8, *, compiled: bool = False
) -> Speed:
    """Time a model in every runtime that runs it here; the others are logged with the reason.

    Args:
        precisions: of the sparse runtime; none: all that this CPU has.
        seconds: for each combination.
        compiled: also torch.compile.
    """
    here, timings = machine(), []
    for count in grid.threads:
        wanted = tuple(precisions) or default_precisions()
        with available(model, batch_of(model, 2, 16), wanted, count, compiled) as runtimes:
            for batch in grid.batches:
                for length in grid.lengths:
                    timings += time_all(runtimes, batch_of(model, batch, length), count, seconds)
    return Speed(here, timings)


def batch_of(model: PreTrainedModel, batch: int, length: int) -> Inputs:
    """Random tokens without padding; what they are does not change the time."""
    generator = torch.Generator().manual_seed(0)
    first = min(10, model.config.vocab_size - 1)
    tokens = torch.randint(first, model.config.vocab_size, (batch, length), generator=generator)
    return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
