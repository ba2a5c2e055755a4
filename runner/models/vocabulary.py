"""Whether a tokenizer fits its model and the data: embeddings for all its tokens, and tokens for what the texts say."""

from __future__ import annotations

import logging
import unicodedata
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from runner.models.tokenizer import SAMPLE, load_tokenizer
from runner.system.errors import UserError

if TYPE_CHECKING:
    import datasets
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from runner.data.task import Dataset
    from runner.models.checkpoint import Checkpoint

log = logging.getLogger(__name__)

_UNREAD_ALL = 0.9
"""With this share of the characters unread there is next to nothing to learn from."""
_UNREAD_MANY = 0.01
"""Above this share the vocabulary is not that of the texts. MiniLM leaves 0.02 % of SQuAD unread, and nothing of SST-2
and SNLI; the demo's 604 pieces of English leave 0.16 % of SQuAD."""
_INVISIBLE = "ZCM"  # Unicode's categories of blanks, control characters and combining marks, which tokenizers may drop


def check_embeddings(checkpoint: Checkpoint, net: PreTrainedModel) -> None:
    """Refuse a tokenizer whose tokens the model has no embeddings for, or that cannot pad.

    Args:
        net: the checkpoint's network; its weights need no memory.
    """
    tokenizer = load_tokenizer(checkpoint)
    embeddings: Any = net.get_input_embeddings()
    tokens, rows = max(tokenizer.get_vocab().values()) + 1, embeddings.weight.shape[0]
    if tokens > rows:
        raise UserError(
            f"{checkpoint.key}={checkpoint.path}: its tokenizer has {tokens} tokens, and its model embeddings of "
            f"{rows}: take the tokenizer files that the model was trained with, or save the model after "
            f"model.resize_token_embeddings({tokens})"
        )
    if tokenizer.pad_token_id is None:
        raise UserError(
            f"{checkpoint.key}={checkpoint.path}: its tokenizer has no token for padding: name one as pad_token in its "
            "tokenizer_config.json"
        )


def check_reading(checkpoint: Checkpoint, task: Dataset, examples: datasets.Dataset, part: str) -> None:
    """Refuse a tokenizer that reads next to nothing of a sample of the texts, spread over the examples; warn if much of
    it is lost.

    A round trip through `decode` would also differ where a tokenizer folds case or accents. Here each character that
    can be seen must be covered by a token other than the unknown one.

    Args:
        part: "training" or "evaluation".
    """
    sample = examples.select(np.unique(np.linspace(0, len(examples) - 1, SAMPLE).astype(int)))
    texts = task.texts(sample)
    counts = list(_unread(texts, load_tokenizer(checkpoint)))
    unread, visible = sum(n for n, _, _ in counts), sum(n for _, n, _ in counts)
    share = unread / max(1, visible)
    if share <= _UNREAD_MANY:
        return
    such = next(text for n, _, text in counts if n)
    problem = (
        f"{checkpoint.key}={checkpoint.path}: its tokenizer has no token for {share:.1%} of the characters in "
        f"{len(texts)} {part} texts, such as {such!r}"
    )
    if share >= _UNREAD_ALL:
        raise UserError(f"{problem}: choose a model of this language and script, with the tokenizer files it came with")
    log.warning("%s: a model trained on such texts would lose less", problem)


def _unread(texts: list[str], tokenizer: PreTrainedTokenizerBase) -> Iterator[tuple[int, int, str]]:
    """For each text the number of visible characters that no known token covers, of all visible ones, and the first
    word with such characters."""
    encoded = tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    for text, tokens, offsets in zip(texts, encoded["input_ids"], encoded["offset_mapping"], strict=True):
        unread = np.array([unicodedata.category(c)[0] not in _INVISIBLE for c in text], dtype=bool)
        visible = int(unread.sum())
        for token, (start, stop) in zip(tokens, offsets, strict=True):
            if token != tokenizer.unk_token_id:
                unread[start:stop] = False
        first = int(unread.argmax()) if unread.any() else 0
        yield int(unread.sum()), visible, text[first:].split(maxsplit=1)[0][:40] if visible else ""
