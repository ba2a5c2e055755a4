"""The software, hardware and command of a run, for MLflow's tags and for its repetition."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from runner.system.device import describe

PACKAGES = ("torch", "transformers", "tokenizers", "accelerate", "datasets", "numpy", "prune-distill")
"""Packages on which results depend."""
_FILE = Path(__file__).resolve()
_PROJECT = _FILE.parents[2]
_CODE = ("conf", "pruning", "results", "runner")
_GIT_PLACES = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_COMMON_DIR")


def provenance() -> dict[str, str]:
    """MLflow tags: versions, hardware, user and commit."""
    tags = {f"version.{name}": number for name, number in versions().items()} | {"hardware": describe()}
    tags |= {"mlflow.source.name": "python -m runner", "mlflow.source.type": "LOCAL", "mlflow.user": _user()}
    commit = _commit()
    if commit:
        tags |= {"mlflow.source.git.commit": commit, "git.dirty": str(_changed()).lower()}
    return tags


def versions() -> dict[str, str]:
    """Versions of Python and of the packages on which results depend."""
    return {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}}


def code() -> str:
    """The commit of this code, and whether it was changed since; empty if unknown."""
    commit = _commit()
    return f"{commit}, with changes" if commit and _changed() else commit


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


def _commit() -> str:
    """The commit of the code that runs; empty without git, and for a copy that no repository tracks: a repository
    around an installed package belongs to another project."""
    return _git("rev-parse", "HEAD") if _git("ls-files", "--", _FILE.relative_to(_PROJECT).as_posix()) else ""


def _changed() -> bool:
    """Whether the code may differ from its commit: a tracked file was changed, or a module or an option was added.
    Other files next to the code, such as data and outputs, change no result."""
    added = [f":(glob){package}/**/*{suffix}" for package in _CODE for suffix in (".py", ".yaml")]
    return bool(
        _git("status", "--porcelain", "--untracked-files=no", "--", ".") or _git("ls-files", "--others", "--", *added)
    )


def _git(*arguments: str) -> str:
    """Output of git in the project's folder; empty if it fails."""
    # A hook of another repository sets these variables, which are stronger than the folder.
    environment = {key: value for key, value in os.environ.items() if key not in _GIT_PLACES}
    command = ["git", "--no-optional-locks", "-C", str(_PROJECT), *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def command_line() -> str:
    """The command line of this process, to repeat it."""
    import shlex

    return "python -m runner " + shlex.join(sys.argv[1:])
