"""What a run is asked to do: `Experiment`, the object behind the YAML, and `Origin`, what people typed to get it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from omegaconf import MISSING

from pruning import Allocation, Coupled, Criterion, Dense, OneShot, Pattern, Regularizer, Schedule, budgeted
from pruning.criteria import named
from runner.config.distillation import DistillationSettings
from runner.config.recipe import Recipe
from runner.config.training import Training
from runner.data.task import Dataset
from runner.models import Model, StudentLayers
from runner.speed.settings import Benchmark
from runner.system.errors import UserError
from runner.tracking import Tracking

GROUPS: dict[str, type] = {
    "model": Model,
    "dataset": Dataset,
    "pattern": Pattern,
    "criterion": Criterion,
    "allocation": Allocation,
    "schedule": Schedule,
    "regularizer": Regularizer,
    "distill": DistillationSettings,
    "recipe": Recipe,
    "benchmark": Benchmark,
}

PLACES = ("model.path", "model.finetuned", "model.sparse", "distill.teacher", "dataset.path", "dataset.unlabelled",
          "allocation.latency")  # fmt: skip
"""Keys that name a place. A repetition may change them: files that have moved are still the same files."""

MEASURE = "python -m runner.benchmark MODEL_OR_FOLDER --units"
"""The command that measures a table of times for `allocation.latency`."""


@dataclass
class Experiment:
    """One run. The groups first, then the two trainings, then the run's own keys."""

    model: Model = field(default_factory=Model)
    dataset: Dataset = field(default_factory=Dataset)
    pattern: Pattern = MISSING
    criterion: Criterion = MISSING
    allocation: Allocation = MISSING
    schedule: Schedule = MISSING
    regularizer: Regularizer = field(default_factory=Regularizer)
    distill: DistillationSettings = MISSING
    recipe: Recipe = field(default_factory=Recipe)
    benchmark: Benchmark = field(default_factory=Benchmark)
    train: Training = field(default_factory=Training)
    """Pruning while distilling."""
    finetune: Training = field(default_factory=Training)
    """Fine-tuning of the dense model, where `model.finetuned` does not give one."""
    tracking: Tracking = field(default_factory=Tracking)
    prune: bool = True
    """false: only make, score, save and log the dense model."""
    force: bool = False
    """Run again although the same run was finished before."""
    dry_run: bool = False
    """Say what the run would do (layers, units, target, steps, mask updates, memory, time), and train nothing."""
    plugins: list[str] = field(default_factory=list)
    """Modules of your own with criteria, schedules, patterns, distillations or tasks; on the command line only."""
    seed: int = 0
    """Seed of the head's weights, the data order and dropout."""
    output_dir: str = "outputs"
    """Each run makes a folder of its own in here."""
    cache_dir: str = "cache"
    """Dense models, tokenised features, teachers' logits and dense scores, found again by their content."""

    def __post_init__(self) -> None:
        check_seed(self.seed)
        if self.prune and isinstance(self.pattern, Pattern) and isinstance(self.allocation, Allocation):
            self._check_latency()
            self.allocation = budgeted(self.pattern, self.allocation)
        if not (self.finetune.takes_steps or self.model.finetuned):
            raise UserError("finetune.num_train_epochs=0 makes no dense model; name a fine-tuned one: model.finetuned")
        if self.prune and not self.train.takes_steps:
            self._check_untrained()
        if self.prune and self.train.takes_steps and not self.train.optimizer.has_second_moment:
            self._check_second_moment()
        if self.finetune.lr_rewind is not None:
            raise UserError(
                f"finetune.lr_rewind={self.finetune.lr_rewind}: fine-tuning has no mask updates; set train.lr_rewind"
            )

        if self.finetune.hidden_dropout is not None:
            raise UserError(
                f"finetune.hidden_dropout={self.finetune.hidden_dropout}: the fine-tuning has that of the model; set "
                "model.hidden_dropout, or train.hidden_dropout for the pruning alone"
            )
        if self.finetune.evaluate is not None:
            raise UserError(
                f"finetune.evaluate={self.finetune.evaluate.value}: all rows are compared with the dense model, which "
                "no score chooses; set train.evaluate"
            )
        if self.prune and self.train.evaluate is not None and not self.dataset.validation:
            raise UserError(
                f"train.evaluate={self.train.evaluate.value} scores on a part of train: set dataset.validation=0.05"
            )
        if self.dataset.unlabelled:
            self._check_unlabelled(f"dataset.unlabelled={self.dataset.unlabelled}")
        if self.model.frozen and not self.prune:
            raise UserError(
                f"model.frozen={self.model.frozen}: prune=false only fine-tunes the dense model, which trains all "
                "parameters; leave it out"
            )
        if (self.model.layers or self.model.num_layers is not None) and not self.prune:
            raise UserError(
                "model.layers and model.num_layers are of the student, and prune=false makes none; add pattern=dense "
                "for a student with fewer layers that is not pruned, without prune=false"
            )

    def distillation(self, chosen: StudentLayers | None) -> DistillationSettings:
        """`distill`; the layers of a student that has some of the dense model's imitate those that they come from,
        unless another model is the teacher.
        """
        if chosen is None or self.distill.teacher:
            return self.distill
        return self.distill.with_origins(chosen.layers)

    @property
    def keeps_zeros(self) -> bool:
        """Whether the zeros of `model.sparse` stay while more are pruned."""
        prunes = self.pattern.prunes or any(layer.pattern for layer in self.allocation.layers.values())
        return self.prune and bool(self.model.sparse) and prunes

    def _criteria(self) -> list[Criterion]:
        """All criteria that rank weights: that of the group, and those of single layers."""
        own = {layer.criterion for layer in self.allocation.layers.values() if layer.criterion}
        return [self.criterion, *map(named, sorted(own))]

    def _check_second_moment(self) -> None:
        """Refuse a criterion that reads what the optimizer does not have."""
        if not isinstance(self.pattern, Pattern) or not self.pattern.prunes:
            return
        if reading := [type(c).__name__ for c in self._criteria() if c.needs_second_moment]:
            raise UserError(
                f"train.optimizer={self.train.optimizer.value}: {reading[0]} reads the second moment of AdamW, which "
                "it does not have; choose adamw_torch_fused or another criterion"
            )

    def _check_latency(self) -> None:
        """Refuse a budget of time without times."""
        speedup = self.pattern.target_speedup if isinstance(self.pattern, Coupled) else None
        if self.allocation.latency is None and (speedup is not None or self.allocation.cost == "latency"):
            given = f"pattern.target_speedup={speedup:g}" if speedup is not None else "allocation.cost=latency"
            raise UserError(f"{given} needs times of this model: {MEASURE} writes them; set allocation.latency=FILE")

    def _check_untrained(self) -> None:
        """Refuse to prune without training by a criterion that observes training steps, or more than once."""
        if not isinstance(self.pattern, Pattern) or not self.pattern.prunes:
            return
        criteria = self._criteria()
        if observing := [type(c).__name__ for c in criteria if c.needs_gradient or c.needs_second_moment]:
            raise UserError(
                f"train.num_train_epochs=0: {observing[0]} observes training steps, and there are "
                "none; choose criterion=obs, wanda, calibrated_snip, calibrated_fisher, magnitude, or a number above 0"
            )
        if not isinstance(self.schedule, OneShot):
            raise UserError("train.num_train_epochs=0 leaves room for one mask update: add schedule=one_shot")
        if self.train.evaluate is not None:
            raise UserError(
                f"train.evaluate={self.train.evaluate.value} scores while the student trains, and with "
                "train.num_train_epochs=0 it does not; leave it out"
            )

    def _check_unlabelled(self, key: str) -> None:
        """Refuse examples without labels where no teacher says anything about them."""
        if not self.prune:
            raise UserError(f"{key}: prune=false only fine-tunes the dense model, on labels; leave it out")
        if not self.distill.needs_teacher:
            raise UserError(f"{key}: distill=none learns from labels alone; choose distill=logits or leave it out")
        if not self.distill.weight:
            raise UserError(f"{key}: distill.weight=0 learns from labels alone; set it above 0, or leave it out")
        if not self.train.takes_steps:
            raise UserError(f"{key}: train.num_train_epochs=0 trains nothing; leave it out")
        if self.dataset.unlabelled in self.dataset.evaluation_splits:
            raise UserError(f"{key}: a model is not scored on what it is trained on; name another split")

    @property
    def student_train(self) -> Training:
        """The settings of the pruning as they take effect: the control keeps the model's dropout."""
        return replace(self.train, hidden_dropout=None) if isinstance(self.pattern, Dense) else self.train

    @property
    def trains(self) -> bool:
        """Whether anything is trained."""
        return self.prune or not self.model.finetuned

    @property
    def trains_student(self) -> bool:
        """Whether the student takes optimizer steps; if not, it is pruned without training, or there is none."""
        return self.prune and self.train.takes_steps

    def resolved(self) -> Experiment:
        """The experiment with what is left to the machine, the precision, chosen.

        Raises:
            UserError: this machine does not have what is asked for.
        """
        cache = Path(self.cache_dir)
        train = self.train.resolved(cache) if self.prune else self.train
        finetune = self.finetune.resolved(cache) if self.model.finetuned is None else self.finetune
        return replace(self, train=train, finetune=finetune)


@dataclass
class Origin:
    """What people typed to get an experiment, for labels and records."""

    labels: dict[str, str]
    """model, dataset and pattern, as the table names them."""
    choices: dict[str, str]
    """The option chosen in each group."""
    changed: dict[str, str]
    """Every key whose value is not that of its group's option or recipe, with its value."""
    overrides: list[str]
    """The command line."""
    yaml: str
    """The whole configuration, as `runner.config.record` records it."""
    repeats: str | None = None
    """The run that this one reproduces; None: it is a run of its own."""


def check_seed(seed: int) -> None:
    """Refuse a seed that a generator of random numbers does not take."""
    if not 0 <= seed < 2**32:
        raise UserError(f"seed={seed} must be a whole number from 0 to {2**32 - 1}")


def with_subclasses(cls: type) -> Iterator[type]:
    """A class and all classes below it."""
    yield cls
    for sub in cls.__subclasses__():
        yield from with_subclasses(sub)
