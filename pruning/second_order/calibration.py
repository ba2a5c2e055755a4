"""Calibration: second moments of layer inputs and of output gradients, from a few batches of training data."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pruning.errors import PruningError
from pruning.second_order.ranks import mine, refused_alike, sum_over_ranks

MATRIX_MODULES = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)

_STRIP = 128  # rows of a Hessian that are summed at once


def _all_real(batch: Any) -> None:
    return None


@dataclass
class Calibration:
    """What a calibration needs: a model, batches, and how to run them.

    Ranks of `torch.distributed` share the batches: all give the same ones, each runs its part, the sums are reduced.
    """

    model: nn.Module
    batches: Iterable[Any]
    """Batches, alike at each iteration."""
    loss: Callable[[Any, torch.Generator], Tensor]
    """(batch, source of chance) -> the loss of `model`, a sum over the batch's examples, on labels that are drawn from
    the model's own output: then the mean of squared gradients is the Fisher information."""
    tokens: Callable[[Any], Tensor | None] = _all_real
    """Batch -> bool [batch, tokens], False at padding; None: everything counts."""
    known: "Statistics | None" = None
    """What `collect` gives for the model as it is now, where that is known: then no batch is read."""


@dataclass
class Statistics:
    """The sums of a calibration, by parameter name; weights that were not used have no entry."""

    hessians: dict[str, Tensor] = field(default_factory=dict)
    """[in + 1, in + 1]: mean of x x^T over tokens, with a constant 1 behind each input x. Layers that read the same
    tensor share one matrix."""
    fisher: dict[str, Tensor] = field(default_factory=dict)
    """[out]: sum over tokens of the squared gradient at each output; empty if it was not asked for."""
    calls: dict[str, int] = field(default_factory=dict)
    """How often each batch runs the layer, 0 where batches differ; in the order in which the model runs them."""


@dataclass
class _Call:
    module: nn.Module
    input: Tensor
    output: Tensor


def modules_of(model: nn.Module, parameters: Mapping[str, nn.Parameter]) -> dict[str, list[nn.Module]]:
    """Parameter name -> the Linear and Conv modules that have it as their weight.

    Raises:
        PruningError: a weight has none, or belongs to a grouped convolution.
    """
    owners: dict[int, list[nn.Module]] = {}
    for module in model.modules():
        if isinstance(module, MATRIX_MODULES):
            owners.setdefault(id(module.weight), []).append(module)
    found = {name: owners.get(id(p), []) for name, p in parameters.items()}
    for name, modules in found.items():
        if not modules:
            raise PruningError(f"{name} is the weight of no Linear or Conv module of the calibrated model")
        if any(getattr(module, "groups", 1) > 1 for module in modules):
            raise PruningError(f"{name}: grouped convolutions have no common input; exclude the layer")
    return found


def collect(
    calibration: Calibration, parameters: Mapping[str, nn.Parameter], seed: int = 0, fisher: bool = True
) -> Statistics:
    """Run the batches in evaluation mode and sum what layers read, and how much each output matters.

    The same on all ranks and in every repetition. Weights, gradients and the global random state do not change.
    Memory: 4 (in + 1)^2 bytes for each distinct layer input.

    Args:
        parameters: weights of the Linear and Conv modules to observe.
        seed: of the sampled labels.
        fisher: also run backward.

    Raises:
        PruningError: there is no batch, a number is not finite, or layers share their input in some batches only.
    """
    if calibration.known is not None:
        return calibration.known
    sums = _Sums(modules_of(calibration.model, parameters), parameters)
    with evaluating(calibration.model), sums.recording(), refused_alike():
        for number, batch in enumerate(calibration.batches):
            if not mine(number) and number:
                continue
            chance = torch.Generator().manual_seed((seed << 32) + number)
            with torch.set_grad_enabled(fisher):
                loss = calibration.loss(batch, chance)
            sums.check_sharing()
            if mine(number):
                sums.add(loss if fisher else None, calibration.tokens(batch))
            sums.calls.clear()
    return sums.result(fisher)


