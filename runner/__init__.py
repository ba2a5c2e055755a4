"""The experiment runner: from composed YAML to a verified, scored and logged model. Begin with `experiment.py`.

From Python: `from runner import run, compose, results`, see `runner/interface.py`.
"""

import os
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from runner.interface import UserError, compose, results, run

__all__ = ["UserError", "compose", "results", "run"]

try:
    os.getcwd()
except FileNotFoundError:  # torch would end the process without naming the reason
    raise SystemExit("error: the working folder was deleted; change to one that exists, then run again") from None


def _hint(missing: str) -> str:
    """What to do where a library is missing."""
    project = Path(__file__).resolve().parent.parent
    python = project / ".venv" / "bin" / "python"
    remedy = f"use {python}" if python.exists() else f"run `make setup` in {project}, then use {python}"
    return f"error: {sys.executable} has no package {missing}: {remedy}, or an environment that has this one installed"


def _show_interrupt(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Ctrl-C while libraries are imported needs no traceback."""
    if issubclass(kind, KeyboardInterrupt):
        print("interrupted", file=sys.stderr)
    else:
        _show(kind, error, trace)


if sys.argv[:1] == ["-m"]:  # `python -m runner...` imports this first
    for _name in ("hydra", "torch", "transformers", "datasets", "mlflow"):
        if find_spec(_name) is None:
            raise SystemExit(_hint(_name))
    _show, sys.excepthook = sys.excepthook, _show_interrupt


def __getattr__(name: str) -> Any:
    """The names of `runner.interface`, when they are first asked for: its imports take seconds."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("runner.interface"), name)
