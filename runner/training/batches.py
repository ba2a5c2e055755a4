"""Batches of features of similar length, which waste little on padding: at SQuAD's lengths, random batches of 16 that
are padded to their longest spend 45 % of what they compute on it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from torch.utils.data import Sampler

BUCKET = 4
"""Tokens. Lengths that differ by less are taken as equal, so that who shares a batch changes from epoch to epoch."""


@dataclass(eq=False)
class Batches(Sampler[list[int]]):
    """The micro-batches of one epoch after another, as lists of feature indices; the same for the same seed and epoch.

    By length, features are sorted into buckets, shuffled within them and cut into the batches of optimizer steps, which
    come in random order. Every feature comes once in an epoch, every epoch has as many batches as the others, and only
    one of them may be smaller. Each is then dealt out among the ranks and the rounds of gradient accumulation: what an
    optimizer step sees depends on the number of neither.

    Raises:
        ValueError: a feature has more than `tokens` tokens.
    """

    lengths: np.ndarray
    """Tokens of each feature; at least one feature."""
    size: int
    """Examples in a micro-batch."""
    seed: int
    by_length: bool = True
    """Batches of similar length, else random ones."""
    tokens: int | None = None
    """Instead of `size`: tokens in a micro-batch at most, padding included. Implies `by_length`."""
    parts: int = 1
    """Micro-batches in an optimizer step, over all ranks."""
    multiple: int = 1
    """Batches are padded to a multiple of this many tokens."""

    def __post_init__(self) -> None:
        self.lengths = np.asarray(self.lengths, dtype=np.int64)
        if self.tokens is not None and self.tokens < self.lengths.max():
            raise ValueError(f"a feature of {self.lengths.max()} tokens does not fit into a batch of {self.tokens}")
        self.by_length, self.epoch = self.by_length or self.tokens is not None, 0
        self.cuts = self._cuts()

    @property
    def steps(self) -> int:
        """Optimizer steps in an epoch."""
        return len(self.cuts)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration gives."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.steps * self.parts

    def __iter__(self) -> Iterator[list[int]]:
        for batch in self._whole():
            # Too few for all parts: some are seen twice, for no part may be empty.
            for part in np.array_split(np.resize(batch, max(len(batch), self.parts)), self.parts):
                yield part.tolist()

    def _whole(self) -> list[np.ndarray]:
        """The epoch's batches, before they are dealt out."""
        chance = np.random.default_rng([self.seed, self.epoch])
        order = chance.permutation(len(self.lengths))
        if self.by_length:
            order = order[np.argsort(self._buckets()[order], kind="stable")]
        batches = np.split(order, self.cuts[1:])
        return [batches[i] for i in chance.permutation(len(batches))]

    def _buckets(self) -> np.ndarray:
        """The length of the longest feature that each feature is taken to be equal to."""
        return -(-self.lengths // BUCKET) * BUCKET

    def _cuts(self) -> list[int]:
        """The index in the order at which each batch begins."""
        if self.tokens is None:
            return list(range(0, len(self.lengths), self.size * self.parts))
        # Cut by the buckets' lengths, which come in the same order in every epoch: so their number does not change.
        cuts: list[int] = []
        for i, length in enumerate(np.minimum(np.sort(self._buckets()), self.tokens)):
            if not cuts or i + 1 - cuts[-1] > self.tokens // self._padded(int(length)) * self.parts:
                cuts.append(i)
        return cuts

    def _padded(self, length: int) -> int:
        padded = -(-length // self.multiple) * self.multiple
        return padded if self.tokens is None else min(padded, max(self.tokens, length))

    def largest(self) -> tuple[int, int]:
        """Examples and tokens of this epoch's largest micro-batch, padded; of equal ones the longest."""
        shapes = ((len(batch), self._padded(int(self.lengths[batch].max()))) for batch in self)
        return max(shapes, key=lambda shape: (shape[0] * shape[1], shape[1]))

    def padding(self) -> float:
        """The fraction of this epoch's computed tokens that is padding, in [0, 1)."""
        computed = sum(len(batch) * self._padded(int(self.lengths[batch].max())) for batch in self)
        return 1 - sum(int(self.lengths[batch].sum()) for batch in self) / computed
