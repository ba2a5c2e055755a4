"""Training, dense and sparse alike: transformers' Trainer with a loss of ours and a callback that owns the pruner."""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from torch.utils.data import DataLoader
from transformers import ProgressCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from pruning import IGNORED, Distillation, Prediction, Pruner, TrainingLength, label_loss, projected
from runner.config.training import Sampling, Training
from runner.data.task import Collate, Dataset
from runner.system import files, ranks
from runner.system.device import Precision, computing, device, matmul_in
from runner.system.errors import UserError, disk_error, disk_reason
from runner.system.interrupts import Interrupted, postponed
from runner.training import checkpoints, projections
from runner.training.batches import Batches
from runner.training.teacher_logits import LOGITS, CachedLogits, WithTeacherLogits, pack, unpack

if TYPE_CHECKING:
    import datasets
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PRUNER_FILE = "pruner.safetensors"
PAD_MULTIPLE = {"cpu": 1, "cuda": 8, "mps": 1}
"""Batches are padded to a multiple of this many tokens: tensor cores want 8."""

METER_FILE = "meter.json"
"""The sum of the losses since one was last logged."""

Log = Callable[[int, Mapping[str, float]], None]
"""Takes an optimizer step and the metrics of that step."""


def nothing() -> None:
    """Where there is no log to flush."""


def silent(step: int, values: Mapping[str, float]) -> None:
    """Where nothing is logged."""


