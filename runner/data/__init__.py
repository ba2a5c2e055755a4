"""Datasets: how files are read and how answers are scored. A new kind of task is one module, a new dataset one YAML."""

import importlib
import pkgutil


def import_all() -> None:
    """Import the modules of this package, so that every subclass of Dataset exists.

    `squad_metric` is not imported: it imports `evaluate`, which takes seconds.
    """
    for module in pkgutil.iter_modules(__path__):
        if module.name != "squad_metric":
            importlib.import_module(f"{__name__}.{module.name}")
