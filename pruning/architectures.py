"""Names that Transformers give to the matrices of a layer: the one place that knows which rows and columns belong
together.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Names:
    """Linear modules between which a layer has features, relative to the layer or to a part of it."""

    writers: tuple[str, ...]
    """Modules that compute the features, as rows: query, key and value; or up, with the gate before it if it is one."""
    reader: str
    """The module that reads them, as columns: the output of attention, or down."""
    more: tuple[str, ...] = ()
    """Further writers that some models of the family have."""
    bias: str = ""
    """The argument of attention with a score for each head that all layers share, (1, heads, ...)."""
    can_be_cut: bool = True
    """Whether attention computes with fewer heads in one layer than in another."""

    @property
    def all(self) -> tuple[str, ...]:
        """Writers and reader."""
        return (*self.writers, self.reader)

    def units(self, reader: str, what: str) -> str:
        """Name of the units of a layer, such as bert.encoder.layer.0.channels, by that of its reader."""
        return reader.removesuffix(self.reader) + what

    def find(self, modules: Mapping[str, object]) -> Iterator[tuple[list[str], str]]:
        """Writers and reader in full, wherever all of them stand under one name.

        Args:
            modules: Linear modules by name.
        """
        for name in modules:
            prefix = name.removesuffix(self.reader)
            writers = [prefix + writer for writer in self.writers]
            if prefix != name and (not prefix or prefix.endswith(".")) and all(w in modules for w in writers):
                yield writers + [prefix + more for more in self.more if prefix + more in modules], name


BERT_ATTENTION = Names(("attention.self.query", "attention.self.key", "attention.self.value"), "attention.output.dense")
BERT_FEED_FORWARD = Names(("intermediate.dense",), "output.dense")
DISTILBERT_ATTENTION = Names(("attention.q_lin", "attention.k_lin", "attention.v_lin"), "attention.out_lin")
DISTILBERT_FEED_FORWARD = Names(("ffn.lin1",), "ffn.lin2")

ATTENTIONS = (
    BERT_ATTENTION,  # RoBERTa, ELECTRA, MobileBERT and others too
    DISTILBERT_ATTENTION,
    Names(
        ("attention.attn.q", "attention.attn.k", "attention.attn.v"), "attention.attn.o", bias="position_bias"
    ),  # MPNet
    Names(("attention.query", "attention.key", "attention.value"), "attention.dense"),  # ALBERT
    Names(
        ("attention.self.query_proj", "attention.self.key_proj", "attention.self.value_proj"),
        "attention.output.dense",
        ("attention.self.pos_key_proj", "attention.self.pos_query_proj"),
    ),  # DeBERTa v2 and v3
    Names(("attn.Wqkv",), "attn.Wo"),  # ModernBERT: query, key and value in one matrix
    Names(("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), "self_attn.o_proj"),  # EuroBERT, as Llama
    Names(("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), "self_attn.out_proj"),  # BART's encoder
    Names(
        ("SelfAttention.q", "SelfAttention.k", "SelfAttention.v"), "SelfAttention.o", can_be_cut=False
    ),  # T5's encoder: the first layer computes the position bias of all heads in all layers
)
"""Attention by heads, whose features stand one head after the other in rows of writers and columns of the reader."""

FEED_FORWARDS = (
    BERT_FEED_FORWARD,  # RoBERTa, ELECTRA, MPNet, MobileBERT, DeBERTa and others too
    DISTILBERT_FEED_FORWARD,
    Names(("ffn",), "ffn_output"),  # ALBERT
    Names(("mlp.Wi",), "mlp.Wo"),  # ModernBERT: values and gates in one matrix
    Names(("mlp.gate_proj", "mlp.up_proj"), "mlp.down_proj"),  # EuroBERT, as Llama
    Names(("fc1",), "fc2"),  # BART's encoder and its kin
    Names(("DenseReluDense.wi",), "DenseReluDense.wo"),  # T5's encoder
    Names(("DenseReluDense.wi_0", "DenseReluDense.wi_1"), "DenseReluDense.wo"),  # T5 1.1, gated
)
"""Feed-forward networks. What is between the two matrices works on each channel alone."""
