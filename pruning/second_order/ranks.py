"""Ranks of `torch.distributed` that share a calibration: each runs a part of the batches, and the sums are added up."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed as dist
from torch import Tensor

from pruning.errors import PruningError


def _world() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def mine(number: int) -> bool:
    """Whether this rank runs the batch of this number."""
    return _world() == 1 or number % _world() == dist.get_rank()


def sum_over_ranks(tensor: Tensor) -> None:
    """Add up what all ranks have, in place."""
    if _world() > 1:
        dist.all_reduce(tensor)


@contextmanager
def refused_alike() -> Iterator[None]:
    """A block that each rank runs on its own batches: if one fails, all do at the block's end, so that none waits for
    sums that never come.

    Raises:
        PruningError: another rank failed, the first of them with this message. A rank that fails raises its own error.
    """
    own: Exception | None = None
    try:
        yield
    except Exception as error:
        if _world() == 1:
            raise
        own = error
    if _world() == 1:
        return
    messages: list[str | None] = [None] * _world()
    dist.all_gather_object(messages, own and _message(own))
    first = next((message for message in messages if message is not None), None)
    if own is not None:
        raise own
    if first is not None:
        raise PruningError(first)


def _message(error: Exception) -> str:
    if isinstance(error, PruningError):
        return str(error)
    return f"rank {dist.get_rank()} failed: {type(error).__name__}: {error}"
