"""A command as a process: its exit status, one message for an error that the user can fix, a traceback for a defect."""

from __future__ import annotations

import logging
import os
import re
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from results.safe_text import printable, readers_may_leave, safe_streams
from runner.system.interrupts import SIGNALS, Interrupted, raise_on_signals

if TYPE_CHECKING:
    from pruning import PruningError

LOG = "run.log"
"""File of a run's log in its folder."""
RESUMES = "interrupted; the same command resumes where this one stopped"
"""The message after a signal, of a run and of a sweep."""
ONCE = {"once": True}
"""`extra` of a log line that the jobs of a sweep share: stderr shows it for the first of them, run.log for each."""
SWEEP_FOLDER = "PRUNE_DISTILL_SWEEP"
"""Environment variable: the folder of the sweep that a process works for."""

_OPTIONS = {
    "Dense()": "pattern=dense",
    "Locked()": "pattern=locked",
    "Gradual()": "schedule=short",
    "Logits()": "distill=logits",
    "NoDistillation()": "distill=none",
    "GroupLasso()": "regularizer=group_lasso",
    "Regularizer()": "regularizer=none",
}
"""Objects that the engine's messages recommend, and the command-line options for them."""


def exit_status(program: Callable[[], Any], interrupted: str = "interrupted") -> int:
    """Run a program and return its exit status: 0, 1 after an error that the user can fix, 128 + N after signal N.
    Nothing that it prints or logs shows a credential, or sends control characters to the terminal.

    Args:
        interrupted: the message after a signal, unless the program has a better one.
    """
    _log_safely()
    with safe_streams():
        try:
            program()
            return 0
        except Interrupted as interrupt:
            _after_ctrl_c(interrupt.saved or interrupted)
            return interrupt.status
        except KeyboardInterrupt:
            _after_ctrl_c(interrupted)
            return 130
        except Exception as error:
            text = message(error)
            if text is None or os.environ.get("PRUNE_DISTILL_TRACEBACK"):
                _show_traceback_safely()
                raise
            print(f"error: {printable(text)}", file=sys.stderr)
            return 1


def _after_ctrl_c(text: str) -> None:
    """Show a message on a line of its own: a terminal has written ^C."""
    print(f"{chr(10) if sys.stderr.isatty() else ''}{text}", file=sys.stderr)


def _show_traceback_safely() -> None:
    """Let the traceback with which this process is about to end pass `printable`."""
    show = sys.excepthook

    def safe(*error: Any) -> None:
        with safe_streams(bars=False):
            show(*error)

    sys.excepthook = safe


def _log_safely() -> None:
    """Let the text and traceback of each log record, of libraries too, pass `printable`."""
    make = logging.getLogRecordFactory()
    if getattr(make, "safe", False):
        return

    def safe(*arguments: Any, **options: Any) -> logging.LogRecord:
        record = make(*arguments, **options)
        with suppress(TypeError, ValueError, KeyError):  # arguments that do not fit the format: logging reports them
            record.msg, record.args = printable(record.getMessage()), None
        if record.exc_info and record.exc_info[0] is not None:
            record.exc_text = printable("".join(traceback.format_exception(*record.exc_info)).rstrip())
        return record

    safe.safe = True  # type: ignore[attr-defined]
    logging.setLogRecordFactory(safe)


def message(error: BaseException) -> str | None:
    """The message of an error that the user can fix, or None for a defect of the program."""
    from pruning import PruningError
    from runner.system.errors import UserError, causes_of, database_reason

    causes = causes_of(error)
    for kind in (UserError, PruningError):  # OmegaConf and Hydra wrap what our dataclasses raise
        known = next((c for c in causes if isinstance(c, kind)), None)
        if known is not None:
            return with_keys(known) if isinstance(known, PruningError) else str(known)
    refused = database_reason(error)
    if refused is not None:
        return f"cannot write to MLflow's database: {refused}; free space on the disk of tracking.uri, then run again"
    return None


def with_keys(error: PruningError) -> str:
    """The engine's message with configuration keys for its arguments: `cooldown=` becomes `schedule.cooldown=`."""
    from pruning import Allocation, Criterion, Distillation, Pattern, Regularizer, Schedule

    text = re.sub(r"\b\w+\(\)", lambda call: _OPTIONS.get(call[0], call[0]), str(error))
    groups = {"pattern": Pattern, "criterion": Criterion, "allocation": Allocation, "schedule": Schedule,
              "regularizer": Regularizer, "distill": Distillation}  # fmt: skip
    group = next((name for name, base in groups.items() if isinstance(error.owner, base)), None)
    if group is None or not is_dataclass(error.owner):
        return text
    names = "|".join(field.name for field in fields(error.owner))
    return re.sub(rf"(?<![\w.])({names})(?=[=\[])", rf"{group}.\1", text)


