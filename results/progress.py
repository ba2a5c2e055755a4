"""Progress of a long reading on stderr: a bar in a terminal, else a line each 10 %."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import track

T = TypeVar("T")


def reported(items: Iterable[T], what: str, count: int, few: int = 50) -> Iterator[T]:
    """The items, each reported once the next one is asked for.

    Args:
        what: names them, such as "scores".
        count: how many there are.
        few: fewer are not reported.
    """
    if count < few:
        yield from items
    elif sys.stderr.isatty():
        yield from track(items, f"{what}:", count, console=Console(stderr=True), transient=True)
    else:
        for at, item in enumerate(items):
            yield item
            if (at + 1) * 10 // count > at * 10 // count:
                print(f"{what}: {at + 1} of {count}", file=sys.stderr, flush=True)
