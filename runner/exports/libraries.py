"""Optional libraries of exporters and runtimes: imported by name, and silenced."""

from __future__ import annotations

import importlib
import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any


class Missing(Exception):
    """A runtime that is not installed, or does not run this model; its text is the reason."""


def installed(module: str) -> Any:
    """Import an optional module. Raises Missing if it is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise Missing(f"{module} is not installed: .venv/bin/pip install -e '.[bench]'") from error


@contextmanager
def quiet() -> Iterator[None]:
    """Without the warnings, hints and progress bars of exporters and quantisers."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
