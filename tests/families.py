"""The families of encoders as their repositories on the hub are, but small, random, and at home in the demo's text."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

LAYERS = 2
WIDTH, INNER = 32, 64
MOST = 512
"""Positions, but for those that a family leaves unused."""


def layers(encoder: str, *kinds: str, count: int = LAYERS) -> list[str]:
    """The names of matrices of these kinds in all layers."""
    return [f"{encoder}.{i}.{kind}" for i in range(count) for kind in kinds]


@cache
def texts() -> list[str]:
    from runner.demo.text import examples

    return [text for example in examples(200, seed=0) for text in (example["question"], example["context"])]


# --- tokenizers, as files -----------------------------------------------------------------------------------


def word_pieces(folder: Path, **specials: str) -> None:
    """vocab.txt alone, with other names for the special tokens where a family has some."""
    from tests.tools.pretrain_tiny import build_tokenizer

    vocabulary = build_tokenizer().get_vocab()
    words = [specials.get(word.strip("[]"), word) for word in sorted(vocabulary, key=vocabulary.__getitem__)]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")


def mpnet_pieces(folder: Path) -> None:
    word_pieces(folder, CLS="<s>", SEP="</s>", PAD="<pad>", MASK="<mask>")


def byte_pairs(folder: Path) -> None:
    """vocab.json and merges.txt, of bytes."""
    from tokenizers import ByteLevelBPETokenizer

    tokenizer = ByteLevelBPETokenizer()
    specials = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    tokenizer.train_from_iterator(texts(), vocab_size=600, special_tokens=specials, show_progress=False)
    tokenizer.save_model(str(folder))


def byte_pairs_whole(folder: Path) -> None:
    """tokenizer.json, of bytes, as ModernBERT's: no token types."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    names = {"unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "pad": "[PAD]", "mask": "[MASK]"}
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=list(names.values()), initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts(), trainer)
    ids = [(name, tokenizer.token_to_id(name)) for name in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=ids
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_input_names=["input_ids", "attention_mask"],
        **{f"{key}_token": name for key, name in names.items()},
    ).save_pretrained(folder)  # fmt: skip


def sentence_pieces(file: Path, pieces: Iterable[str], **options: Any) -> None:
    """A SentencePiece model alone; `pieces` are pad, unk, bos and eos in the order of their ids."""
    trainer = pytest.importorskip("sentencepiece").SentencePieceTrainer
    numbers = {f"{name.strip('<>[]').lower()}": i for i, name in enumerate(pieces)}
    keys = {"pad": "pad", "unk": "unk", "cls": "bos", "sep": "eos"}
    options |= {f"{keys[name]}_id": i for name, i in numbers.items()}
    options |= {f"{keys[name.strip('<>[]').lower()]}_piece": name for name in pieces}
    model = io.BytesIO()
    trainer.train(sentence_iterator=iter(texts()), model_writer=model, vocab_size=400, hard_vocab_limit=False,
                  minloglevel=2, num_threads=1, **options)  # fmt: skip
    file.write_bytes(model.getvalue())


def albert_pieces(folder: Path) -> None:
    sentence_pieces(folder / "spiece.model", ("<pad>", "<unk>", "[CLS]", "[SEP]"), control_symbols=["[MASK]"])


def deberta_pieces(folder: Path) -> None:
    sentence_pieces(folder / "spm.model", ("[PAD]", "[CLS]", "[SEP]", "[UNK]"))


# --- families -----------------------------------------------------------------------------------------------


@dataclass
class Family:
    """One option of the group `model`."""

    path: str
    """Its hub id."""
    kind: str
    """transformers' name of the architecture."""
    pruned: list[str]
    """The matrices that are pruned."""
    dense: list[str]
    """Those that are not, of this network with a head for question answering."""
    tokenizer: Callable[[Path], None] = word_pieces
    """Writes the tokenizer's files into a folder."""
    sizes: dict[str, Any] = field(default_factory=dict)
    """What of the configuration is its own."""
    positions: int | None = MOST
    """Tokens that it has positions for."""