class _Sums:
    def __init__(self, modules: dict[str, list[nn.Module]], parameters: Mapping[str, nn.Parameter]) -> None:
        self.modules, self.parameters = modules, parameters
        self.calls: dict[str, list[_Call]] = {}
        self.leaders: dict[str, str] | None = None
        self.hessians: dict[str, Tensor] = {}
        self.fisher: dict[str, Tensor] = {}
        self.rows: dict[str, int] = {}
        self.counts: dict[str, int] = {}

    @contextmanager
    def recording(self) -> Iterator[None]:
        def hook(name: str) -> Callable[..., None]:
            def record(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
                self.calls.setdefault(name, []).append(_Call(module, inputs[0], output))

            return record

        handles = [m.register_forward_hook(hook(name)) for name, modules in self.modules.items() for m in modules]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def check_sharing(self) -> None:
        """Find which layers read the same tensors; it must be so in every batch."""
        first: dict[Any, str] = {}
        leaders = {}
        for name, calls in self.calls.items():  # tensors are alive, so that their ids are unique
            leaders[name] = first.setdefault(tuple((id(c.input), _geometry(c.module)) for c in calls), name)
            self.counts[name] = len(calls) if self.counts.get(name, len(calls)) == len(calls) else 0
        if self.leaders is None:
            self.leaders = leaders
            for name, leader in leaders.items():
                p = self.parameters[name]
                self.fisher[name] = torch.zeros(p.shape[0], dtype=precise(p), device=p.device)
                if name == leader:
                    size = p[0].numel() + 1
                    self.hessians[name] = torch.zeros(size, size, dtype=precise(p), device=p.device)
                    self.rows[name] = 0
        elif self.leaders != leaders:
            names = sorted(n for n in leaders.keys() | self.leaders.keys() if leaders.get(n) != self.leaders.get(n))
            raise PruningError(f"the input of {names[0]} is shared with other layers in some calibration batches only")

    def add(self, loss: Tensor | None, tokens: Tensor | None) -> None:
        assert self.leaders is not None
        names = [name for name, calls in self.calls.items() for _ in calls]
        calls = [call for calls in self.calls.values() for call in calls]
        if loss is not None:
            gradients = torch.autograd.grad(loss, [call.output for call in calls], allow_unused=True)
            for name, call, gradient in zip(names, calls, gradients, strict=True):
                if gradient is not None:
                    last = gradient if isinstance(call.module, nn.Linear) else gradient.movedim(1, -1)
                    self.fisher[name] += real(last, tokens).to(self.fisher[name].dtype).square().sum(0)
        with torch.no_grad():
            for name, call in zip(names, calls, strict=True):
                if self.leaders[name] == name:
                    self._add_input(name, call, tokens)

    def _add_input(self, name: str, call: _Call, tokens: Tensor | None) -> None:
        x = real(patches(call.module, call.input), tokens).to(self.hessians[name].dtype)
        x = torch.cat([x, x.new_ones(len(x), 1)], 1)
        with torch.autocast(x.device.type, enabled=False):
            for start in range(0, x.shape[1], _STRIP):  # the upper triangle, which is half of the work
                strip = self.hessians[name][start : start + _STRIP, start:]
                strip.addmm_(x[:, start : start + _STRIP].T, x[:, start:])
        self.rows[name] += len(x)

    def result(self, fisher: bool) -> Statistics:
        if self.leaders is None:
            raise PruningError("there is no calibration batch")
        for name, hessian in self.hessians.items():
            rows = hessian.new_tensor(self.rows[name], dtype=torch.float64)
            for tensor in (hessian, rows):
                sum_over_ranks(tensor)
            hessian.triu_().add_(hessian.triu(1).T).div_(rows.clamp(min=1))
        for name, values in self.fisher.items():
            sum_over_ranks(values)
            if not bool(values.isfinite().all()) or not bool(self.hessians[self.leaders[name]].isfinite().all()):
                raise PruningError(f"calibration of {name}: inputs or gradients are not finite")
        hessians = {name: self.hessians[leader] for name, leader in self.leaders.items()}
        return Statistics(hessians, self.fisher if fisher else {}, self.counts)


def precise(p: Tensor) -> torch.dtype:
    """The type in which moments of a layer with these weights are summed."""
    return torch.promote_types(p.dtype, torch.float32)


def _geometry(module: nn.Module) -> tuple[Any, ...]:
    if isinstance(module, nn.Linear):
        return ()
    return tuple(getattr(module, key) for key in ("kernel_size", "stride", "padding", "dilation", "padding_mode"))


def patches(module: nn.Module, x: Tensor) -> Tensor:
    """The inputs behind each output position: [..., in], in the order of `as_matrix`'s columns."""
    if isinstance(module, nn.Linear):
        return x
    assert isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d))
    axes = len(module.kernel_size)
    x = x[None] if x.dim() == axes + 1 else x
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    x = F.pad(x, module._reversed_padding_repeated_twice, mode=mode)
    for axis in range(axes):
        size, step, hole = module.kernel_size[axis], module.stride[axis], module.dilation[axis]
        x = x.unfold(2 + axis, (size - 1) * hole + 1, step)[..., ::hole]
    return x.movedim(1, -1).flatten(1 + axes)  # [batch, *positions, *taps, channels] -> [batch, *positions, in]


def real(values: Tensor, tokens: Tensor | None) -> Tensor:
    """[..., features] -> [rows, features], without padding where the other axes are those of the token mask."""
    if tokens is not None and values.shape[:-1] == tokens.shape:
        return values[tokens]
    return values.reshape(-1, values.shape[-1])


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model is in evaluation mode; afterwards each module has its own mode again."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def weight_gradients(
    calibration: Calibration, parameters: Mapping[str, nn.Parameter], seed: int, term: Callable[[Tensor], Tensor]
) -> dict[str, Tensor]:
    """The sum over batches of `term` of each weight's gradient, in the weight's shape; the same on all ranks. Frozen
    parameters have none."""
    parameters = {name: p for name, p in parameters.items() if p.requires_grad}
    sums = {name: torch.zeros_like(p, dtype=precise(p)) for name, p in parameters.items()}
    number = -1
    with evaluating(calibration.model), refused_alike():
        for number, batch in enumerate(calibration.batches):
            if not mine(number):
                continue
            with torch.enable_grad():
                loss = calibration.loss(batch, torch.Generator().manual_seed((seed << 32) + number))
            gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
            for name, g in zip(sums, gradients, strict=True):
                if g is not None:
                    sums[name] += term(g.to(sums[name].dtype))
    if number < 0:
        raise PruningError("there is no calibration batch")
    for name, values in sums.items():
        sum_over_ranks(values)
        if not bool(values.isfinite().all()):
            raise PruningError(f"calibration of {name}: gradients are not finite")
    return sums
