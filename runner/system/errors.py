"""What went wrong by the user's doing or surroundings, told in one message without a traceback."""

import re
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class UserError(Exception):
    """Names the value, the place and the remedy. Raised anywhere, printed at the edge (`runner.__main__`)."""


MOVED_KEYS = {"schedule.warmup_steps": "train.warmup_steps"}
"""Configuration keys of earlier versions and their names today."""


def moved_key(text: str) -> UserError | None:
    """The error that names today's key, if `text` mentions one of an earlier version."""
    old = next((key for key in MOVED_KEYS if key in text), None)
    return None if old is None else UserError(f"there is no {old}: it is now {MOVED_KEYS[old]}, set that instead")


def disk_error(error: Exception, folder: Path | str) -> UserError:
    """A failure to write below `folder`, as a message."""
    return _refused(folder, disk_reason(error) or str(error))


def _refused(where: Path | str, reason: str) -> UserError:
    return UserError(f"cannot write to {where}: {reason}; free space or choose another place, then run again")


def disk_reason(error: BaseException) -> str | None:
    """Why the disk refused, if that is what an error is about. The libraries written in Rust and C++ that save
    tokenizers, safetensors and optimizers say so in words only."""
    if isinstance(error, (ConnectionError, UserError)):
        return None
    if isinstance(error, OSError) and error.errno is not None:
        return error.strerror or str(error)
    words = re.search(r"([^:]*) \(os error \d+\)", str(error))
    if words is not None:
        return words[1].strip()
    return "a file could not be written to its end" if "inline_container.cc" in str(error) else None


def causes_of(error: BaseException | None) -> list[BaseException]:
    """The error and its causes, outermost first. In a debugger OmegaConf makes an error its own cause."""
    causes: list[BaseException] = []
    while error is not None and error not in causes:
        causes.append(error)
        error = error.__cause__
    return causes


def database_reason(error: BaseException) -> str | None:
    """Why sqlite could not write, if that is where an error comes from. MLflow wraps it twice."""
    cause = next((c for c in causes_of(error) if isinstance(c, sqlite3.OperationalError)), None)
    found = re.search("disk is full|disk I/O error|readonly database|unable to open", str(cause)) if cause else None
    return str(cause) if found else None


@contextmanager
def writing(folder: Path | str) -> Iterator[None]:
    """Around writes below a folder: what the disk refuses becomes a UserError."""
    try:
        yield
    except Exception as error:
        if disk_reason(error) is None:
            raise
        raise disk_error(error, folder) from error


@contextmanager
def writing_database(uri: str | None) -> Iterator[None]:
    """Around what logs to a tracking URI: what sqlite cannot write becomes a UserError."""
    try:
        yield
    except Exception as error:
        reason = database_reason(error)
        if reason is None or isinstance(error, UserError):
            raise
        raise _refused(f"tracking.uri={uri}", reason) from error
