"""Kinds of task, one module each: how files are read and how answers are scored. A dataset of a known kind is one
YAML."""

import importlib
import pkgutil


def import_all() -> None:
    """Import the modules of this package, so that all kinds of dataset exist as subclasses.

    Metrics (`*_metric`) are left out: they import `evaluate`, which takes seconds, and only scoring needs them.
    """
    for module in pkgutil.iter_modules(__path__):
        if not module.name.endswith("_metric"):
            importlib.import_module(f"{__name__}.{module.name}")