@dataclass
class TrainingData:
    """What is learnt from: the task, its features and how they become batches."""

    task: Dataset
    features: datasets.Dataset
    tokenizer: PreTrainedTokenizerBase
    """The student's."""
    others: tuple[str, ...] | None = None
    """Inputs among the features that a teacher other than the dense model takes; None: there is none."""

    @property
    def inputs(self) -> tuple[str, ...]:
        """What the student takes."""
        return tuple(self.tokenizer.model_input_names)

    @property
    def teacher_inputs(self) -> tuple[str, ...]:
        """What the teacher takes."""
        return self.inputs if self.others is None else self.others

    def batches(self, training: Training, seed: int) -> Batches:
        """The batches of this training.

        Raises:
            UserError: they are too small for the longest feature.
        """
        size = ranks.world_size()
        try:
            return Batches(
                np.asarray(self.features["length"]),
                training.per_device_train_batch_size // size,
                seed,
                training.train_sampling_strategy is Sampling.group_by_length,
                training.batch_tokens // size if training.batch_tokens else None,
                parts=size * training.gradient_accumulation_steps,
                multiple=PAD_MULTIPLE[device().type],
            )
        except ValueError as error:
            over = f" over {size} ranks" if size > 1 else ""
            raise UserError(f"batch_tokens={training.batch_tokens} in train or finetune{over}: {error}") from error

    def length(self, training: Training) -> TrainingLength:
        """How many optimizer steps this training takes, as Trainer counts them."""
        per_epoch = self.batches(training, seed=0).steps
        steps = training.max_steps if training.max_steps > 0 else math.ceil(training.num_train_epochs * per_epoch)
        whole = per_epoch
        if training.batch_tokens is None:  # the published recipes convert epochs to steps with whole batches only
            batch = training.per_device_train_batch_size * training.gradient_accumulation_steps
            whole = max(1, len(self.features) // batch)
        return TrainingLength(steps, whole, training.num_train_epochs if training.max_steps <= 0 else steps / whole)


@dataclass
class Supervision:
    """Who teaches, and how. Without a teacher the labels do."""

    distillation: Distillation
    teacher: PreTrainedModel | None = None
    """Runs beside the student."""
    logits: CachedLogits | None = None
    """Or its logits over the features, computed before."""


@dataclass
class TrainingStats:
    """What a training did since this job began, on all ranks."""

    steps: int = 0
    tokens: int = 0
    """That the student computed, padding included."""
    real_tokens: int = 0
    """The same without padding."""
    seconds: float = 0.0
    """Of the training, without the mask updates."""
    update_seconds: float = 0.0
    """Of the mask updates."""


def collate(
    tokenizer: PreTrainedTokenizerBase, label_names: tuple[str, ...], multiple: int = 1, more: tuple[str, ...] = ()
) -> Collate:
    """Pad the model's inputs to the longest of the batch; take labels and teacher's logits along where rows have them.

    Args:
        multiple: pad to a multiple of this many tokens.
        more: inputs beside those of the tokenizer's own model.
    """
    names = {*tokenizer.model_input_names, *more}

    def batch(rows: list[Mapping[str, Any]]) -> dict[str, Any]:
        inputs = [{name: value for name, value in row.items() if name in names} for row in rows]
        out = dict(tokenizer.pad(inputs, padding=True, pad_to_multiple_of=multiple, return_tensors="pt"))
        out |= {name: _labels([row[name] for row in rows], out["input_ids"]) for name in label_names if name in rows[0]}
        if LOGITS in rows[0]:
            out[LOGITS] = pack(rows)
        return out

    return batch


def _labels(values: list[Any], inputs: torch.Tensor) -> torch.Tensor:
    """[batch], or [batch, tokens] of labels by token, of which padding has none."""
    if not isinstance(values[0], list):
        return torch.tensor(values)
    out = torch.full(inputs.shape, IGNORED)
    for row, labels in zip(out, values, strict=True):
        row[: len(labels)] = torch.tensor(labels)
    return out


class DistillTrainer(Trainer):
    """Trainer whose loss is weight * distillation + label_weight * label loss."""

    # Our loss is a mean over the micro-batch. Without this line Trainer believes that heads which accept any keyword
    # have normalised it over the whole step, and the gradient comes out multiplied by the accumulation steps.
    loss_is_scaled_for_ga = False

    def __init__(
        self,
        *args: Any,
        lesson: TrainingData,
        teaching: Supervision,
        projections: Mapping[int, nn.Module],
        batches: Batches,
        precision: Precision,
        pruner: Pruner | None,
        flush_log: Callable[[], None],
        keep: int,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.task, self.teaching, self.batches, self.precision = lesson.task, teaching, batches, precision
        self.projections = projections
        self.inputs, self.teacher_inputs = lesson.inputs, lesson.teacher_inputs
        self.pruner, self.flush_log, self.keep = pruner, flush_log, keep
        self.staging = Path(str(self.args.output_dir)) / "saving"
        self._saving = False
        self.loss_sum, self.losses = torch.zeros((), dtype=torch.float64, device=self.args.device), 0
        self.tokens = 0
        self.real_tokens = torch.zeros((), dtype=torch.int64, device=self.args.device)

    def get_train_dataloader(self) -> DataLoader:
        assert self.train_dataset is not None
        loader = DataLoader(
            self.train_dataset,  # type: ignore[arg-type]  # a datasets.Dataset is one by its methods
            batch_sampler=self.batches,
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory,
        )
        return self.accelerator.prepare(loader)

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        """Only where gradients are clipped: Trainer would read and rescale all of them at each step, to log a number
        that nobody asked for."""
        return grad_norm

    def compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs=False, num_items_in_batch=None) -> Any:
        how = self.teaching.distillation
        labels = {name: inputs[name] for name in self.task.label_names}
        given = {name: value for name, value in inputs.items() if name in self.inputs}
        self.tokens += given["attention_mask"].numel()
        self.real_tokens += given["attention_mask"].sum()
        outputs = model(**given, **asked_of(how))
        student = self.task.prediction(outputs, given)
        loss = torch.zeros((), device=self.args.device)
        if how.label_weight:  # not the model's own loss, whose softmax has the padding in it
            loss = how.label_weight * label_loss(student, tuple(labels.values()))
        if how.needs_teacher and how.weight:
            teacher = self._taught(student, inputs)
            loss = loss + how.weight * how.loss(projected(student, self.projections), teacher)
        self.loss_sum += loss.detach()
        self.losses += 1
        return (loss, outputs) if return_outputs else loss

    def _taught(self, student: Prediction, inputs: Mapping[str, Any]) -> Prediction:
        """What the teacher says about a batch, from its kept logits if there are any."""
        if LOGITS in inputs:
            logits = unpack(inputs[LOGITS], student.logits[0], student.real)
            return Prediction(logits, student.choices, student.tokens, numbers=student.numbers)
        live = self.teaching.teacher
        assert live is not None
        given = {name: value for name, value in inputs.items() if name in self.teacher_inputs}
        with torch.no_grad(), computing(self.precision):
            outputs = live(**given, **asked_of(self.teaching.distillation))
        return self.task.prediction(outputs, given)

    def mean_loss(self) -> float:
        """The mean since it was last asked for. Trainer's own forgets, on resume, what came before the checkpoint."""
        total, number = self._losses()
        self.loss_sum.zero_()
        self.losses = 0
        return total / max(1, number)

    def _losses(self) -> tuple[float, int]:
        """Sum and number of the losses since the mean was last asked for, of all ranks."""
        count = torch.tensor(float(self.losses), dtype=torch.float64, device=self.loss_sum.device)
        total, number = self.accelerator.reduce(torch.stack((self.loss_sum, count))).tolist()  # type: ignore[union-attr]
        return total, int(number)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """As Trainer does, but beside its place: see `runner.training.checkpoints`."""
        loss_sum, losses = self._losses()
        if not math.isfinite(loss_sum):
            raise diverged(self.state.global_step)  # and the checkpoint before this one stays the newest
        ranks.check_same(dict(model.named_parameters()))
        self.flush_log()  # what was logged before a checkpoint is not logged again after it
        name = f"{checkpoints.PREFIX}{self.state.global_step}"
        if self.args.should_save:
            shutil.rmtree(self.staging, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        self._saving = True
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self._saving = False
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            if self.pruner is not None:
                # Trainer's own way to save such a state is JSON, which masks are not.
                tensors, values = self.pruner.state_dict()
                save_file(tensors, self.staging / name / PRUNER_FILE, values)
            meter = {"loss_sum": loss_sum, "losses": losses}
            (self.staging / name / METER_FILE).write_text(json.dumps(meter), encoding="utf-8")
            folder = Path(str(self.args.output_dir))
            files.publish(self.staging / name, folder / name)
            shutil.rmtree(self.staging, ignore_errors=True)
            checkpoints.rotate(folder / name, self.keep)
        self.accelerator.wait_for_everyone()

    def _get_output_dir(self, trial: Any) -> str:
        return str(self.staging) if self._saving else super()._get_output_dir(trial)

    def restore_meter(self, checkpoint: Path) -> None:
        """Go on with the mean loss where the checkpoint was made. Rank 0 carries what all had summed up."""
        if ranks.rank():
            return
        meter = json.loads((checkpoint / METER_FILE).read_text(encoding="utf-8"))
        self.loss_sum.fill_(meter["loss_sum"])
        self.losses = meter["losses"]


def asked_of(how: Distillation) -> dict[str, bool]:
    """What a distillation asks of both models beside their logits, as arguments of transformers."""
    attention = {"output_attentions": True} if how.needs_attention else {}  # not all families know the argument
    return {"output_hidden_states": how.needs_hidden, **attention}


def diverged(step: int) -> UserError:
    """The loss is not a number any more."""
    return UserError(
        f"the loss is not finite at step {step}: the training diverged. Try a lower train.learning_rate (or "
        "finetune.learning_rate), train.max_grad_norm=1, a longer warm-up (warmup_steps), or precision=float32"
    )


class StopWhenAsked(TrainerCallback):
    """Saves and stops after the step in which a signal came, to whichever rank."""

    def __init__(self, asked: Callable[[], int | None]) -> None:
        self.asked = asked

    def on_step_end(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> Any:
        if ranks.all_max(self.asked() or 0):
            control.should_save = control.should_training_stop = True
        return control


class Epochs(TrainerCallback):
    """Tells the batches which epoch it is. Trainer does so only where nothing has wrapped them, as it does on resume
    under several ranks."""

    def __init__(self, batches: Batches) -> None:
        self.batches = batches

    def on_epoch_begin(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        self.batches.set_epoch(int(state.epoch or 0))


class Resume(TrainerCallback):
    """Goes on with the mean loss of a checkpoint."""

    def __init__(self, trainer: DistillTrainer, checkpoint: Path) -> None:
        self.trainer, self.checkpoint = trainer, checkpoint

    def on_train_begin(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.restore_meter(self.checkpoint)


class PruningCallback(TrainerCallback):
    """Carries the pruner through Trainer's events: restore, attach. The pruning itself is in the optimizer."""

    def __init__(self, pruner: Pruner, resume_from: Path | None) -> None:
        self.pruner, self.resume_from = pruner, resume_from

    def on_train_begin(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        if self.resume_from is not None:
            load_pruner(self.pruner, self.resume_from / PRUNER_FILE)
        optimizer = kwargs["optimizer"]
        # accelerate wraps it, and calls the wrapper's step also when the wrapped one is skipped.
        self.pruner.attach(getattr(optimizer, "optimizer", optimizer))


def load_pruner(pruner: Pruner, file: Path) -> None:
    """Restore a pruner from a checkpoint. Without its masks a resumed run would silently be dense: an error."""
    if not file.is_file():
        raise UserError(
            f"{file} is missing: this checkpoint cannot be resumed; delete {file.parent} to start from the one before"
        )
    with safe_open(file, framework="pt") as stored:
        tensors = {key: stored.get_tensor(key) for key in stored.keys()}  # noqa: SIM118 (no mapping)
        pruner.load_state_dict(tensors, stored.metadata() or {})


class Progress(ProgressCallback):
    """Trainer's bar, with loss and sparsity beside it, and the same numbers for the tracker."""

    def __init__(self, title: str, log: Log, pruner: Pruner | None, mean_loss: Callable[[], float]) -> None:
        super().__init__()
        self.title, self.log, self.pruner, self.mean_loss = title, log, pruner, mean_loss

    def on_train_begin(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        super().on_train_begin(args, state, control, **kwargs)
        if self.training_bar is not None:
            self.training_bar.set_description(self.title)

    def on_log(self, args: TrainingArguments, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if "loss" not in logs:
            return
        loss = self.mean_loss()  # of all ranks, so each must ask
        if not math.isfinite(loss):
            raise diverged(state.global_step)
        if not state.is_world_process_zero:
            return
        shown = {"loss": loss, "learning_rate": logs["learning_rate"]}
        if self.pruner is not None:
            shown["sparsity"] = self.pruner.sparsity
        self.log(state.global_step, shown)
        if self.training_bar is not None:
            numbers = {k: f"{v:.3g}" for k, v in shown.items() if k != "learning_rate"}
            self.training_bar.set_postfix(numbers, refresh=False)  # when it moves: in a file each refresh is a line


def train(
    student: PreTrainedModel,
    lesson: TrainingData,
    training: Training,
    teaching: Supervision,
    pruner: Pruner | None,
    seed: int,
    folder: Path,
    title: str,
    log: Log,
    flush_log: Callable[[], None] = nothing,
) -> TrainingStats:
    """Train `student` in place; checkpoints go to `folder`, from the last of which an interrupted training goes on.

    All ranks call it at once, with the same arguments but for `log` and `flush_log`, which are used on rank 0.

    Raises:
        Interrupted: a signal asked the process to end; a checkpoint was saved.
        UserError: the loss is not finite, or the disk is full.
    """
    transformers.utils.logging.disable_progress_bar()  # one bar is enough: not another for each file of a checkpoint
    training = training.resolved()
    last = ranks.broadcast(lambda: checkpoints.newest(folder))
    batches = lesson.batches(training, seed)
    arguments = _arguments(training, seed, folder, lesson.length(training).steps)
    if teaching.teacher is not None:
        teaching.teacher.to(arguments.device)  # type: ignore[arg-type]  # transformers' decorator hides the signature
        teaching.teacher.eval().requires_grad_(False)
    beside = projections.attach(student, teaching.distillation, teaching.teacher)
    assert training.precision is not None
    trainer = DistillTrainer(
        model=student,
        args=arguments,
        train_dataset=lesson.features
        if teaching.logits is None
        else WithTeacherLogits(lesson.features, teaching.logits),
        data_collator=collate(lesson.tokenizer, lesson.task.label_names, batches.multiple, lesson.teacher_inputs),
        lesson=lesson,
        teaching=teaching,
        projections=beside,
        batches=batches,
        precision=training.precision,
        pruner=pruner,
        flush_log=flush_log,
        keep=training.save_total_limit,
    )
    for default in (ProgressCallback, PrinterCallback):  # ours shows the same, without a line per log
        trainer.remove_callback(default)
    trainer.add_callback(Epochs(batches))
    progress = Progress(title, log, pruner, trainer.mean_loss)
    trainer.add_callback(progress)
    if pruner is not None:
        trainer.add_callback(PruningCallback(pruner, last))
    if ranks.rank():  # else all would drop the same units in their parts of a batch; rank 0 draws as a single process
        torch.manual_seed(seed + (ranks.rank() << 32))
    ranks.barrier()  # the training's clock is not to run while others load
    begin = time.perf_counter()
    try:
        with matmul_in(training.precision), postponed() as asked:
            trainer.add_callback(StopWhenAsked(asked))
            if last is not None:
                trainer.add_callback(Resume(trainer, last))
            trainer.train(resume_from_checkpoint=None if last is None else str(last))
            signal = ranks.all_max(asked() or 0)
        if signal:
            raise Interrupted(signal, f" at step {trainer.state.global_step}; the same command goes on from there")
        ranks.check_same(dict(student.named_parameters()))
        if pruner is not None:
            pruner.check_reached()
    except Exception as error:
        if disk_reason(error) is None:
            raise
        raise disk_error(error, folder) from error
    finally:
        if progress.training_bar is not None:
            progress.training_bar.close()  # else what is said next stands in its line
        if pruner is not None:
            pruner.detach()  # else optimizer and pruner hold each other, and a sweep's next run finds less memory
    projections.finish(student)
    updating = pruner.update_seconds if pruner is not None else 0.0
    done = trainer.state.global_step - (checkpoints.step(last) if last is not None else 0)
    seconds = time.perf_counter() - begin - updating
    tokens, real_tokens = ranks.all_sum([trainer.tokens, int(trainer.real_tokens)])
    return TrainingStats(done, tokens, real_tokens, seconds, updating)


def _arguments(training: Training, seed: int, folder: Path, steps: int) -> TrainingArguments:
    options = training.options()
    options["per_device_train_batch_size"] //= ranks.world_size()
    options["logging_steps"] = training.logging_steps or max(1, steps // 100)
    del options["save_total_limit"]  # ours rotates: Trainer would look where a checkpoint is written, not where it lies
    arguments = TrainingArguments(
        output_dir=str(folder),
        seed=seed,
        report_to="none",  # Trainer's own MLflow callback ends our run
        save_strategy="steps",
        remove_unused_columns=False,  # the collator chooses
        use_cpu=device().type == "cpu",
        dataloader_pin_memory=torch.cuda.is_available(),
        accelerator_config={"even_batches": False},  # ours are dealt out evenly, and differ in size
        ddp_find_unused_parameters=False if ranks.world_size() > 1 else None,
        **options,
    )
    _ = arguments.device  # sets the number of devices
    arguments._n_gpu = min(arguments._n_gpu, 1)  # else several GPUs mean DataParallel and a multiplied batch
    return arguments
