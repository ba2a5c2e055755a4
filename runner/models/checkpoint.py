"""A transformers model from a configured path: a hub id, a folder, or weights that come with this package."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import torch
from omegaconf import MISSING

from runner.models import heads
from runner.models.dropout import set_dropout
from runner.system.errors import UserError
from runner.system.files import check_regular
from runner.system.fingerprint import hash_files
from runner.system.hub import explain

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

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
    """A model on the disk or the hub, checked to exist. Its fingerprints are those of the files as first read: of a
    folder that was rewritten, make a new one by `find`."""

    path: str
    """Hub id or folder."""
    revision: str | None
    config: PretrainedConfig
    key: str
    """The configuration key that named it, for messages."""
    _digests: dict[Path, bytes] = field(default_factory=dict, init=False, repr=False, compare=False)
    """SHA-256 of the files that were read: a run asks for both fingerprints several times."""

    @property
    def fingerprint(self) -> str:
        """The hub's commit, or a hash of the folder's weights, configuration and tokenizer."""
        return self._hash((*_WEIGHT_FILES, *_TOKENIZER_FILES, "config.json"))

    @property
    def weights(self) -> str:
        """The hub's commit, or a hash of the folder's weights alone."""
        return self._hash(_WEIGHT_FILES)

    def _hash(self, names: Iterable[str]) -> str:
        folder = Path(self.path)
        if not folder.is_dir():
            return f"{self.path}@{self.config._commit_hash}"
        return hash_files({file for name in names for file in folder.glob(name)}, self._digests)


def find(path: str, key: str, model: Model, revision: str | None = None) -> Checkpoint:
    """Resolve a configured path and read its config.json.

    Raises:
        UserError: nothing is there, the hub cannot be reached, or a folder has no weights.
    """
    if path.startswith(EMBEDDED):
        path = str(Path(__file__).parents[1] / "demo" / path.removeprefix(EMBEDDED))
    folder = Path(path).expanduser()
    if folder.is_dir():
        path = str(folder)
        check_regular(*sorted(folder.iterdir()))
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
    set_dropout(config, model.hidden_dropout, model.attention_dropout, path)
    return config


def load(architecture: str, checkpoint: Checkpoint, attentions: bool = False) -> PreTrainedModel:
    """Load a model in float32, whatever it was saved in. Parameters of the head that a pretrained checkpoint lacks are
    drawn at random.

    Args:
        attentions: whether it must return attention weights, which only the eager implementation of attention does.

    Raises:
        UserError: it cannot be loaded, or is fine-tuned and lacks parameters.
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
            ignore_mismatched_sizes=checkpoint.key == PRETRAINED,  # a head of another task: drawn anew, checked below
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
    """The model on the meta device: names and shapes without memory for weights."""
    try:
        with torch.device("meta"):
            _, from_config = heads.network(architecture, config)
            return from_config(config)
    except ValueError as error:
        raise UserError(
            f"the architecture {config.model_type} has no {architecture.removeprefix('AutoModel')} model"
        ) from error


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
