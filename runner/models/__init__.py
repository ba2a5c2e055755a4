"""Models and tokenizers: from a configured path to a transformers model, and which of its weights may be pruned."""

from __future__ import annotations

import fnmatch
import hashlib
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import torch
from omegaconf import MISSING
from torch import nn

from pruning import EncoderShape, matrix_weights
from runner.models import heads
from runner.system.errors import UserError
from runner.system.hub import explain

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

EMBEDDED = "embedded:"
PRETRAINED = "model.path"
"""The key that names a checkpoint without a head for the task."""
_WEIGHT_FILES = ("*.safetensors", "*.safetensors.index.json", "pytorch_model*.bin", "pytorch_model.bin.index.json")
_TOKENIZER_FILES = (
    "tokenizer*.json",
    "vocab.*",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "*.model",
)
# What is in the names of modules of the encoder that are never pruned: poolers, embeddings, and what maps embeddings to
# the encoder's width, which counts as one of them (ELECTRA's embeddings_project, ALBERT's embedding_hidden_mapping_in).
_NOT_PRUNABLE = ("pooler", "embed")
# The configuration keys of dropout: BERT and its kin, then Funnel, DistilBERT and ModernBERT, which has two.
_HIDDEN_DROPOUT = ("hidden_dropout_prob", "hidden_dropout", "dropout", "mlp_dropout", "embedding_dropout")
_ATTENTION_DROPOUT = ("attention_probs_dropout_prob", "attention_dropout")
# Tokenizers that transformers 5 no longer lets say which of two texts a token is from, although their models were
# trained with it (huggingface/transformers#48128).
_WITH_TOKEN_TYPES = (
    *("AlbertTokenizer", "FunnelTokenizer", "HerbertTokenizer", "RemBertTokenizer", "RoFormerTokenizer"),
    *("SplinterTokenizer", "XLNetTokenizer"),
)
# Tables with a row for each position, by the names that transformers gives them.
_POSITION_TABLES = ("position_embeddings", "embed_positions", "wpe")


@dataclass
class Model:
    """An encoder to prune."""

    path: str = MISSING
    """A hub id, a folder, or `embedded:NAME` for weights that come with this package."""
    finetuned: str | None = None
    """A checkpoint fine-tuned on the dataset, as id or folder: the dense model. If not given, the run makes one."""
    sparse: str | None = None
    """For pattern=locked: a sparse checkpoint of the same architecture, as id or folder. The student starts from it and
    keeps its zeros; the dense model remains its teacher and what it is compared with."""
    revision: str | None = None
    """Commit, tag or branch of `path` on the hub."""
    finetuned_revision: str | None = None
    """Commit, tag or branch of `finetuned` on the hub."""
    model_type: str | None = None
    """transformers' name of the architecture, used where the checkpoint's config.json does not say."""
    prunable: list[str] = field(default_factory=lambda: ["*"])
    """Linear and convolution layers to prune, as shell patterns of module names; never head, pooler and embeddings."""
    excluded: list[str] = field(default_factory=list)
    """Layers to leave dense all the same, as shell patterns of module names."""
    hidden_dropout: float | None = None
    """Dropout of hidden states in both trainings; the checkpoint's own if not given."""
    attention_dropout: float | None = None
    """Dropout of attention weights in both trainings; the checkpoint's own if not given. 0 is much faster on CPUs."""

    defining: ClassVar[tuple[str, ...]] = ("path", "finetuned", "sparse", "revision", "finetuned_revision")

    def __post_init__(self) -> None:
        for key in ("hidden_dropout", "attention_dropout"):
            value = getattr(self, key)
            if value is not None and not 0 <= value < 1:
                raise UserError(f"model.{key}={value} is out of range: from 0 to below 1")
        if not self.path:
            raise UserError("model.path is empty: a hub id or a folder")