def command(main: Callable[[list[str]], Any]) -> None:
    """The last line of a command's module: run `main` on the command line, and exit with its status, an int if it
    returns one."""
    sys.exit(status_of(main))


def status_of(main: Callable[[list[str]], Any], interrupted: str = "interrupted") -> int:
    """Run `main` on the command line; its exit status. It is 0 if the reader of stdout has left.

    Args:
        interrupted: see `exit_status`.
    """
    status: list[Any] = [0]
    with readers_may_leave():
        failed = exit_status(lambda: status.append(_unless_left(main)), interrupted)
        return failed or (status[-1] if isinstance(status[-1], int) else 0)
    return 0


def _unless_left(main: Callable[[list[str]], Any]) -> Any:
    with readers_may_leave():  # within `exit_status`, which takes a closed pipe for a defect
        return main(sys.argv[1:])


def set_up_process() -> None:
    """Show our own log lines on stderr, and silence the libraries."""
    from runner.system import ranks
    from runner.system.device import keep_freed_memory

    _log_safely()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # tokenizers warn when a process forks after use
    keep_freed_memory()
    if ranks.rank() == 0:  # the others end when it does
        raise_on_signals()
    root = logging.getLogger()
    if not any(getattr(handler, "ours", False) for handler in root.handlers):
        handler = logging.StreamHandler()
        handler.ours = True  # type: ignore[attr-defined]
        handler.setFormatter(logging.Formatter("%(message)s"))
        handler.addFilter(_new)
        root.addHandler(handler)
    root.setLevel(logging.WARNING)
    for ours in _OURS:
        logging.getLogger(ours).setLevel(logging.INFO)
    for library in _LOUD:
        logging.getLogger(library).propagate = False
    warnings.filterwarnings("ignore", category=FutureWarning)


@contextmanager
def set_up_for_a_while() -> Iterator[None]:
    """Let `set_up_process` act in here only: afterwards logging, warnings and signals are as they were. Log lines go to
    the handlers that the process has, or to stderr if it has none."""
    import signal
    import threading

    from transformers.utils import logging as transformers_logging

    main = threading.current_thread() is threading.main_thread()
    signals = {number: signal.getsignal(number) for number in SIGNALS} if main else {}
    root, make = logging.getLogger(), logging.getLogRecordFactory()
    bars = transformers_logging.is_progress_bar_enabled()
    loggers = [root, *map(logging.getLogger, (*_OURS, *_LOUD))]
    before = [(logger, logger.level, logger.propagate) for logger in loggers]
    handlers = list(root.handlers)
    if handlers:
        silent = logging.NullHandler()
        silent.ours = True  # type: ignore[attr-defined]  # stands for the one that set_up_process would add
        root.addHandler(silent)
    _shown.clear()
    try:
        with warnings.catch_warnings():
            yield
    finally:
        for handler in [handler for handler in root.handlers if handler not in handlers]:
            root.removeHandler(handler)
        for logger, level, propagate in before:
            logger.setLevel(level)
            logger.propagate = propagate
        logging.setLogRecordFactory(make)
        if bars:
            transformers_logging.enable_progress_bar()
        for number, handler in signals.items():
            signal.signal(number, handler)


_OURS = ("runner", "pruning")
"""Loggers whose lines are shown."""
_LOUD = ("huggingface_hub", "datasets")
"""Loggers of libraries with handlers of their own."""
_shown: set[str] = set()
"""The log lines with ONCE that stderr has shown."""


def _new(record: logging.LogRecord) -> bool:
    """Whether stderr shows a log line: one with ONCE only the first time."""
    text = record.getMessage()
    if not getattr(record, "once", False):
        return True
    if text in _shown:
        return False
    _shown.add(text)
    return True


@contextmanager
def log_to_file(folder: Path) -> Iterator[None]:
    """Copy the log into the file `LOG` of a run's folder."""
    handler = logging.FileHandler(folder / LOG, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    handler.handleError = lambda record: (
        None
    )  # a full disk: the line is on stderr, and a traceback for each would hide it
    logging.getLogger().addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(handler)
        handler.close()
