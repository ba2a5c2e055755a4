"""The settings of a training, under the names that transformers' TrainingArguments give them."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Any

from runner.config.optimizers import Optimizer
from runner.system.device import Precision, best_precision, why_not
from runner.system.errors import UserError
from runner.system.ranks import world_size

_LATER = ("average_weights", "hidden_dropout", "lr_rewind", "patience")
"""Options that came after the first runs, None where they change nothing."""
_RANGES: tuple[tuple[str, Callable[[float], bool], str], ...] = (
    ("learning_rate per_device_train_batch_size gradient_accumulation_steps logging_steps save_steps save_total_limit",
     lambda value: value > 0, "train or finetune: above 0"),
    ("num_train_epochs", lambda value: value >= 0, "train or finetune: above 0, or 0 for no training"),
    ("max_steps", lambda value: value > 0 or value == -1,
     "train or finetune: above 0, or -1 to go by num_train_epochs, where 0 trains nothing"),
    ("warmup_steps weight_decay adam_epsilon max_grad_norm dataloader_num_workers",
     lambda value: value >= 0, "train or finetune: not negative"),
    ("adam_beta1 adam_beta2", lambda value: 0 <= value < 1, "train or finetune: from 0 to below 1"),
    ("average_weights", lambda value: 0 < value <= 1, "train or finetune: above 0, and 1 at most"),
    ("batch_tokens", lambda value: value >= 1, "train or finetune: at least 1"),
    ("hidden_dropout", lambda value: 0 <= value < 1, "train: from 0 to below 1"),
    ("lr_rewind", lambda value: 0 <= value <= 1, "train: a fraction from 0 to 1"),
    ("patience", lambda value: value >= 1, "train: at least 1"),
)  # fmt: skip
"""Keys, what fits them, and the words for it. None is no value."""


class Sampling(Enum):
    """Order of the training features."""

    random = "random"
    group_by_length = "group_by_length"


class Evaluation(Enum):
    """When a training scores its model on `dataset.validation`."""

    updates = "updates"
    epochs = "epochs"


class SchedulerType(Enum):
    """Courses of the learning rate, after the warm-up."""

    linear = "linear"
    cosine = "cosine"
    constant = "constant"
    constant_with_warmup = "constant_with_warmup"


@dataclass
class Training:
    """One training: `finetune` for the dense model, `train` for pruning while distilling."""

    learning_rate: float = 5e-5
    """The highest learning rate."""
    lr_scheduler_type: SchedulerType = SchedulerType.linear
    """Course of the learning rate after the warm-up: linear, cosine, constant, constant_with_warmup."""
    warmup_steps: float = 0.1
    """Linear warm-up in optimizer steps, or a fraction of the training if below 1."""
    lr_rewind: float | None = None
    """Begin the course of the learning rate anew at each mask update: until the next one it falls from the highest rate
    to this fraction of it, and after the last update to 0 at the end of the training. For linear and cosine. If not
    given: one course over the training."""
    per_device_train_batch_size: int = 16
    """Examples in a batch, in all: under several ranks each takes its share."""
    gradient_accumulation_steps: int = 1
    """Batches in an optimizer step."""
    num_train_epochs: float = 3
    """Passes over the training features. train.num_train_epochs=0 prunes without training."""
    max_steps: int = -1
    """Optimizer steps in all, if above 0: overrides num_train_epochs."""
    optimizer: Optimizer = Optimizer.adamw_torch_fused
    """The optimizer by its name in transformers: adamw_torch_fused, adamw_torch, adafactor (which takes
    train.learning_rate as its step), sgd (without momentum), adagrad, rmsprop; with torch-optimi stable_adamw; with
    bitsandbytes adamw_bnb_8bit, lion_32bit, lion_8bit, ademamix, ademamix_8bit. With each of them pruned weights are
    exactly 0."""
    weight_decay: float = 0.0
    """Weight decay, not for biases and LayerNorm: decoupled from the gradient, but in sgd, adagrad and rmsprop added to
    it."""
    adam_beta1: float = 0.9
    """Decay of the first moment of AdamW, StableAdamW, AdEMAMix and Lion."""
    adam_beta2: float = 0.999
    """Decay of the second moment of AdamW, StableAdamW and AdEMAMix, and of what Lion remembers."""
    adam_epsilon: float = 1e-8
    """Added to the denominator of AdamW, StableAdamW and AdEMAMix."""
    max_grad_norm: float = 0.0
    """Gradients are clipped to this norm; 0 does not clip."""
    hidden_dropout: float | None = None
    """Dropout of hidden states while a student is pruned, instead of model.hidden_dropout, which the fine-tuning has
    too. The control pattern=dense keeps that one: it starts as a copy of its teacher, and without dropout it would have
    nothing to learn."""
    average_weights: float | None = None
    """Save and score an average of the weights after each optimizer step since the last mask update (in a fine-tuning,
    since the first step) instead of the last ones: their plain mean over the first 1 / (1 - average_weights) steps,
    then an exponential average with this decay. Such as 0.999; 1 is the plain mean of all. If not given: none."""
    evaluate: Evaluation | None = None
    """Score the student on dataset.validation after each of the mask updates or epochs, and after the last step; the
    scores are logged. If not given: never."""
    patience: int | None = None
    """End the training when so many scores in a row are not above the best since the last mask update. The table notes
    it. If not given: all steps are taken."""
    best_checkpoint: bool = False
    """Save the weights of the best score since the last mask update instead of the last ones. The table notes it."""
    batch_tokens: int | None = None
    """Instead of a number of examples: tokens in a batch at most, in all, padding included."""
    train_sampling_strategy: Sampling = Sampling.group_by_length
    """group_by_length: batches of like length, which waste little on padding; or random."""
    precision: Precision | None = None
    """float32, tf32, bf16 or fp16 autocast. If not given: bf16 where this machine is quicker in it, fp16 on older GPUs,
    else float32. Scores are always taken in float32."""
    torch_compile: bool = False
    """Compile the model with torch.compile: a minute or more at first, quicker steps on GPUs; no gain seen on CPUs."""
    dataloader_num_workers: int = 0
    """Processes that prepare batches."""
    logging_steps: int | None = None
    """Optimizer steps between two logged losses; a hundredth of the training if not given."""
    save_steps: int = 1000
    """Optimizer steps between two checkpoints."""
    save_total_limit: int = 1
    """Checkpoints to keep."""

    def __post_init__(self) -> None:
        for keys, fits, meant in _RANGES:
            for key in keys.split():
                value = getattr(self, key)
                if value is not None and not fits(value):
                    raise UserError(f"{key}={value} is out of range in {meant}")
        if self.warmup_steps > 1 and not float(self.warmup_steps).is_integer():
            raise UserError(f"warmup_steps={self.warmup_steps}: whole steps, or a fraction of the training below 1")
        if self.lr_rewind is not None and self.lr_scheduler_type.value.startswith("constant"):
            raise UserError(
                f"lr_rewind={self.lr_rewind}: lr_scheduler_type={self.lr_scheduler_type.value} has nothing to rewind; "
                "choose linear or cosine, or leave lr_rewind out"
            )
        if self.chooses and self.evaluate is not Evaluation.epochs:
            key = "patience" if self.patience is not None else "best_checkpoint"
            raise UserError(
                f"{key}={getattr(self, key)} in train compares the scores of several epochs: set train.evaluate=epochs"
            )
        if self.best_checkpoint and self.average_weights is not None:
            raise UserError(
                f"best_checkpoint=True and average_weights={self.average_weights} in train both say which weights are "
                "saved: leave one of them out"
            )

    def resolved(self, cache: Path | None = None) -> "Training":
        """These settings with the precision chosen.

        Args:
            cache: a folder that stores what is measured for the choice.

        Raises:
            UserError: this machine does not have the precision or the optimizer that is asked for, or a batch cannot be
                dealt out among the ranks.
        """
        for key in ("per_device_train_batch_size", "batch_tokens"):
            if (getattr(self, key) or 0) % world_size():
                raise UserError(
                    f"{key}={getattr(self, key)} in train or finetune is the total, and does not divide among "
                    f"{world_size()} ranks: choose a multiple of {world_size()}"
                )
        self.optimizer.check_installed()
        precision = self.precision or best_precision(cache)
        if why := why_not(precision):
            raise UserError(
                f"precision={precision.value} in train or finetune: {why}; leave it out to let it be chosen"
            )
        return replace(self, precision=precision)

    @property
    def chooses(self) -> bool:
        """Whether scores decide when the training ends, or which weights are saved."""
        return self.patience is not None or self.best_checkpoint

    @property
    def takes_steps(self) -> bool:
        """Whether there is any optimizer step."""
        return self.max_steps > 0 or self.num_train_epochs > 0

    def options(self) -> dict[str, Any]:
        """As keyword arguments of TrainingArguments."""
        values = self.plain()
        ours = {*_LATER, "evaluate", "best_checkpoint", "batch_tokens", "precision", "train_sampling_strategy"}
        values = {key: value for key, value in values.items() if key not in ours}
        return (
            values
            | {"optim": values.pop("optimizer")}
            | {"bf16": self.precision is Precision.bf16, "fp16": self.precision is Precision.fp16}
        )

    def plain(self) -> dict[str, Any]:
        """As plain values."""
        return {key: value.value if isinstance(value, Enum) else value for key, value in asdict(self).items()}

    def determinants(self) -> dict[str, Any]:
        """What of it determines the result."""
        without = {"dataloader_num_workers", "logging_steps", "save_steps", "save_total_limit"}
        without |= set() if self.chooses else {"evaluate", "best_checkpoint"}
        without |= {"optimizer"} if self.optimizer is Optimizer.adamw_torch_fused else set()
        values = {key: value for key, value in self.plain().items() if key not in without}
        for later in _LATER:  # so that runs from before this option still have their identity
            if values[later] is None:
                del values[later]
        return values
