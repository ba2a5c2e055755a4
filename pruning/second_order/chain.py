"""Runs of a model that begin in its middle: blocks that have run before give what they gave then."""

import logging
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

log = logging.getLogger(__name__)

Inputs = list[tuple[nn.Module, Tensor]]
"""Modules in the order in which a run reaches them, each with its input."""


@dataclass
class _Known:
    """What a run gave: the output of the last of the first `blocks` blocks of a list."""

    list: nn.ModuleList
    blocks: int
    output: Any


class Chain:
    """The blocks of a model, such as the layers of an encoder, that run one after the other and hand on their output.

    A run that only has to reach a module of block b begins there: the blocks before return the output of block b - 1,
    which the first run to reach b has kept. So all layers are reached in order at the cost of a few runs of the whole
    model, instead of as many halves of runs as there are layers. Memory: the output of one block for each key.

    No block is trusted to be one of a chain: `reach` compares with a whole run where it is told to, and after a
    difference in a single bit all runs are whole.
    """

    def __init__(self, model: nn.Module) -> None:
        lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
        inner = {part for each in lists for part in each.modules() if part is not each}
        self._places = {
            module: (each, number)
            for each in lists
            if each not in inner and len(set(each)) == len(each)
            for number, block in enumerate(each)
            for module in block.modules()
        }
        self._known: dict[Hashable, _Known] = {}

    def reach(self, modules: Sequence[nn.Module], key: Hashable, run: Callable[[], Inputs], check: bool) -> Inputs:
        """The inputs of modules, as `run` finds them.

        Args:
            key: of the batch and the weights. Runs of one key reach the blocks in their order, and once a block is
                reached, those before it do not change.
            check: compare with a whole run.
        """
        known, places = self._known.get(key), {self._places.get(module) for module in modules}
        place = places.pop() if len(places) == 1 else None
        if place is None:  # in no block: behind all of them, as a rule
            place = None if known is None else (known.list, known.blocks)
        if place is None:
            return run()
        blocks, wanted = place
        if known is None or known.list is not blocks or known.blocks > wanted:
            known = _Known(blocks, 0, None)
        with _shortened(known), self._keeping(key, known, blocks, wanted):
            found = run()
        if check and known.blocks and not _same(found, whole := run()):
            log.info("the model's blocks are no chain: each run begins at its first")
            self._places, self._known = {}, {}
            return whole
        return found

    @contextmanager
    def _keeping(self, key: Hashable, known: _Known, blocks: nn.ModuleList, wanted: int) -> Iterator[None]:
        """Keep the output of the block before the one that is wanted, if it runs."""
        if wanted <= known.blocks:
            yield
            return

        def keep(module: nn.Module, inputs: Any, output: Any) -> None:
            self._known[key] = _Known(blocks, wanted, output)

        handle = blocks[wanted - 1].register_forward_hook(keep)
        try:
            yield
        finally:
            handle.remove()


@contextmanager
def _shortened(known: _Known) -> Iterator[None]:
    """The blocks that are known return the last one's output."""
    blocks = [known.list[number] for number in range(known.blocks)]
    own = [vars(block).get("forward") for block in blocks]
    for block in blocks:
        block.forward = lambda *_, **__: known.output
    try:
        yield
    finally:
        for block, forward in zip(blocks, own, strict=True):
            del block.forward
            if forward is not None:
                block.forward = forward


def _same(one: Inputs, other: Inputs) -> bool:
    return len(one) == len(other) and all(
        a is b and x.shape == y.shape and x.dtype == y.dtype and bool((x == y).all())
        for (a, x), (b, y) in zip(one, other, strict=True)
    )
