"""The base model (`BertModel` and its kin) around a sparse encoder."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from pruning.errors import PruningError

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from transformers.utils.generic import ModelOutput

    from pruning.runtime.encoder import SparseEncoder


class SparseBase(nn.Module):
    """Embeddings and pooler of a base model, and a sparse encoder. transformers' own forward would spend a quarter of
    the time of a short text on masks and hooks that a sparse encoder does not use.
    """

    def __init__(self, base: PreTrainedModel, encoder: SparseEncoder) -> None:
        super().__init__()
        embeddings = base.get_submodule("embeddings")
        self.config, self.embeddings, self.encoder = base.config, embeddings, encoder
        self.project = getattr(base, "embeddings_project", None)  # ELECTRA's
        self.pooler = getattr(base, "pooler", None)
        names = inspect.signature(embeddings.forward).parameters
        self._names = {name.replace("input_embeds", "inputs_embeds"): name for name in names}  # DistilBERT's spelling

    def forward(
        self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, **more: Any
    ) -> ModelOutput:
        """As the base model, without attentions, the hidden states of single layers, and caches.

        Raises:
            PruningError: one of these is asked for, or the mask is not (batch, length).
        """
        from transformers.modeling_outputs import BaseModelOutputWithPooling

        more = {name: value for name, value in more.items() if value is not None and value is not False}
        unknown = more.keys() - self._names.keys() - {"return_dict"}
        if unknown:
            raise PruningError(f"a sparse encoder cannot serve {', '.join(sorted(unknown))}; use the dense model")
        given = {"input_ids": input_ids, **more}
        hidden = self.embeddings(**{self._names[name]: given[name] for name in given.keys() & self._names.keys()})
        if self.project is not None:
            hidden = self.project(hidden)
        batch, length, _ = hidden.shape
        if attention_mask is not None and tuple(attention_mask.shape) not in ((batch, length), (1, length)):
            raise PruningError(
                f"attention_mask is {tuple(attention_mask.shape)}, not (batch, length): {(batch, length)}"
            )
        mask = None if attention_mask is None else attention_mask.expand(batch, length)
        last = self.encoder(hidden, mask)
        pooled = None if self.pooler is None else self.pooler(last)
        return BaseModelOutputWithPooling(last_hidden_state=last, pooler_output=pooled)
