"""Forward passes that begin in the middle of a model: the outputs of the blocks before are cached."""

import logging
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

log = logging.getLogger(__name__)

Inputs = list[tuple[nn.Module, Tensor]]
"""Modules in the order in which a run reaches them, each with its input."""


class NoChain(Exception):
    """A run from the middle differs from a whole run; from now on all runs are whole."""


@dataclass
class _Known:
    """The cached output of the last of the first `blocks` blocks of a list."""

    list: nn.ModuleList
    blocks: int
    output: Any


class Chain:
    """The blocks of a model, such as the layers of an encoder, that run one after the other and hand on their output.

    A run that only has to reach a module of block b begins there: the blocks before return the output of block b - 1,
    which is cached by the first run to reach b. So all layers are reached in order at the cost of a few runs of the
    whole model, instead of as many halves of runs as there are layers. Memory: what one block returns, for each key.

    Whether the blocks are such a chain is checked: of the runs from one block to another, one is compared with a whole
    run, for each block at another key, as batches differ in their padding.
    """

    def __init__(self, model: nn.Module) -> None:
        lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
        inner = {part for each in lists for part in each.modules() if part is not each}
        self._places: dict[nn.Module, tuple[nn.ModuleList, int]] = {}
        shared: set[nn.Module] = set()
        for each in lists:
            for number, block in enumerate(each if each not in inner else ()):
                for module in block.modules():
                    shared |= {module} & self._places.keys()
                    self._places[module] = each, number
        self._places = {module: place for module, place in self._places.items() if module not in shared}
        self._known: dict[Hashable, _Known] = {}
        self._runs: dict[tuple[nn.ModuleList, int, int], int] = {}

    def reach(self, modules: Sequence[nn.Module], key: Hashable, run: Callable[[], Inputs], check: bool) -> Inputs:
        """The inputs of modules, as `run` finds them. Those that are in no block, or in several, take a whole run.

        Args:
            key: of the batch and the weights. Runs of one key reach the blocks in their order, and once a block is
                reached, those before it do not change.
            check: whether this key is one of those of which some are compared; half of all.

        Raises:
            NoChain: the model cannot be run in this way. What was found for the modules so far is wrong.
        """
        places = {self._places.get(module) for module in modules}
        place = places.pop()
        if places or place is None:
            return run()
        blocks, wanted = place
        known = self._known.get(key)
        if known is None or known.list is not blocks or known.blocks > wanted:
            known = _Known(blocks, 0, None)
        with _shortened(known), self._caching(key, known, wanted):
            found = run()
        if check and known.blocks and self._is_due(known, wanted) and not _same(found, run()):
            log.info("runs from the middle of the model differ from whole ones: each run begins at its start")
            self._places, self._known = {}, {}
            raise NoChain
        return found

    def _is_due(self, known: _Known, wanted: int) -> bool:
        """Whether this run is to be compared, of those from one block to another."""
        number = self._runs.get((known.list, known.blocks, wanted), 0)
        self._runs[known.list, known.blocks, wanted] = number + 1
        return number == known.blocks % max(1, len(self._known) // 2)

    @contextmanager
    def _caching(self, key: Hashable, known: _Known, wanted: int) -> Iterator[None]:
        """Cache the output of the block before the one that is wanted, if it runs."""
        if wanted <= known.blocks:
            yield
            return

        def cache(module: nn.Module, inputs: Any, output: Any) -> None:
            self._known[key] = _Known(known.list, wanted, output)

        handle = known.list[wanted - 1].register_forward_hook(cache)
        try:
            yield
        finally:
            handle.remove()


@contextmanager
def _shortened(known: _Known) -> Iterator[None]:
    """The blocks that are known return the last one's output."""
    blocks = [known.list[number] for number in range(known.blocks)]
    own = [vars(block).get("forward") for block in blocks]
    try:
        for block in blocks:
            block.forward = lambda *_, **__: known.output
        yield
    finally:
        for block, forward in zip(blocks, own, strict=True):
            vars(block).pop("forward", None)
            if forward is not None:
                block.forward = forward


def _same(one: Inputs, other: Inputs) -> bool:
    """Whether all is equal; what is not a number is equal to itself, and refused elsewhere."""
    return len(one) == len(other) and all(
        a is b and x.shape == y.shape and x.dtype == y.dtype and bool(((x == y) | (x.isnan() & y.isnan())).all())
        for (a, x), (b, y) in zip(one, other, strict=True)
    )