@dataclass
class Checkpoint:
    """A place to load a model from, checked to exist."""

    path: str
    """Hub id or folder."""
    revision: str | None
    config: PretrainedConfig
    key: str
    """The configuration key that named it, for messages."""

    @property
    def fingerprint(self) -> str:
        """What identifies the model: the hub's commit, or a hash of a folder's weights, configuration and tokenizer."""
        return self._hash((*_WEIGHT_FILES, *_TOKENIZER_FILES, "config.json"))

    @property
    def weights(self) -> str:
        """The same of the weights alone."""
        return self._hash(_WEIGHT_FILES)

    def _hash(self, names: Iterable[str]) -> str:
        folder = Path(self.path)
        if not folder.is_dir():
            return f"{self.path}@{self.config._commit_hash}"
        digest = hashlib.sha256()
        for file in sorted({file for name in names for file in folder.glob(name)}):
            digest.update(file.name.encode())
            with file.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
        return digest.hexdigest()


def find(path: str, key: str, model: Model, revision: str | None = None) -> Checkpoint:
    """Resolve a configured path and read its config.json.

    Raises:
        UserError: there is nothing, the hub cannot be reached, or a folder has no weights.
    """
    if path.startswith(EMBEDDED):
        path = str(Path(__file__).parents[1] / "demo" / path.removeprefix(EMBEDDED))
    folder = Path(path).expanduser()
    if folder.is_dir():
        path = str(folder)
        if not (folder / "config.json").is_file():
            raise UserError(f"{key}={path}: there is no config.json in this folder")
        if not any(p for name in _WEIGHT_FILES for p in folder.glob(name)):
            raise UserError(
                f"{key}={path}: there are no weights in this folder (model.safetensors or pytorch_model.bin)"
            )
    elif folder.is_absolute() or path.startswith((".", "~")):
        raise UserError(f"{key}={path}: there is no such folder")
    return Checkpoint(path, revision, _config(path, key, model, revision), key)


def _config(path: str, key: str, model: Model, revision: str | None) -> PretrainedConfig:
    from transformers import AutoConfig, PretrainedConfig
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING
    from transformers.utils.hub import cached_file, extract_commit_hash

    with explain("model", key, path):
        values, _ = PretrainedConfig.get_config_dict(path, revision=revision)
        commit = extract_commit_hash(cached_file(path, "config.json", revision=revision), None)
        kind = values.pop("model_type", None) or model.model_type
        if kind is None:
            raise UserError(f"{key}={path}: its config.json names no architecture; set model.model_type, such as bert")
        if kind not in CONFIG_MAPPING:
            raise UserError(f"{key}={path}: transformers does not know the architecture {kind!r} (model_type)")
        config = AutoConfig.for_model(kind, **values)
        config._commit_hash = commit
    _set_dropout(config, _HIDDEN_DROPOUT, model.hidden_dropout, "hidden_dropout", path)
    _set_dropout(config, _ATTENTION_DROPOUT, model.attention_dropout, "attention_dropout", path)
    return config


def _set_dropout(config: PretrainedConfig, names: Iterable[str], value: float | None, key: str, path: str) -> None:
    if value is None:
        return
    found = [name for name in names if hasattr(config, name)]
    if not found:
        raise UserError(f"model.{key}={value}: {path} ({config.model_type}) has no such setting")
    for name in found:
        setattr(config, name, value)


def dropout(net: PreTrainedModel) -> float:
    """The highest dropout probability in the network. Not that of its configuration, which may name one for the heads
    of other tasks."""
    inside = [module.p for module in net.modules() if isinstance(module, nn.Dropout)]
    return max(hidden_dropout(net.config), attention_dropout(net.config), *inside, 0.0)


def hidden_dropout(config: PretrainedConfig) -> float:
    """The dropout probability of hidden states, the highest where there are several."""
    return max((float(getattr(config, name)) for name in _HIDDEN_DROPOUT if hasattr(config, name)), default=0.0)


