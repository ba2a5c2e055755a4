"""What computes a model that `runner.evaluate` scores, from its command line: runtime=, precision=, threads=."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from pruning.runtime import Unavailable, compiler
from pruning.runtime.model import layer_precisions
from runner.config.compose import override_parser
from runner.config.refusals import explained
from runner.system.errors import UserError

RUNTIMES = ("torch", "sparse")


@dataclass(frozen=True)
class RuntimeSettings:
    """What computes the scores; these keys are of `python -m runner.evaluate` alone."""

    runtime: str = "torch"
    """torch: in float32. sparse: the sparse runtime on the CPU, and torch for comparison."""
    precision: str | dict[str, str] = "auto"
    """For runtime=sparse: auto, float32, bfloat16, int8, or that of each kind of layer, such as
    {others: int8, down: bfloat16}. auto: bfloat16 if the CPU multiplies it, else float32."""
    threads: int | None = None
    """Threads of the sparse runtime. Not given: as many as torch has."""

    def __post_init__(self) -> None:
        if self.runtime not in RUNTIMES:
            raise UserError(f"runtime={self.runtime}: choose from {', '.join(RUNTIMES)}")
        threads: Any = self.threads
        if threads is not None and (not isinstance(threads, int) or isinstance(threads, bool) or threads < 1):
            raise UserError(f"threads={threads} must be a whole number above 0")
        if not isinstance(self.precision, str) and not _is_by_layer(self.precision):
            raise UserError(
                f"precision={self.precision}: give one name, or one for each kind of layer, such as "
                "'precision={others: int8, down: bfloat16}'"
            )
        ignored = [f.name for f in fields(self) if f.name != "runtime" and getattr(self, f.name) != f.default]
        if self.runtime == "torch" and ignored:
            shown = ", ".join(f"{name}={getattr(self, name)}" for name in ignored)
            raise UserError(f"{shown}: runtime=torch has no such setting, it computes in float32; add runtime=sparse")

    def check(self) -> None:
        """Refuse what this machine cannot do, before anything is read.

        Raises:
            UserError: no kernels for this CPU, or no compiler.
            PruningError: a precision that does not exist, or that the CPU does not have.
        """
        if self.runtime == "sparse":
            try:
                library = compiler.library()
            except Unavailable as reason:
                raise UserError(f"runtime=sparse: {reason}") from reason
            layer_precisions(self.precision, library.instructions)


def split(overrides: Sequence[str]) -> tuple[RuntimeSettings, list[str]]:
    """The settings of the runtime in a command line, and the other overrides.

    Raises:
        UserError: a value that makes no sense.
    """
    names = {field.name for field in fields(RuntimeSettings)}
    ours = [override for override in overrides if override.lstrip("+").partition("=")[0] in names]
    values: dict[str, Any] = {}
    with explained(ours):
        for override in override_parser().parse_overrides([each.lstrip("+") for each in ours]):
            if override.is_sweep_override():
                raise UserError(f"{override.input_line}: give one value, and repeat the command for others")
            values[override.key_or_group] = override.value()
    return RuntimeSettings(**values), [override for override in overrides if override not in ours]


def _is_by_layer(precision: Any) -> bool:
    return isinstance(precision, dict) and all(isinstance(part, str) for each in precision.items() for part in each)
