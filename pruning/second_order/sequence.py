"""Inputs of one layer collected again, once the layers before it are pruned.

With x the inputs in the model before, x' those in the model pruned so far, both of one token, and W0 the weights
before, the new weights minimise the error against the outputs of the model before (the asymmetric target of GPTAQ, Li
et al. 2025, arXiv 2504.02692), damped as everywhere:

    mean ||W0 x - w x'||^2 + sum_j d_j (w - w0)_j^2 = (w - w*) H' (w - w*)^T + constant
    H' = mean(x' x'^T) + diag(d)        w* = W0 + W0 mean((x - x') x'^T) H'^-1

so that it is layer-wise OBS with w* for the weights before and H' for the Hessian. Where nothing moved, w* is W0.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pruning.errors import PruningError
from pruning.second_order.calibration import Calibration, evaluating, patches, precise, real
from pruning.second_order.chain import Chain, Inputs, NoChain
from pruning.second_order.forms import cholesky
from pruning.second_order.ranks import mine, refused_alike, sum_over_ranks
from pruning.second_order.solver import damped


@dataclass
class Moved:
    """The sums of `collect_again`, without damping."""

    hessian: Tensor
    """[in + 1, in + 1]: mean of x' x'^T, with a constant 1 behind each input."""
    shift: Tensor
    """[in + 1, in + 1]: mean of (x - x') x'^T; its last row is 0."""
    distance: float
    """Root of the mean square of x - x', divided by that of x."""

    def target(self, weights: Tensor, damping: float) -> Tensor:
        """float64 [out, n]: w* of weights [out, n], with n = in or, with a bias that is refitted, in + 1."""
        size = weights.shape[1]
        factor = cholesky(damped(self.hessian[:size, :size], damping))
        moved = weights.double() @ self.shift[:size, :size].double()
        return weights.double() + torch.cholesky_solve(moved.T, factor).T


class Before:
    """The model before: tensors that are swapped in for a while.

    Args:
        parameters: all that are about to change. Copies are made.
    """

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self._pairs = [(p, p.detach().clone()) for p in {id(p): p for p in parameters}.values()]

    @contextmanager
    def restored(self) -> Iterator[None]:
        """The parameters have their old values; afterwards the new ones again."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        for i, (p, other) in enumerate(self._pairs):
            self._pairs[i] = (p, p.data)
            p.data = other

    @torch.no_grad()
    def take_back(self) -> None:
        """Give the parameters their old values for good."""
        for p, other in self._pairs:
            p.copy_(other)


class _Reached(Exception):
    """The last input that is asked for has come: the rest of the model need not run."""


def collect_again(
    calibration: Calibration, modules: Sequence[nn.Module], calls: int, before: Before, chain: Chain, seed: int = 0
) -> Moved:
    """Run the batches up to some modules, in the model before and as it is now, and sum what the modules read.

    The same on all ranks and in every repetition. Memory: 8 (in + 1)^2 bytes, the inputs of one batch, and what the
    chain caches: the outputs of one block for all batches, in both models.

    Args:
        modules: those that have the layer's weight.
        calls: how often a batch runs them; 0: not known, or not always as often.
        chain: of the same model, for all layers of one update.
        seed: of the labels, as in `collect`.

    Raises:
        PruningError: there is no batch, a number is not finite, or the model does not run the layer as before.
    """
    with evaluating(calibration.model), torch.no_grad(), refused_alike():
        try:
            sums, numbers = _sums(calibration, modules, calls, before, chain, seed)
        except NoChain:
            sums, numbers = _sums(calibration, modules, calls, before, chain, seed)
    for tensor in (*sums, numbers):
        sum_over_ranks(tensor)
    if not all(bool(tensor.isfinite().all()) for tensor in sums):
        raise PruningError("inputs of the pruned model are not finite")
    rows, whole, distance = numbers.tolist()
    hessian, shift = (tensor.div_(max(1.0, rows)) for tensor in sums)
    return Moved(hessian, shift, (distance / whole) ** 0.5 if whole else 0.0)


def _sums(
    calibration: Calibration, modules: Sequence[nn.Module], calls: int, before: Before, chain: Chain, seed: int
) -> tuple[list[Tensor], Tensor]:
    """What `collect_again` sums on this rank: matrices, and the number of rows and the squares of x and of x - x'."""
    weight, number = modules[0].weight, -1
    assert isinstance(weight, nn.Parameter)
    size = weight[0].numel() + 1
    sums = [torch.zeros(size, size, dtype=precise(weight), device=weight.device) for _ in range(2)]
    numbers = torch.zeros(3, dtype=torch.float64, device=weight.device)
    for number, batch in enumerate(calibration.batches):
        if not mine(number):
            continue

        def reached(batch=batch, number=number) -> Inputs:
            chance = torch.Generator().manual_seed((seed << 32) + number)
            return _inputs(modules, calls, lambda: calibration.loss(batch, chance))

        with before.restored():
            old = chain.reach(modules, ("before", number), reached, check=False)
        new = chain.reach(modules, ("now", number), reached, check=True)
        if [(m, x.shape) for m, x in old] != [(m, x.shape) for m, x in new]:
            raise PruningError("the pruned model does not run its layers as before: it cannot be pruned in sequence")
        for (module, x), (_, moved) in zip(old, new, strict=True):
            _add(sums, numbers, *(_rows(module, each, calibration.tokens(batch), sums[0]) for each in (x, moved)))
    if number < 0:
        raise PruningError("there is no calibration batch: batches have to be the same each time they are iterated")
    return sums, numbers


def _inputs(modules: Sequence[nn.Module], calls: int, run: Callable[[], object]) -> Inputs:
    """The modules that `run` calls, in their order, each with its input; the run ends with the last."""
    seen: Inputs = []

    def record(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen.append((module, inputs[0]))
        if len(seen) == calls:
            raise _Reached

    handles = [module.register_forward_pre_hook(record) for module in modules]
    try:
        with suppress(_Reached):
            run()
    finally:
        for handle in handles:
            handle.remove()
    return seen


def _rows(module: nn.Module, x: Tensor, tokens: Tensor | None, like: Tensor) -> Tensor:
    """[rows, in + 1] inputs with the constant 1."""
    x = real(patches(module, x), tokens).to(like.dtype)
    return torch.cat([x, x.new_ones(len(x), 1)], 1)


def _add(sums: list[Tensor], numbers: Tensor, x: Tensor, moved: Tensor) -> None:
    difference = x - moved
    with torch.autocast(x.device.type, enabled=False):
        sums[0].addmm_(moved.T, moved)
        sums[1].addmm_(difference.T, moved)
    numbers += torch.stack([x.new_tensor(len(x)), x[:, :-1].square().sum(), difference.square().sum()]).double()