def attention_dropout(config: PretrainedConfig) -> float:
    """The dropout probability of attention weights."""
    return max((float(getattr(config, name)) for name in _ATTENTION_DROPOUT if hasattr(config, name)), default=0.0)


def kind_of(name: str) -> str:
    """The kind of matrix that a weight is: its name without the number of its layer and what stands before it."""
    return re.sub(r"^.*\.\d+\.", "", name).removesuffix(".weight")


def load(architecture: str, checkpoint: Checkpoint, attentions: bool = False) -> PreTrainedModel:
    """The model in float32, whatever it was saved in. Parameters that a pretrained checkpoint lacks, those of the head,
    are drawn at random.

    Args:
        attentions: it is to give its attention weights, which only the plain way to compute attention can.

    Raises:
        UserError: it cannot be loaded, or lacks parameters although it was fine-tuned.
    """
    os.environ["DISABLE_SAFETENSORS_CONVERSION"] = "1"  # no thread that asks the hub to convert a .bin
    with explain("model", checkpoint.key, checkpoint.path), quiet_loading():
        from_pretrained, _ = heads.network(architecture, checkpoint.config)
        model, info = from_pretrained(
            checkpoint.path,
            revision=checkpoint.revision,
            config=checkpoint.config,
            dtype=torch.float32,
            output_loading_info=True,
            ignore_mismatched_sizes=checkpoint.key == PRETRAINED,  # a head of another task: drawn anew, as told below
            **({"attn_implementation": "eager"} if attentions else {}),
        )
    differing = sorted(str(key[0] if isinstance(key, tuple) else key) for key in info["mismatched_keys"])
    inside = [name for name in differing if name.startswith(f"{model.base_model_prefix}.")]
    if inside:
        raise UserError(
            f"{checkpoint.key}={checkpoint.path}: {inside[0]} has another shape than its config.json says: the "
            "checkpoint is damaged, or not what its configuration describes"
        )
    lacking = sorted(info["missing_keys"])
    if lacking and checkpoint.key != PRETRAINED:
        raise UserError(
            f"{checkpoint.key}={checkpoint.path}: it has no weights for {', '.join(lacking[:3])}: it was not "
            f"fine-tuned for this kind of task ({architecture.removeprefix('AutoModelFor')})"
        )
    return model


def skeleton(architecture: str, config: PretrainedConfig) -> PreTrainedModel:
    """The model without memory for its weights, to read names and shapes from."""
    try:
        with torch.device("meta"):
            _, from_config = heads.network(architecture, config)
            return from_config(config)
    except ValueError as error:
        raise UserError(
            f"the architecture {config.model_type} has no {architecture.removeprefix('AutoModel')} model"
        ) from error


def positions(net: PreTrainedModel) -> int | None:
    """How many tokens the network has positions for; None if it has no table of them, but distances or rotations."""
    found: list[int] = []
    for module in net.base_model.modules():
        for name in _POSITION_TABLES:
            table = getattr(module, name, None)
            if not isinstance(table, nn.Embedding):
                continue
            # RoBERTa and its kin count from the row after the padding's, BART from `offset`.
            skipped = getattr(table, "offset", 0) if table.padding_idx is None else table.padding_idx + 1
            found.append(table.num_embeddings - skipped)
            ids = getattr(module, "position_ids", None)
            if isinstance(ids, torch.Tensor):
                found.append(ids.shape[-1])
    return min(found, default=None)


def check_positions(net: PreTrainedModel, checkpoint: Checkpoint, tokens: int) -> None:
    """Refuse texts that are longer than the network has positions for.

    Args:
        tokens: dataset.max_seq_length.

    Raises:
        UserError: it has fewer.
    """
    most = positions(net)
    if most is not None and tokens > most:
        raise UserError(
            f"dataset.max_seq_length={tokens}: {checkpoint.path} ({checkpoint.key}) has positions for {most} tokens; "
            f"set dataset.max_seq_length to {most} or less, or choose a model for longer texts"
        )


