"""Hooks around the steps of an optimizer, for any training loop: closures, gradient scalers and subclasses included."""

import sys
from collections.abc import Callable, Mapping
from typing import Any
from weakref import WeakKeyDictionary

from torch.optim import Adam, AdamW, NAdam, Optimizer, RAdam

from pruning.coupled import Weight, parts_of
from pruning.criteria import Criterion
from pruning.errors import PruningError

_pruned: WeakKeyDictionary[Optimizer, list[set[int]]] = WeakKeyDictionary()
"""Ids of the weights that each pruner of an optimizer holds."""


class StepHooks:
    """Calls functions around every step that an optimizer takes, until `remove`.

    Args:
        optimizer: of torch, not a wrapper of it.
        parameters: whose zeros are held after each step.
        before: called with the factor by which gradients are scaled, once gradients exist (a closure makes them within
            the step).
        after: called after a step was taken. Neither is called where a GradScaler skips the step.
        loaded: called with the optimizer after it loaded a state.

    Raises:
        PruningError: other hooks of this optimizer hold one of the parameters.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        parameters: Mapping[str, Weight],
        before: Callable[[float], None],
        after: Callable[[], None],
        loaded: Callable[[Optimizer], None],
    ) -> None:
        others = _pruned.setdefault(optimizer, [])
        parts = {id(p): name for whole, weight in parameters.items() for name, p in parts_of(whole, weight)}
        if twice := [name for part, name in parts.items() if any(part in other for other in others)]:
            raise PruningError(
                f"another pruner is attached to this optimizer and prunes {twice[0]} too: detach() that one first, or "
                "make a new optimizer if you no longer have it"
            )
        self._before, self._after = before, after
        self._skips = False  # the step in progress
        self._step_frame: Any = None  # torch's, around the step in progress
        self._others, self._own = others, {*parts}
        others.append(self._own)
        self._handles = [
            optimizer.register_step_pre_hook(self._enter),
            optimizer.register_step_post_hook(self._leave),
            optimizer.register_load_state_dict_post_hook(loaded),
        ]

    def remove(self) -> None:
        """Call nothing from now on."""
        self._others[:] = [other for other in self._others if other is not self._own]
        for handle in self._handles:
            handle.remove()

    def _is_inner_step(self, frame: Any) -> bool:
        """Whether torch calls the hooks for the step of a base class, which the step of its subclass calls.

        Such a step must not count twice, and hooks get no argument that identifies it. Only the frame of torch's
        wrapper does: a counter of entered steps would never recover from a step that raises, for no hook is called
        then; and replacing `optimizer.step` would collide with learning-rate schedulers and accelerate, which do so.
        """
        while self._step_frame is not None and frame is not None:
            frame = frame.f_back
            if frame is self._step_frame:
                return True
        return False

    def _enter(self, optimizer: Optimizer, args: Any, kwargs: Any) -> Any:
        frame = sys._getframe(1)
        if self._is_inner_step(frame):
            return None
        self._step_frame = frame
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
        if closure is None:
            self._prepare(optimizer)
            return None
        waiting = True

        def closure_then_prepare() -> Any:  # optimizers may call it several times in a step
            nonlocal waiting
            loss = closure()
            if waiting:
                self._prepare(optimizer)
                waiting = False
            return loss

        return (args[0], *args[2:]), {**kwargs, "closure": closure_then_prepare}

    def _prepare(self, optimizer: Optimizer) -> None:
        # A GradScaler calls fused optimizers even when it skips, with the gradients still scaled.
        found_inf, scale = getattr(optimizer, "found_inf", None), getattr(optimizer, "grad_scale", None)
        self._skips = found_inf is not None and bool(found_inf.item())
        if not self._skips:
            self._before(1.0 if scale is None else float(scale))

    def _leave(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if sys._getframe(1) is not self._step_frame:
            return
        self._step_frame = None
        if not self._skips:
            self._after()


def check_optimizer(optimizer: Optimizer, parameters: Mapping[str, Weight], criterion: Criterion) -> None:
    """Raise PruningError if an optimizer does not train all weights, or lacks what the criterion reads. Biases of
    coupled units may be frozen."""
    owned = {id(p) for group in optimizer.param_groups for p in group["params"]}
    tensors = [part for name, weight in parameters.items() for part in parts_of(name, weight)]
    foreign = [name for name, p in tensors if id(p) not in owned and (p.requires_grad or p.dim() > 1)]
    if foreign:
        more = f" (and {len(foreign) - 1} more to be pruned)" if len(foreign) > 1 else ", which is to be pruned"
        raise PruningError(f"the optimizer does not train {foreign[0]}{more}")
    if criterion.needs_second_moment and not isinstance(optimizer, (Adam, AdamW, NAdam, RAdam)):
        raise PruningError(
            f"{type(criterion).__name__} reads the second moment of Adam, which {type(optimizer).__name__} "
            "does not have; take another criterion or optimizer"
        )
