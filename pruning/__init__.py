"""A pruning engine in pure torch, for any training loop.

    pruner = Pruner(prunable_parameters(model), Block(4, 1, target_sparsity=0.8), SnipMomentum(), Global(), updates)
    pruner.attach(optimizer)
    ...                      # train as always: the optimizer's step observes, prunes and keeps pruned weights at zero
    pruner.check_reached()

Nothing here imports anything but torch and the standard library.
"""

from pruning.allocation import Allocation, Global, Uniform
from pruning.criteria import Criterion, Magnitude, SnipMomentum
from pruning.distillation import Distillation, Logits, NoDistillation, Prediction, SimKD, label_loss
from pruning.errors import PruningError
from pruning.patterns import Block, Dense, NofM, Pattern
from pruning.pruner import LayerReport, Pruner
from pruning.schedules import Schedule, TrainingLength

__all__ = [
    "Allocation",
    "Block",
    "Criterion",
    "Dense",
    "Distillation",
    "Global",
    "LayerReport",
    "Logits",
    "Magnitude",
    "NoDistillation",
    "NofM",
    "Pattern",
    "Prediction",
    "Pruner",
    "PruningError",
    "Schedule",
    "SimKD",
    "SnipMomentum",
    "TrainingLength",
    "Uniform",
    "label_loss",
]
