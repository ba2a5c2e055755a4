"""The engine in transformers' own Trainer: a callback that prunes the encoder while any Trainer trains it.

    callback = PruningCallback(Block(4, 1, target_sparsity=0.8), Gradual())
    Trainer(model, arguments, train_dataset=dataset, callbacks=[callback]).train()

Checkpoints have the pruner's state, so that a training resumes with its masks.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from torch.optim import Optimizer
from transformers import TrainerCallback, TrainingArguments

from pruning.allocation import Allocation
from pruning.coupled import Coupled, CoupledWeights, FeedForward, Weight, couple
from pruning.criteria import Criterion
from pruning.errors import PruningError, expects
from pruning.matrices import matrix_weights
from pruning.patterns import Pattern
from pruning.plan import Plan
from pruning.pruner import Pruner
from pruning.regularizers import Regularizer
from pruning.schedules import Gradual, Schedule, TrainingLength

FILE = "pruner.safetensors"
"""The pruner's state in the folder of a checkpoint."""

# Parts of the names of encoder modules that are never pruned: poolers, embeddings, and what maps embeddings to the
# encoder's width, which counts as one of them (ELECTRA's embeddings_project, ALBERT's embedding_hidden_mapping_in).
_NOT_PRUNABLE = ("pooler", "embed")


def encoder_weights(model: Any) -> dict[str, nn.Parameter]:
    """The weights of the Linear and Conv layers of a transformers model's encoder, by parameter name: without its head,
    its pooler and its embeddings."""
    inside = f"{model.base_model_prefix}."
    return {
        name: weight
        for name, weight in matrix_weights(model).items()
        if name.startswith(inside) and not any(part in name.removeprefix(inside) for part in _NOT_PRUNABLE)
    }


def attach(pruner: Pruner, optimizer: Any) -> None:
    """Attach a pruner to the torch optimizer, not to accelerate's wrapper, whose step is called even when the inner
    step is skipped."""
    inner = getattr(optimizer, "optimizer", optimizer)
    assert isinstance(inner, Optimizer)
    pruner.attach(inner)


def save(pruner: Pruner, file: Path) -> None:
    """Write the state of a pruner to a file, whole or not at all."""
    tensors, values = pruner.state_dict()
    partial = file.with_name(f"{file.name}.tmp")
    save_file(tensors, partial, values)
    os.replace(partial, file)


def load(pruner: Pruner, file: Path) -> None:
    """Restore the state of a pruner that has the same arguments.

    Raises:
        PruningError: the file is missing, or is that of another pruner.
    """
    if not file.is_file():
        raise PruningError(
            f"{file} is missing: without its masks the resumed training would be dense; resume from a checkpoint that "
            "this callback saved, in output_dir"
        )
    with safe_open(file, framework="pt") as stored:
        tensors = {key: stored.get_tensor(key) for key in stored.keys()}  # noqa: SIM118 (no mapping)
        pruner.load_state_dict(tensors, stored.metadata() or {})


def _coupled(model: Any, weights: Mapping[str, Weight], pattern: Coupled) -> dict[str, Weight]:
    """The weights as units of heads and channels, by the configuration's number of heads."""
    heads = getattr(model.config, "num_attention_heads", None)
    if heads is None and not isinstance(pattern, FeedForward):
        raise PruningError(
            f"the model's configuration has no num_attention_heads, which {pattern} needs: give weights=lambda model: "
            "pruning.couple(model, pruning.matrix_weights(model), pattern, heads)"
        )
    return couple(model, weights, pattern, heads or 1)


class PruningCallback(TrainerCallback):
    """Prunes while a Trainer trains. After every step taken, pruned weights are exactly +0.0.

    Args:
        pattern: which weights live or die together, and how many. Of heads and channels, the matrices that belong
            together are found by their names.
        schedule: when masks are updated; if not given: `Gradual`.
        criterion, allocation, regularizer: see `Pruner` and `Plan`.
        weights: chooses the candidates of a model, by parameter name.

    Raises:
        PruningError: an argument has another type, or the criterion reads calibration data.
    """

    @expects(pattern=Pattern, schedule=Schedule, criterion=Criterion, allocation=Allocation, regularizer=Regularizer)
    def __init__(
        self,
        pattern: Pattern,
        schedule: Schedule | None = None,
        criterion: Criterion | None = None,
        allocation: Allocation | None = None,
        regularizer: Regularizer | None = None,
        weights: Callable[[Any], Mapping[str, nn.Parameter]] = encoder_weights,
    ) -> None:
        if criterion is not None and criterion.needs_calibration:
            raise PruningError(
                f"{type(criterion).__name__} reads calibration data, which a Trainer does not give: prune by "
                "pruning.obs before the training, or give a Pruner its calibration in a loop of your own"
            )
        self.pattern, self.schedule = pattern, schedule if schedule is not None else Gradual()
        self.criterion, self.allocation, self.regularizer = criterion, allocation, regularizer
        self.weights = weights
        self.pruner: Pruner | None = None
        """The pruner of the last training: its `report()` has a line for each layer."""

    def on_train_begin(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        """Plan, restore and attach.

        Raises:
            PruningError: what the plan or the schedule refuses, an option of Trainer that would undo the pruning, or a
                checkpoint without the pruner's state.
        """
        if args.load_best_model_at_end:
            raise PruningError("load_best_model_at_end=True would bring back weights that are not pruned; leave it out")
        if args.fsdp or args.deepspeed:
            raise PruningError("FSDP and DeepSpeed split the weights: no process has whole matrices to prune")
        weights: Mapping[str, Weight] = self.weights(kwargs["model"])
        if not weights:
            raise PruningError("there is no Linear or Conv layer in the encoder: choose others by weights=")
        if isinstance(self.pattern, Coupled) and not any(isinstance(w, CoupledWeights) for w in weights.values()):
            weights = _coupled(kwargs["model"], weights, self.pattern)
        if self.pruner is not None:
            self.pruner.detach()  # of a training that was interrupted
        plan = Plan(weights, self.pattern, self.allocation)
        length = _length(args, state)
        self.pruner = Pruner(plan, self.schedule, length, self.criterion, self.regularizer)
        if state.global_step:
            load(self.pruner, _checkpoint(args, state) / FILE)
        attach(self.pruner, kwargs["optimizer"])

    def on_save(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        """Add the pruner's state to the checkpoint."""
        if args.should_save and self.pruner is not None:
            save(self.pruner, _saved(args, state) / FILE)

    def on_train_end(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        """Release the optimizer. Raises PruningError if the training ended short of a target."""
        if self.pruner is not None:
            self.pruner.detach()
            self.pruner.check_reached()


def _length(args: TrainingArguments, state: Any) -> TrainingLength:
    """The length of the training; without `max_steps` also in epochs."""
    if args.max_steps > 0:
        return TrainingLength(state.max_steps)
    per_epoch = round(state.max_steps / args.num_train_epochs)
    return TrainingLength(state.max_steps, per_epoch, args.num_train_epochs)


def _saved(args: TrainingArguments, state: Any) -> Path:
    return Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"


def _checkpoint(args: TrainingArguments, state: Any) -> Path:
    """The checkpoint that a training resumes from: Trainer gives its callbacks no more than its step."""
    given = args.resume_from_checkpoint
    return Path(given) if isinstance(given, str) and Path(given).is_dir() else _saved(args, state)
