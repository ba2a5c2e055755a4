"""Experiment tracking with MLflow: no other package of the runner imports it."""

from runner.tracking.curve import NAME as STEPS
from runner.tracking.logged_runs import add, is_finished, tags_of
from runner.tracking.logger import NullLogger, TrainingLogger
from runner.tracking.store import Logging, Tracking, Unreachable, check, connect, with_retries
from runner.tracking.tracker import PARENT_VARIABLE, Tracker, failures, start, sweep
from runner.tracking.upload import uploaded

__all__ = [
    "PARENT_VARIABLE",
    "STEPS",
    "Logging",
    "NullLogger",
    "Tracker",
    "Tracking",
    "TrainingLogger",
    "Unreachable",
    "add",
    "check",
    "connect",
    "failures",
    "is_finished",
    "start",
    "sweep",
    "tags_of",
    "uploaded",
    "with_retries",
]