BERT = (
    "attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense",
    "intermediate.dense", "output.dense",
)  # fmt: skip
MPNET = ("attention.attn.q", "attention.attn.k", "attention.attn.v", "attention.attn.o", *BERT[4:])
FEED_FORWARDS = [f"ffn.{i}.{part}.dense" for i in range(3) for part in ("intermediate", "output")]
BOTTLENECKS = ("bottleneck.input.dense", "bottleneck.attention.dense", "output.bottleneck.dense")
ALBERT = ("attention.query", "attention.key", "attention.value", "attention.dense", "ffn", "ffn_output")
DEBERTA = ("attention.self.query_proj", "attention.self.key_proj", "attention.self.value_proj", *BERT[3:])
MODERNBERT = ("attn.Wqkv", "attn.Wo", "mlp.Wi", "mlp.Wo")
OF_ROBERTA = {"max_position_embeddings": MOST + 2, "type_vocab_size": 1,
              "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}  # fmt: skip
OF_DEBERTA = {
    "relative_attention": True, "position_buckets": 8, "norm_rel_ebd": "layer_norm", "share_att_key": True,
    "pos_att_type": "p2c|c2p", "position_biased_input": False, "max_relative_positions": -1, "type_vocab_size": 0,
}  # fmt: skip
QA = "qa_outputs"


def electra(size: str, embeddings: int, *dense: str) -> Family:
    return Family(f"google/electra-{size}-discriminator", "electra", layers("electra.encoder.layer", *BERT),
                  [*dense, QA], sizes={"embedding_size": embeddings})  # fmt: skip


def deberta(size: str) -> Family:
    return Family(f"microsoft/deberta-v3-{size}", "deberta-v2", layers("deberta.encoder.layer", *DEBERTA), [QA],
                  deberta_pieces, OF_DEBERTA, None)  # fmt: skip


FAMILIES = {
    "minilm-l6": Family("sentence-transformers/all-MiniLM-L6-v2", "bert", layers("bert.encoder.layer", *BERT), [QA]),
    "roberta-base": Family(
        "FacebookAI/roberta-base", "roberta", layers("roberta.encoder.layer", *BERT), [QA], byte_pairs, OF_ROBERTA
    ),
    "electra-small": electra("small", 16, "electra.embeddings_project"),
    "electra-base": electra("base", WIDTH),
    "mpnet-base": Family(
        "microsoft/mpnet-base", "mpnet", layers("mpnet.encoder.layer", *MPNET), [QA], mpnet_pieces,
        {"max_position_embeddings": MOST + 2, "pad_token_id": 1},
    ),
    "mobilebert": Family(
        "google/mobilebert-uncased", "mobilebert",
        layers("mobilebert.encoder.layer", *BERT, *FEED_FORWARDS, *BOTTLENECKS),
        ["mobilebert.embeddings.embedding_transformation", QA],
        sizes={"embedding_size": 16, "intra_bottleneck_size": 16, "true_hidden_size": 16},
    ),
    "albert-base": Family(
        "albert/albert-base-v2", "albert",
        layers("albert.encoder.albert_layer_groups.0.albert_layers", *ALBERT, count=1),
        ["albert.encoder.embedding_hidden_mapping_in", QA], albert_pieces,
        {"embedding_size": 16, "num_hidden_layers": 3, "hidden_dropout_prob": 0, "attention_probs_dropout_prob": 0},
    ),
    "deberta-v3-small": deberta("small"),
    "deberta-v3-base": deberta("base"),
    "modernbert-base": Family(
        "answerdotai/ModernBERT-base", "modernbert", layers("model.layers", *MODERNBERT), ["head.dense", "classifier"],
        byte_pairs_whole,
        {"pad_token_id": 3, "cls_token_id": 1, "sep_token_id": 2, "bos_token_id": 1, "eos_token_id": 2}, None,
    ),
}  # fmt: skip


def small_config(family: Family, words: int, **changes: Any) -> Any:
    """The configuration of a small network of a family with so many words."""
    from transformers import AutoConfig

    sizes = {"hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": 2, "intermediate_size": INNER,
             "max_position_embeddings": MOST}  # fmt: skip
    return AutoConfig.for_model(family.kind, vocab_size=words, **{**sizes, **family.sizes, **changes})


def save(family: Family, folder: Path) -> Path:
    """The repository of a family: config.json, the weights of its pre-training, and no more of a tokenizer than the
    files that its own has."""
    from transformers import AutoModelForMaskedLM, AutoTokenizer

    folder.mkdir(parents=True, exist_ok=True)
    family.tokenizer(folder)
    config = small_config(family, 1, pad_token_id=0)
    words = len(AutoTokenizer.from_pretrained(folder, config=config))
    torch.manual_seed(0)
    AutoModelForMaskedLM.from_config(small_config(family, words)).save_pretrained(folder)
    return folder
