"""transformers' Trainer with our loss (distillation and labels), our batches and atomic checkpoints."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments

from pruning import Distillation, Prediction, averaged, label_loss, projected
from pruning.transformers import FILE as PRUNER_FILE
from pruning.transformers import save
from runner.system import files, ranks
from runner.system.device import computing
from runner.system.errors import UserError
from runner.tracking.logger import TrainingLogger
from runner.training import checkpoints
from runner.training.average import WeightAverage
from runner.training.job import TrainingJob
from runner.training.rewind import rewound
from runner.training.teacher_logits import LOGITS, WithTeacherLogits, unpack
from runner.training.training_data import LABELLED, collate
from runner.training.validation import Validation

METER_FILE = "meter.json"
"""The sum of the losses since one was last logged."""


class DistillTrainer(Trainer):
    """Trainer whose loss is weight * distillation + label_weight * label loss."""

    # Our loss is a mean over the micro-batch. Without this line Trainer believes that heads which accept any keyword
    # have normalised it over the whole step, and the gradient comes out multiplied by the accumulation steps.
    loss_is_scaled_for_ga = False

    def __init__(
        self,
        job: TrainingJob,
        arguments: TrainingArguments,
        projections: Mapping[int, nn.Module],
        logger: TrainingLogger,
    ) -> None:
        """
        Args:
            job: its settings have a precision.
            projections: by layer of the student, what takes its hidden states to the teacher's width.
            logger: flushed before each checkpoint.
        """
        data, logits = job.data, job.supervision.logits
        self.batches = data.batches(job.settings, job.seed)
        super().__init__(
            model=job.student,
            args=arguments,
            train_dataset=data.features if logits is None else WithTeacherLogits(data.features, logits),  # type: ignore[arg-type]
            data_collator=collate(
                data.tokenizer, data.task.label_names, self.batches.multiple, chain.from_iterable(data.teacher_inputs)
            ),
        )
        self.job, self.projections, self.logger = job, projections, logger
        assert job.settings.precision is not None
        self.precision = job.settings.precision
        self.staging = job.folder / "saving"
        self.average: WeightAverage | None = None
        self.validation: Validation | None = None
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

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """Trainer's scheduler, or one that begins anew at each mask update."""
        settings, pruner = self.job.settings, self.job.pruner
        if settings.lr_rewind is None or pruner is None:
            return super().create_scheduler(num_training_steps, optimizer)
        warmup = self.args.get_warmup_steps(num_training_steps)
        rate = rewound(settings.lr_scheduler_type, settings.lr_rewind, warmup, pruner.updates, num_training_steps)
        self.lr_scheduler = LambdaLR(optimizer or self.optimizer, rate)  # type: ignore[arg-type]  # no DummyOptim here
        return self.lr_scheduler

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        """Return the norm only where gradients are clipped: Trainer would compute it at each step just to log it."""
        return grad_norm

    def compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs=False, num_items_in_batch=None) -> Any:
        task, how = self.job.data.task, self.job.supervision.distillation
        labels = {name: inputs[name] for name in task.label_names}
        given = {name: value for name, value in inputs.items() if name in self.job.data.inputs}
        self.tokens += given["attention_mask"].numel()
        self.real_tokens += given["attention_mask"].sum()
        outputs = model(**given, **model_options(how))
        student = task.prediction(outputs, given)
        loss = torch.zeros((), device=self.args.device)
        if how.label_weight:  # not the model's own loss: its softmax includes padding positions
            loss = how.label_weight * label_loss(student, tuple(labels.values()), inputs.get(LABELLED))
        if how.needs_teacher and how.weight:
            teacher = self._teacher(student, inputs)
            loss = loss + how.weight * how.loss(projected(student, self.projections), teacher)
        self.loss_sum += loss.detach()
        self.losses += 1
        return (loss, outputs) if return_outputs else loss

    def _teacher(self, student: Prediction, inputs: Mapping[str, Any]) -> Prediction:
        """The teachers' mean prediction for a batch, from their cached logits if there are any."""
        if LOGITS in inputs:
            heads, each = unpack(inputs[LOGITS], student.logits[0], student.real), len(student.logits)
            logits = [heads[i : i + each] for i in range(0, len(heads), each)]
            predictions = [Prediction(z, student.choices, student.tokens, numbers=student.numbers) for z in logits]
        else:
            predictions = list(self._live(inputs))
        return averaged(predictions, getattr(self.job.supervision.distillation, "temperature", 1.0))

    def _live(self, inputs: Mapping[str, Any]) -> Iterator[Prediction]:
        """The prediction of each live teacher; only that of the first has hidden states and attention weights."""
        data, supervision = self.job.data, self.job.supervision
        options = model_options(supervision.distillation)
        for teacher, names in zip(supervision.teachers, data.teacher_inputs, strict=True):
            given = {name: value for name, value in inputs.items() if name in names}
            with torch.no_grad(), computing(self.precision):
                outputs = teacher(**given, **options)
            yield data.task.prediction(outputs, given)
            options = {}

    def mean_loss(self) -> float:
        """Mean loss since the last call. Trainer's own mean forgets, on resume, the steps before the checkpoint."""
        total, number = self._losses()
        self.loss_sum.zero_()
        self.losses = 0
        return total / max(1, number)

    def _losses(self) -> tuple[float, int]:
        """Sum and number of the losses on all ranks since the last call of `mean_loss`."""
        count = torch.tensor(float(self.losses), dtype=torch.float64, device=self.loss_sum.device)
        total, number = self.accelerator.reduce(torch.stack((self.loss_sum, count))).tolist()  # type: ignore[union-attr]
        return total, int(number)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Save as Trainer does, into a staging folder that is then published whole."""
        loss_sum, losses = self._losses()
        if not math.isfinite(loss_sum):
            raise diverged(self.state.global_step)  # and the checkpoint before this one stays the newest
        ranks.check_same(dict(model.named_parameters()))
        self.logger.flush()  # a resumed run does not log again what was logged before the checkpoint
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
            if self.job.pruner is not None:
                # Trainer saves such states as JSON, which cannot hold masks.
                save(self.job.pruner, self.staging / name / PRUNER_FILE)
            if self.average is not None:
                self.average.save(self.staging / name)
            if self.validation is not None:
                self.validation.save(self.staging / name)
            meter = {"loss_sum": loss_sum, "losses": losses}
            (self.staging / name / METER_FILE).write_text(json.dumps(meter), encoding="utf-8")
            files.publish(self.staging / name, self.job.folder / name)
            shutil.rmtree(self.staging, ignore_errors=True)
            checkpoints.rotate(self.job.folder / name, self.job.settings.save_total_limit)
        self.accelerator.wait_for_everyone()

    def _get_output_dir(self, trial: Any) -> str:
        return str(self.staging) if self._saving else super()._get_output_dir(trial)

    def restore_meter(self, checkpoint: Path) -> None:
        """Restore the mean loss from a checkpoint. Rank 0 carries the sum of all ranks."""
        if ranks.rank():
            return
        meter = json.loads((checkpoint / METER_FILE).read_text(encoding="utf-8"))
        self.loss_sum.fill_(meter["loss_sum"])
        self.losses = meter["losses"]


def model_options(how: Distillation) -> dict[str, bool]:
    """Arguments of a transformers model for the outputs besides logits that a distillation reads."""
    attention = {"output_attentions": True} if how.needs_attention else {}  # not all families know the argument
    return {"output_hidden_states": how.needs_hidden, **attention}


def diverged(step: int) -> UserError:
    """The error for a loss that is not finite."""
    return UserError(
        f"the loss is not finite at step {step}: the training diverged. Try a lower train.learning_rate (or "
        "finetune.learning_rate), train.max_grad_norm=1, a longer warm-up (warmup_steps), or precision=float32"
    )