def load_tokenizer(checkpoint: Checkpoint) -> PreTrainedTokenizerBase:
    """The checkpoint's fast tokenizer; a slow one cannot say where a token stands in the text."""
    from transformers import AutoTokenizer

    with explain("model", checkpoint.key, checkpoint.path), _explain_sentencepiece(checkpoint):
        found = AutoTokenizer.from_pretrained(checkpoint.path, revision=checkpoint.revision, config=checkpoint.config)
    if not found.is_fast:
        raise UserError(f"{checkpoint.key}={checkpoint.path}: it has no fast tokenizer, which answers' offsets need")
    found.padding_side = "right"  # XLNet's pads before the text, where labels and logits do not expect it
    if type(found).__name__ in _WITH_TOKEN_TYPES and "token_type_ids" not in found.model_input_names:
        found.model_input_names = [*found.model_input_names, "token_type_ids"]
        found.init_kwargs["model_input_names"] = found.model_input_names  # and so in the folder that it is saved to
    return found


@contextmanager
def _explain_sentencepiece(checkpoint: Checkpoint) -> Iterator[None]:
    """Say what is wrong with a tokenizer that is a SentencePiece file alone, and has to be converted. transformers
    takes whatever it cannot read for a file of tiktoken, and asks for that package."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()  # else it says that it falls back to tiktoken
    try:
        yield
    except (ImportError, ValueError) as error:
        if not re.search("sentencepiece|tiktoken", str(error), re.IGNORECASE):
            raise
        reason = "is damaged, or is none of SentencePiece's"
        if find_spec("sentencepiece") is None:
            reason = "is a SentencePiece file, which the package sentencepiece reads: pip install sentencepiece"
        raise UserError(f"{checkpoint.key}={checkpoint.path}: its tokenizer {reason}") from error
    finally:
        logging.set_verbosity(level)


def shape(config: PretrainedConfig) -> EncoderShape:
    """What a distillation must know of a model."""
    return EncoderShape(config.num_hidden_layers, config.hidden_size, getattr(config, "num_attention_heads", 0))


def prunable_parameters(net: PreTrainedModel, model: Model) -> dict[str, nn.Parameter]:
    """The weights that may be pruned, by parameter name: those of the encoder's Linear and Conv layers that `model`
    selects.

    Raises:
        UserError: there is no such layer, or a pattern in model.prunable or model.excluded matches none.
    """
    inside = f"{net.base_model_prefix}."
    layers = {
        name.removesuffix(".weight"): weight
        for name, weight in matrix_weights(net).items()
        if name.startswith(inside) and not any(part in name.removeprefix(inside) for part in _NOT_PRUNABLE)
    }
    if net.base_model is net or not layers:
        raise UserError(
            f"the architecture {net.config.model_type} cannot be pruned here: {type(net).__name__} has "
            + ("no encoder apart from its head" if net.base_model is net else "no Linear or Conv layer in its encoder")
        )
    chosen = {name for pattern in model.prunable for name in _matching(pattern, layers, "model.prunable")}
    chosen -= {name for pattern in model.excluded for name in _matching(pattern, layers, "model.excluded")}
    if not chosen:
        raise UserError(
            f"model.prunable={model.prunable} without model.excluded={model.excluded} leaves nothing to prune"
        )
    return {f"{name}.weight": weight for name, weight in layers.items() if name in chosen}


def _matching(pattern: str, layers: Iterable[str], key: str) -> list[str]:
    found = fnmatch.filter(layers, pattern)
    if not found:
        known = ", ".join(sorted(layers)[:4])
        raise UserError(
            f"{key}: {pattern!r} matches none of the encoder's Linear and Conv layers "
            f"(such as {known}; * matches any text)"
        )
    return found


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Silence transformers' table of newly drawn heads and unused poolers, expected here, and its bars for files."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
