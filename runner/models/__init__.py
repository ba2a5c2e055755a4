"""Models and tokenizers: from a configured path to a transformers model, and which of its weights may be pruned."""

from runner.models.checkpoint import (
    EMBEDDED,
    PRETRAINED,
    Checkpoint,
    Model,
    check_weights,
    find,
    load,
    saved_in,
    skeleton,
    with_hidden_dropout,
)
from runner.models.configuration import quiet_loading, read_config
from runner.models.dropout import attention_dropout, hidden_dropout, max_dropout
from runner.models.frozen import freeze, trained_parameters
from runner.models.layers import StudentLayers, keep_layers, student_layers, student_skeleton
from runner.models.structure import (
    check_positions,
    describe_left_out,
    kind_of,
    left_out,
    positions,
    prunable_parameters,
    shape,
)
from runner.models.tokenizer import load_tokenizer

__all__ = [
    "EMBEDDED", "PRETRAINED", "Checkpoint", "Model", "StudentLayers", "attention_dropout", "check_positions",
    "check_weights", "describe_left_out", "find", "freeze", "hidden_dropout", "keep_layers", "kind_of", "left_out",
    "load", "load_tokenizer", "max_dropout", "positions", "prunable_parameters", "quiet_loading", "read_config",
    "saved_in", "shape", "skeleton", "student_layers", "student_skeleton", "trained_parameters",
    "with_hidden_dropout",
]  # fmt: skip
