"""The one error that the engine raises for a request that cannot be met, and the check of arguments' types."""

import inspect
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

_EXAMPLES = {
    "Mapping": "matrix_weights(model)",
    "Pattern": 'Block(4, 1) or parse("4x1")',
    "Allocation": "Global()",
    "Plan": "Plan(matrix_weights(model), Block(4, 1))",
    "Schedule": "Gradual()",
    "TrainingLength": "TrainingLength(steps=1000)",
    "Criterion": "Magnitude()",
    "Regularizer": "GroupLasso()",
    "Optimizer": "torch.optim.AdamW(model.parameters())",
}
"""Name of a type -> how to make one."""


class PruningError(ValueError):
    """A pattern, target, schedule or state that cannot be honoured.

    The message names the value, the place and the remedy.

    Args:
        owner: the object whose arguments the message writes as `name=value`, if it is about arguments.
    """

    def __init__(self, message: str, owner: object = None) -> None:
        super().__init__(message)
        self.owner = owner


def expects(**kinds: type) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorate a function to raise PruningError for an argument of another type. Defaults pass.

    Args:
        kinds: parameter -> its type.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        signature = inspect.signature(function)

        @wraps(function)
        def checked(*args: P.args, **kwargs: P.kwargs) -> R:
            try:
                given = signature.bind(*args, **kwargs).arguments
            except TypeError:
                return function(*args, **kwargs)  # Python's own message names the function
            for name, kind in kinds.items():
                default = signature.parameters[name].default
                if name in given and given[name] is not default and not isinstance(given[name], kind):
                    raise PruningError(_wrong_type(name, given[name], kind))
            return function(*args, **kwargs)

        return checked

    return decorate


def _wrong_type(name: str, value: object, kind: type) -> str:
    if isinstance(value, type) and issubclass(value, kind):
        return f"{name} is the class {value.__name__}: make an object of it, {value.__name__}(...)"
    shown = repr(value) if isinstance(value, str | int | float | None) else f"an object of {type(value).__name__}"
    return f"{name} must be of the type {kind.__name__}, such as {_EXAMPLES[kind.__name__]}, not {shown}"
