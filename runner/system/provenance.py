"""The software, hardware and command of a run, for MLflow's tags and for its repetition."""

from __future__ import annotations

import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from runner.system.device import describe

PACKAGES = ("torch", "transformers", "tokenizers", "accelerate", "datasets", "numpy", "prune-distill")
"""Packages on which results depend."""


def provenance() -> dict[str, str]:
    """MLflow tags: versions, hardware, user and commit."""
    tags = {f"version.{name}": number for name, number in versions().items()} | {"hardware": describe()}
    tags |= {"mlflow.source.name": "python -m runner", "mlflow.source.type": "LOCAL", "mlflow.user": _user()}
    commit = _git("rev-parse", "HEAD")
    if commit:
        tags |= {"mlflow.source.git.commit": commit, "git.dirty": str(bool(_git("status", "--porcelain"))).lower()}
    return tags


def versions() -> dict[str, str]:
    """Versions of Python and of the packages on which results depend."""
    return {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}}


def code() -> str:
    """The commit of this code, and whether it was changed since; empty if unknown."""
    commit = _git("rev-parse", "HEAD")
    return f"{commit}, with changes" if commit and _git("status", "--porcelain") else commit


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _user() -> str:
    import getpass

    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container without a passwd entry
        return "unknown"


def _git(*arguments: str) -> str:
    """Output of git in the folder of this code; empty without git or outside of a repository."""
    here = Path(__file__).parent
    if "site-packages" in here.parts:
        return ""  # a repository around it belongs to another project
    command = ["git", "-C", str(here), *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def command_line() -> str:
    """The command line of this process, to repeat it."""
    import shlex

    return "python -m runner " + shlex.join(sys.argv[1:])
