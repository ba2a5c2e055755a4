"""The training loop, dense and sparse alike: one `TrainingJob` from its last checkpoint to its end."""

from __future__ import annotations

import time
from dataclasses import asdict, replace
from pathlib import Path

import torch
import transformers
from transformers import ProgressCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from runner.config.training import Training
from runner.system import circumstances, ranks
from runner.system.device import device, matmul_in
from runner.system.errors import disk_error, disk_reason, writing
from runner.system.interrupts import Interrupted, postponed
from runner.tracking.logger import NullLogger, TrainingLogger
from runner.training import checkpoints, projections
from runner.training.average import WeightAverage
from runner.training.callbacks import Epochs, PruningCallback, Resume, ShowProgress, StopWhenAsked
from runner.training.cost import TrainingStats
from runner.training.job import TrainingJob
from runner.training.trainer import DistillTrainer
from runner.training.validation import Validation


def train(job: TrainingJob, logger: TrainingLogger | None = None) -> TrainingStats:
    """Train `job.student` in place, resuming from the last checkpoint in `job.folder`.

    All ranks call it at once, with the same job; `logger` is used on rank 0 only.

    Raises:
        Interrupted: a signal asked the process to end; a checkpoint was saved.
        UserError: the loss is not finite, or the disk is full.
    """
    transformers.utils.logging.disable_progress_bar()  # no bar for each file of a checkpoint
    job = replace(job, settings=job.settings.resolved())
    last = ranks.broadcast(lambda: _begin(job.folder))
    logger = logger or NullLogger()
    logger.begin(0 if last is None else checkpoints.step(last))
    trainer = _trainer(job, logger, last)
    progress = next(c for c in trainer.callback_handler.callbacks if isinstance(c, ShowProgress))
    if ranks.rank():  # else all would drop the same units in their parts of a batch; rank 0 draws as a single process
        torch.manual_seed(job.seed + (ranks.rank() << 32))
    ranks.barrier()  # the training's clock must not run while other ranks load
    begin = time.perf_counter()
    try:
        _run(trainer, last)
        if job.pruner is not None:
            job.pruner.check_reached()
    except Exception as error:
        if disk_reason(error) is None:
            raise
        raise disk_error(error, job.folder) from error
    finally:
        progress.close()
        if job.pruner is not None:
            job.pruner.detach()  # else optimizer and pruner hold each other, and a sweep's next run has less memory
    if trainer.average is not None:
        trainer.average.apply()
    if trainer.validation is not None:
        trainer.validation.apply()
    projections.finish(job.student)
    return _stats(trainer, last, time.perf_counter() - begin)


def _begin(folder: Path) -> Path | None:
    """The checkpoint to resume from; the circumstances of the steps that follow are noted next to it."""
    last = checkpoints.newest(folder)
    with writing(folder):
        circumstances.begin(folder, checkpoints.step(last) if last is not None else 0)
    return last


def _trainer(job: TrainingJob, logger: TrainingLogger, last: Path | None) -> DistillTrainer:
    """The trainer with its callbacks; `last` is the checkpoint to resume from."""
    arguments = _arguments(job.settings, job.seed, job.folder, job.data.length(job.settings).steps)
    for teacher in job.supervision.teachers:
        teacher.to(arguments.device)  # type: ignore[arg-type]  # transformers' decorator hides the signature
        teacher.eval().requires_grad_(False)
    attached = projections.attach(job.student, job.supervision.distillation, job.supervision.teacher)
    trainer = DistillTrainer(job, arguments, attached, logger)
    for default in (ProgressCallback, PrinterCallback):  # ours shows the same, without a line per log
        trainer.remove_callback(default)
    trainer.add_callback(Epochs(trainer.batches))
    trainer.add_callback(ShowProgress(trainer, logger))
    if job.pruner is not None:
        trainer.add_callback(PruningCallback(job.pruner, last))
    if job.settings.average_weights is not None:
        trainer.average = WeightAverage(job, last)  # after the pruner, whose restored state it reads
        trainer.add_callback(trainer.average)
    if job.settings.evaluate is not None:
        trainer.validation = Validation(job, logger, last)
        trainer.add_callback(trainer.validation)
    return trainer


def _run(trainer: DistillTrainer, last: Path | None) -> None:
    """Train until the end or a signal."""
    with matmul_in(trainer.precision), postponed() as asked:
        trainer.add_callback(StopWhenAsked(asked))
        if last is not None:
            trainer.add_callback(Resume(trainer, last))
        trainer.train(resume_from_checkpoint=None if last is None else str(last))
        signal = ranks.all_max(asked() or 0)
    if signal:
        raise Interrupted(
            signal, f"interrupted at step {trainer.state.global_step}; the same command resumes from there"
        )
    ranks.check_same(dict(trainer.job.student.named_parameters()))


def _stats(trainer: DistillTrainer, last: Path | None, seconds: float) -> TrainingStats:
    updating = trainer.job.pruner.update_seconds if trainer.job.pruner is not None else 0.0
    steps = trainer.state.global_step - (checkpoints.step(last) if last is not None else 0)
    tokens, real_tokens = ranks.all_sum([trainer.tokens, int(trainer.real_tokens)])
    scores = [asdict(score) for score in trainer.validation.scores] if trainer.validation is not None else []
    return TrainingStats(steps, tokens, real_tokens, seconds - updating, updating, scores)


def _arguments(training: Training, seed: int, folder: Path, steps: int) -> TrainingArguments:
    options = training.options()
    options["per_device_train_batch_size"] //= ranks.world_size()
    options["logging_steps"] = training.logging_steps or max(1, steps // 100)
    del options["save_total_limit"]  # ours rotates: Trainer would look in the staging folder
    arguments = TrainingArguments(
        output_dir=str(folder),
        seed=seed,
        report_to="none",  # Trainer's own MLflow callback ends our run
        save_strategy="steps",
        remove_unused_columns=False,  # the collator chooses
        use_cpu=device().type == "cpu",
        dataloader_pin_memory=torch.cuda.is_available(),
        accelerator_config={"even_batches": False},  # ours are already dealt out evenly, and differ in size
        ddp_find_unused_parameters=False if ranks.world_size() > 1 else None,
        **options,
    )
    _ = arguments.device  # sets the number of devices
    arguments._n_gpu = min(arguments._n_gpu, 1)  # else several GPUs mean DataParallel and a multiplied batch
    return arguments
