"""A student that starts from some of the dense model's layers: `model.num_layers` and `model.layers`."""

from __future__ import annotations

import copy
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from runner.models.checkpoint import Checkpoint, Model, skeleton
from runner.system.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from transformers import PretrainedConfig, PreTrainedModel

log = logging.getLogger(__name__)

_WINDOWS = "attention_window"  # Longformer's, one for each layer


@dataclass
class StudentLayers:
    """Layers of the dense model that the student starts from."""

    layers: list[int]
    """Counted from 0, ascending; not all."""
    of: int
    """Layers of the dense model."""

    def __str__(self) -> str:
        return f"{len(self.layers)} of {self.of} layers ({', '.join(map(str, self.layers))})"


def evenly(number: int, of: int) -> list[int]:
    """The first and the last layer and others evenly between them: the nearest to i * (of - 1) / (number - 1), or the
    lower of two that are as near. Of 12 layers 6 are 0, 2, 4, 7, 9, 11: those from which DistilBERT starts (Sanh et
    al. 2019, arXiv 1910.01108, and its script extract_distilbert.py). One layer is the first.
    """
    steps = max(1, number - 1)
    return [(2 * i * (of - 1) + steps - 1) // (2 * steps) for i in range(number)]


def student_layers(model: Model, dense: Checkpoint) -> StudentLayers | None:
    """The layers that `model` asks for; None: all.

    Raises:
        UserError: the dense model does not have them, or its configuration names no number of layers.
    """
    if model.num_layers is None and not model.layers:
        return None
    asked = f"model.layers={model.layers}" if model.layers else f"model.num_layers={model.num_layers}"
    of = getattr(dense.config, "num_hidden_layers", None)
    if not isinstance(of, int):
        raise UserError(
            f"{asked}: the configuration of {dense.path} ({dense.config.model_type}) has no number of layers"
        )
    if model.num_layers is not None and model.num_layers > of:
        raise UserError(f"{asked}: {dense.path} ({dense.key}) has {of} layers; choose a number below")
    layers = list(model.layers) or evenly(model.num_layers or of, of)
    if layers[-1] >= of:
        raise UserError(f"{asked}: {dense.path} ({dense.key}) has no layer {layers[-1]}: it has 0 to {of - 1}")
    if len(layers) == of:
        log.info("%s: these are all layers of %s", asked, dense.path)
        return None
    return StudentLayers(layers, of)


def student_skeleton(architecture: str, config: PretrainedConfig, chosen: StudentLayers | None) -> PreTrainedModel:
    """As `skeleton`, of a student that has some of the layers; of one with that few layers already, the whole.

    Raises:
        UserError: the layers cannot be taken apart, or one of them cannot stand in its new place.
    """
    whole = skeleton(architecture, config)
    if chosen is None or config.num_hidden_layers != chosen.of:
        return whole
    student = skeleton(architecture, _with_layers(config, chosen))
    origins(student, whole, chosen)
    return student


@torch.no_grad()
def keep_layers(net: PreTrainedModel, chosen: StudentLayers | None) -> PreTrainedModel:
    """A copy of a network with some of its layers; one with that few layers already is returned as it is.

    Raises:
        UserError: as `student_skeleton`.
    """
    if chosen is None or net.config.num_hidden_layers != chosen.of:
        return net
    student = type(net)(_with_layers(net.config, chosen))
    tensors = net.state_dict()
    student.load_state_dict({name: tensors[origin] for name, origin in origins(student, net, chosen).items()})
    return student.train(net.training)


def origins(student: PreTrainedModel, whole: PreTrainedModel, chosen: StudentLayers) -> dict[str, str]:
    """Name of each tensor of the student -> name of the tensor in the whole network.

    Args:
        student, whole: with or without weights.

    Raises:
        UserError: the layers share their weights, or a layer is of another kind than the one whose place it takes.
    """
    kind, mine, theirs = whole.config.model_type, student.state_dict(), whole.state_dict()
    stacks = _stacks(student, whole, chosen)
    if not stacks:
        why = "share their weights" if mine.keys() == theirs.keys() else "are in no list of layers"
        raise UserError(f"model.layers or model.num_layers: the layers of {kind} {why}, so none can be left out")
    mapped = {name: _origin(name, stacks, chosen) for name in mine}
    left = [layer for layer in range(chosen.of) if layer not in chosen.layers]
    gone = tuple(f"{stack}{layer}." for stack in stacks for layer in left)
    expected = {name: value.shape for name, value in theirs.items() if not name.startswith(gone)}
    arriving = {mapped[name]: value.shape for name, value in mine.items()}
    differing = sorted(n for n in expected.keys() | arriving.keys() if expected.get(n) != arriving.get(n))
    if differing:
        raise UserError(
            f"model.layers={chosen.layers}: {differing[0]} of {kind} has no place in the student: its layers are not "
            "alike, and this one cannot stand there; let the list begin with 0"
        )
    return mapped


def _with_layers(config: PretrainedConfig, chosen: StudentLayers) -> PretrainedConfig:
    """The configuration of the student: the number of layers by the family's name for it, and settings by layer."""
    small = copy.deepcopy(config)
    if getattr(config, "pruned_heads", None):
        raise UserError(f"model.layers={chosen.layers}: {config.name_or_path} has pruned_heads by layer; leave it out")
    try:
        small.num_hidden_layers = len(chosen.layers)
    except NotImplementedError as error:  # Funnel's layers are in blocks
        raise UserError(
            f"model.layers={chosen.layers}: the configuration of {config.model_type} has no single number of layers"
        ) from error
    for name, value in _by_layer(config.to_dict(), chosen.of).items():
        setattr(small, name, [value[layer] for layer in chosen.layers])
    return small


def _by_layer(values: Mapping[str, object], layers: int) -> dict[str, Sequence]:
    """Settings with a value for each layer, such as ModernBERT's layer_types (full or sliding attention)."""
    return {
        name: value
        for name, value in values.items()
        if isinstance(value, (list, tuple)) and len(value) == layers and ("layer" in name or name == _WINDOWS)
    }


def _stacks(student: PreTrainedModel, whole: PreTrainedModel, chosen: StudentLayers) -> list[str]:
    """Beginnings of the names of what each layer has one of. XLM has several such lists; MobileBERT's layers have
    lists of their own.
    """
    mine = dict(student.named_modules())
    lists = {name: module for name, module in whole.named_modules() if isinstance(module, nn.ModuleList)}
    sizes = {name: (len(module), len(mine.get(name, ()))) for name, module in lists.items()}  # type: ignore[arg-type]
    return [f"{name}." for name, size in sizes.items() if size == (chosen.of, len(chosen.layers))]


def _origin(name: str, stacks: Sequence[str], chosen: StudentLayers) -> str:
    for stack in stacks:
        if name.startswith(stack):
            number, dot, rest = name.removeprefix(stack).partition(".")
            return f"{stack}{chosen.layers[int(number)]}{dot}{rest}"
    return name
