"""The dense model: given, or fine-tuned once and found again by the hash of what made it. It is also the teacher."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock

from pruning import NoDistillation
from runner import models
from runner.system import files, ranks
from runner.system.errors import writing

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from runner.config.experiment import Experiment
    from runner.training.loop import Log, TrainingData

log = logging.getLogger(__name__)


def fine_tuned(
    experiment: Experiment,
    base: models.Checkpoint,
    key: str,
    lesson: TrainingData,
    track: Log,
    flush_log: Callable[[], None],
) -> models.Checkpoint:
    """The dense model that these settings make: from the cache, or trained now.

    Several processes may ask at once: one trains, the others wait. The lock is the operating system's, so it does
    not outlive its process.

    Args:
        key: hash of all that determines the dense model.
    """
    folder = Path(experiment.cache_dir) / "dense" / key
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder.with_suffix(".lock"))
    if lock_is_held(lock):
        log.info("waiting for another process that fine-tunes the same dense model")
    with lock:
        if not files.is_intact(folder):
            log.info("fine-tuning the dense model (kept in %s)", folder)
            work = folder.with_name(f"{folder.name}.work")
            model = ranks.on_all_ranks(trained, experiment, base, work, lesson, track=track, flush_log=flush_log)
            save(model, lesson.tokenizer, folder)
            shutil.rmtree(work, ignore_errors=True)
        else:
            log.info("dense model found in %s", folder)
    return models.find(str(folder), "the dense model", experiment.model)


def lock_is_held(lock: FileLock) -> bool:
    """Whether another process has the lock at this moment."""
    try:
        with lock.acquire(blocking=False):
            return False
    except TimeoutError:
        return True


def trained(
    experiment: Experiment,
    base: models.Checkpoint,
    work: Path,
    lesson: TrainingData,
    track: Log | None = None,
    flush_log: Callable[[], None] | None = None,
) -> PreTrainedModel:
    """Fine-tune the dense model, on all ranks; checkpoints go to `work`."""
    from transformers import set_seed

    from runner.training.loop import Supervision, nothing, silent, train

    set_seed(experiment.seed)  # the head is drawn at random
    model = models.load(lesson.task.architecture, base)
    train(
        model,
        lesson,
        experiment.finetune,
        Supervision(NoDistillation()),
        None,
        experiment.seed,
        work,
        "Fine-tuning",
        track or silent,
        flush_log or nothing,
    )
    return model


def save(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    also: Callable[[Path], None] = lambda partial: None,
) -> None:
    """Write a model folder whole or not at all, and seal it.

    Args:
        also: gets the folder before it is renamed, to add to it or to refuse it by raising.
    """
    with writing(folder), files.atomic_folder(folder) as partial:
        model.save_pretrained(partial, safe_serialization=True)
        tokenizer.save_pretrained(partial)
        also(partial)
