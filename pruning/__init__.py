"""A pruning engine in pure torch, for any training loop; README.md in this folder shows it whole.

    plan = Plan(matrix_weights(model), Block(4, 1, target_sparsity=0.8))
    pruner = Pruner(plan, Gradual(), TrainingLength(steps=1000))
    pruner.attach(optimizer)
    ...                      # train as always: the optimizer's step observes, prunes and keeps pruned weights at zero
    pruner.check_reached()

Nothing here imports anything but torch and the standard library, but for `pruning.runtime`, which runs pruned models,
and `pruning.transformers`, a callback of transformers' Trainer.
"""

from pruning.allocation import Allocation, Global, Uniform
from pruning.blocks import Block
from pruning.coupled import Coupled, CoupledWeights, FeedForward, Heads, Structured, Weight, couple, parts_of
from pruning.criteria import (
    Criterion,
    DiagonalFisher,
    Gradient,
    Magnitude,
    Movement,
    Platon,
    Random,
    Snip,
    SnipMomentum,
)
from pruning.distillation import (
    Distillation,
    EncoderShape,
    Logits,
    NoDistillation,
    Projector,
    SimKD,
    averaged,
    projected,
)
from pruning.errors import PruningError
from pruning.hidden_states import HiddenStates, LogitsHidden
from pruning.latency import LatencySettings, LatencyTable, TimePrediction
from pruning.matrices import as_matrix, matrix_weights, other_matrices
from pruning.nofm import NofM
from pruning.overrides import LayerOverride
from pruning.patterns import Dense, Locked, Pattern, parse
from pruning.plan import Plan, budgeted, misfit
from pruning.prediction import IGNORED, Prediction, label_loss, sampled_loss
from pruning.pruner import Pruner
from pruning.regularizers import GroupLasso, Regularizer
from pruning.report import LayerReport, MaskUpdate, predict
from pruning.schedules import Gradual, OneShot, Schedule, TrainingLength
from pruning.second_order import OBS, Calibrated, CalibratedFisher, CalibratedSnip, Calibration, Wanda
from pruning.second_order.one_shot import obs, obs_each
from pruning.second_order.sensitivity import sensitivity
from pruning.zeros import check_zeros

__all__ = [
    "IGNORED",
    "OBS",
    "Allocation",
    "Block",
    "Calibrated",
    "CalibratedFisher",
    "CalibratedSnip",
    "Calibration",
    "Coupled",
    "CoupledWeights",
    "Criterion",
    "Dense",
    "DiagonalFisher",
    "Distillation",
    "EncoderShape",
    "FeedForward",
    "Global",
    "Gradient",
    "Gradual",
    "GroupLasso",
    "Heads",
    "HiddenStates",
    "LatencySettings",
    "LatencyTable",
    "LayerOverride",
    "LayerReport",
    "Locked",
    "Logits",
    "LogitsHidden",
    "Magnitude",
    "MaskUpdate",
    "Movement",
    "NoDistillation",
    "NofM",
    "OneShot",
    "Pattern",
    "Plan",
    "Platon",
    "Prediction",
    "Projector",
    "Pruner",
    "PruningError",
    "Random",
    "Regularizer",
    "Schedule",
    "SimKD",
    "Snip",
    "SnipMomentum",
    "Structured",
    "TimePrediction",
    "TrainingLength",
    "Uniform",
    "Wanda",
    "Weight",
    "as_matrix",
    "averaged",
    "budgeted",
    "check_zeros",
    "couple",
    "label_loss",
    "matrix_weights",
    "misfit",
    "obs",
    "obs_each",
    "other_matrices",
    "parse",
    "parts_of",
    "predict",
    "projected",
    "sampled_loss",
    "sensitivity",
]
