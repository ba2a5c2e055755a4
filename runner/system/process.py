"""The edge of the program: what was the user's doing is told in one message, everything else keeps its traceback."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Any

from runner.system.interrupts import Interrupted

if TYPE_CHECKING:
    from pruning import PruningError

_OPTIONS = {
    "Dense()": "pattern=dense",
    "Locked()": "pattern=locked",
    "Gradual()": "schedule=short",
    "Logits()": "distill=logits",
    "NoDistillation()": "distill=none",
    "GroupLasso()": "regularizer=group_lasso",
    "Regularizer()": "regularizer=none",
}
"""Objects that the engine's messages recommend, as people type them."""


def exit_status(program: Callable[[], Any]) -> int:
    """Run a program and return its exit status: 0, 1 after an error of the user's, 128 + N after signal N."""
    try:
        program()
        return 0
    except Interrupted as interrupt:
        print(interrupt, file=sys.stderr)
        return interrupt.status
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        text = message(error)
        if text is None or os.environ.get("PRUNE_DISTILL_TRACEBACK"):
            raise
        print(f"error: {text}", file=sys.stderr)
        return 1


def message(error: BaseException) -> str | None:
    """The message of an error that the user can mend, or None for a defect of the program."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from pruning import PruningError
    from runner.system.errors import UserError, database_reason, moved_key

    causes: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None:
        causes.append(cause)
        cause = cause.__cause__
    for kind in (UserError, PruningError):  # OmegaConf and Hydra wrap what our dataclasses raise
        found = next((c for c in causes if isinstance(c, kind)), None)
        if found is not None:
            return with_keys(found) if isinstance(found, PruningError) else str(found)
    refused = database_reason(error)
    if refused is not None:
        return f"cannot write to MLflow's database: {refused}; free space where tracking.uri lies, then run again"
    if not isinstance(error, (HydraException, OmegaConfBaseException)):
        return None
    lines: list[str] = []
    for cause in causes:  # Hydra says where, OmegaConf what
        lines += [line for line in str(cause).strip().splitlines() if line.strip() and line not in lines]
    text = "\n".join(line for line in lines if "object_type=" not in line and "reference_type=" not in line)
    return str(moved_key(text) or text)


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
