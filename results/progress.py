"""Progress of a long reading on stderr: a bar in a terminal, else a line each 10 %."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import TypeVar

from rich.console import Console
from rich.progress import track

T = TypeVar("T")
_FEW = 50  # items that need no report


def reported(items: Sequence[T], what: str) -> Iterator[T]:
    """The items, each reported once the next one is asked for.

    Args:
        what: names what is done with them, such as "scores".
    """
    if len(items) < _FEW:
        yield from items
    elif sys.stderr.isatty():
        yield from track(items, f"{what}:", console=Console(stderr=True), transient=True)
    else:
        for at, item in enumerate(items):
            yield item
            if (at + 1) * 10 // len(items) > at * 10 // len(items):
                print(f"{what}: {at + 1} of {len(items)}", file=sys.stderr, flush=True)
